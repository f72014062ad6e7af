"""Errors and warnings as a command prints them."""

import sys
import warnings
from pathlib import Path
from typing import NoReturn

_PACKAGE = Path(__file__).parents[1]
_format_foreign_warning = warnings.formatwarning


def fail(message: str) -> NoReturn:
    """End the program with one message and status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Write this project's warnings for people; others' with where they come from."""
    if Path(filename).is_relative_to(_PACKAGE):
        return f"warning: {message}\n"
    return _format_foreign_warning(message, category, filename, lineno, line)
