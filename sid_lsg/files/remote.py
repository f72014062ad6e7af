"""Reject paths on other machines: files are read and written on this machine."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sid_lsg.messages.errors import UsageError

# Also as pathlib writes it, with one slash. A single letter could be a drive.
_REMOTE = re.compile(r"[A-Za-z][\w+.-]+:/+\S*")
# The last parts of options whose values are texts or addresses of services.
_TEXTS = frozenset(
    ("prompt", "clip_prefix", "name", "group", "notes", "tags", "project", "entity",
     "having", "lacking", "host", "license", "push_to_hub")
)  # fmt: skip
_TEXTS_OF = ("image_grid.prompts",)
# The last parts of options of foreign classes whose values are paths; others may be addresses.
_FOREIGN_PATH = re.compile(r"(.*_)?(dir|dirs|dirpath|path|folder|file|filename)")


def is_remote(path: str) -> bool:
    """Return True for a URL, such as `s3://bucket/run` or `file:///run`."""
    return bool(_REMOTE.fullmatch(path))


def check_local(path: str, option: str) -> None:
    """Reject a path that is a URL.

    Args:
        path: The path.
        option: Name of the option that gave it.

    Raises:
        UsageError: If it is a URL.
    """
    if is_remote(path):
        hub = " A model on the Hub is given by its id, owner/name." if "hugging" in path else ""
        raise UsageError(
            f"--{option}: {path!r} is a URL, but files are read and written on this machine only. "
            f"Mount or copy it, and give a local path.{hub}"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Reject URLs in all options that take a path.

    Args:
        options: The options, by names or in sections.

    Raises:
        UsageError: For the first URL.
    """
    for option, value in _texts("", options):
        last = option.rpartition(".")[2]
        foreign = option.startswith("trainer.") and ".init_args." in f".{option}"
        if last in _TEXTS or option in _TEXTS_OF or (foreign and not _FOREIGN_PATH.fullmatch(last)):
            continue
        check_local(value, option.replace(".init_args", "") if foreign else option)


def _texts(option: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts and paths in nested sections and lists, with the names of their options."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(f"{option}.{name}" if option else str(name), part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(option, part)
    elif isinstance(value, str) or hasattr(value, "__fspath__"):
        yield option, str(value)
