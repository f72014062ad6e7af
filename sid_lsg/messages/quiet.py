"""Silence the libraries' messages that do not help the user of a command."""

import logging
import os
import warnings

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # they report optional packages that are not used here
    "DIFFUSERS_VERBOSITY": "error",
    "TQDM_MININTERVAL": "0.5",
    "TOKENIZERS_PARALLELISM": "false",  # which a forked worker cannot have
}
_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training",
    ".*does not have many workers",
    ".*treespec, LeafSpec",
    ".*but there is no last checkpoint available",
    # Older releases of diffusers, which this project supports, have no other name for it.
    ".*`torch_dtype` is deprecated",
)
_RECORDS = {
    # diffusers imports bitsandbytes where it is installed, whatever the model.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # A tip to install a commercial logger.
    "lightning.pytorch.utilities.rank_zero": "\N{ELECTRIC LIGHT BULB} Tip: For seamless cloud",
}  # logger: the start of the message


class _Without(logging.Filter):
    """Drop the records that start with a text."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep the record."""
        return not str(record.msg).startswith(self._start)


def quiet_libraries() -> None:
    """Silence messages of libraries; call it before they are imported, which read the environment.

    It imports none of them.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, start in _RECORDS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(present, _Without) for present in logger.filters):
            logger.addFilter(_Without(start))


def hide_progress_bars() -> None:
    """Hide the bars that diffusers and transformers draw for every file of weights."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
