"""Format counts and tables."""

from collections.abc import Iterable, Sequence

_LIMIT = 300  # characters of a foreign message


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table; line breaks and pipes in the rows' cells are escaped."""
    lines = [head, ["---"] * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps(count: int) -> str:
    """Return a number of steps in words, such as `1 step` or `25 steps`."""
    return "1 step" if count == 1 else f"{count} steps"


def in_a_line(error: BaseException) -> str:
    """Return the start of an error's message in one line, without the final mark."""
    text = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
    return text if len(text) <= _LIMIT else f"{text[:_LIMIT]}..."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
