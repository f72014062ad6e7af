"""What goes wrong in loading a model, as one message."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from sid_lsg.messages.errors import UsageError

_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError,
    SafetensorError, HfHubHTTPError, HFValidationError,
)  # fmt: skip


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn errors of loading into one that says what to do.

    Raises:
        UsageError: In place of what libraries raise, with its first line.
    """
    try:
        yield
    except UsageError:
        raise
    except _ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{what} ({reason[0]}). {remedy}") from error
