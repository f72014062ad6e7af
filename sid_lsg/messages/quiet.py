"""Silence messages of libraries that do not help the user of a command."""

import logging
import os
import warnings

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",  # they report missing optional packages
    "DIFFUSERS_VERBOSITY": "error",
    "TQDM_MININTERVAL": "0.5",
    "TOKENIZERS_PARALLELISM": "false",  # unsafe in forked workers
}
_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training",
    ".*does not have many workers",
    ".*treespec, LeafSpec",
    ".*but there is no last checkpoint available",
    # Older supported releases of diffusers know only this name.
    ".*`torch_dtype` is deprecated",
)
_RECORDS = {
    # diffusers imports bitsandbytes if it is installed.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Of every layer of a text encoder in 8 bits, whose inputs are bfloat16.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
    # An advertisement.
    "lightning.pytorch.utilities.rank_zero": "\N{ELECTRIC LIGHT BULB} Tip: For seamless cloud",
}  # logger: the start of the message


class _Without(logging.Filter):
    """Drop log records that start with a text."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record does not start with the text."""
        return not str(record.msg).startswith(self._start)


def quiet_libraries() -> None:
    """Silence messages of libraries.

    Call this before the libraries are imported, since they read the environment then. It imports
    none of them.
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
    """Hide the progress bars of diffusers and transformers, one for each file of weights."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
