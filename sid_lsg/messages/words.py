"""Format counts and tables."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table; line breaks and pipes in the rows' cells are escaped."""
    lines = [head, ["---"] * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps(count: int) -> str:
    """Return a number of steps in words, such as `1 step` or `25 steps`."""
    return "1 step" if count == 1 else f"{count} steps"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
