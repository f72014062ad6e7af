"""Load models from safetensors files, and report failures as one message."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from sid_lsg.files.sources import Source
from sid_lsg.messages.errors import UsageError

_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError,
    SafetensorError, HfHubHTTPError, HFValidationError,
)  # fmt: skip


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Convert errors of loading within the context to one message.

    Args:
        what: What failed, with the option, without a final period.
        remedy: What to do, as a sentence.

    Raises:
        UsageError: Instead of errors of the libraries; quotes their first line.
    """
    try:
        yield
    except UsageError:
        raise
    except _ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{what} ({reason[0]}). {remedy}") from error


def load_network(kind: Any, location: str | Path, **options: Any) -> Any:
    """Load a network of diffusers or transformers from safetensors files.

    Args:
        kind: Its class.
        location: The folder or Hub id.
        options: More arguments of `from_pretrained`.

    Raises:
        ValueError: If a weight is missing; the libraries would fill it with random numbers.
    """
    network, report = kind.from_pretrained(
        location, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"its weights lack {missing[0]}")
    return network


def read_json(source: Source, file: str, revision: str | None = None) -> dict[str, Any] | None:
    """Read a JSON object of a folder or Hub id.

    Args:
        source: The folder or Hub id.
        file: The file's path in it.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The object; None if the file does not exist or cannot be downloaded.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    path = source.path / file
    if source.kind == "hub":
        try:
            path = Path(hf_hub_download(source.name, file, revision=revision))
        except _ERRORS:  # offline, or the file does not exist
            return None
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content
