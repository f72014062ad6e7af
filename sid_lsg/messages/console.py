"""Print errors and warnings of commands."""

import sys
import warnings
from pathlib import Path
from typing import NoReturn

_PACKAGE = Path(__file__).parents[1]
_format_foreign_warning = warnings.formatwarning


def fail(message: str) -> NoReturn:
    """Print an error message and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning; warnings of other packages keep their file and line."""
    if Path(filename).is_relative_to(_PACKAGE):
        return f"warning: {message}\n"
    return _format_foreign_warning(message, category, filename, lineno, line)
