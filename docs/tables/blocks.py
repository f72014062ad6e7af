"""The blocks of pages that are generated, and what the tables are read from and written with."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent


REPOSITORY = DOCS.parent


RESULTS = REPOSITORY / "results"


MARK = "<!-- generated: "


BLOCK = re.compile(r"^(<!-- generated: ([\w ]+) -->\n).*?(?=^<!-- end -->$)", re.DOTALL | re.M)


SCORES = ["FID", "CLIP", "precision", "recall"]


TABLES: dict[str, Callable[[], str]] = {}


PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]


FILES = [path for path in PAGES if MARK in path.read_text()]


def named(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function as the one that makes the table of this name."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return register


def renewed(text: str) -> str:
    """Return a document with each of its tables made again."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]](), text)


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """Format a Markdown table."""
    lines = ["".join(f"| {cell} " if cell else "| " for cell in row) for row in (header, *rows)]
    lines.insert(1, "|---" * len(header))
    return "".join(f"{line}|\n" for line in lines)


def stored(name: str) -> Any:
    """Read results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def cells(path: str) -> list[list[str]]:
    """Read the rows of all tables of a file in docs/, without headers."""
    lines = (DOCS / path).read_text().splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    return [row for row in rows if row[0] != "series" and set(row[0]) != {"-"}]
