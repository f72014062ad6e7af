"""The documentation's pages: their commands, options and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PROGRAMS = (["sid-lsg"], ["-m", "sid_lsg.cli"], ["-m", "sid_lsg"])
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.M)
_HEADING = re.compile(r"^#+ (.+)$", re.M)


def name(page: Path) -> str:
    """Return a page's path inside the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _BLOCK.sub("", page.read_text())


def shell_lines(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page's bash blocks, split into words."""
    for _, language, text in _BLOCK.findall(page.read_text()):
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def our_commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command of this program in a page's bash blocks."""
    for words in shell_lines(page):
        for program in PROGRAMS:
            places = range(len(words) - len(program) + 1)
            found = [i for i in places if words[i : i + len(program)] == program]
            if found:
                yield words[found[0] + len(program) :]
                break


def named_options(page: Path) -> set[str]:
    """Return the options that a page names in inline code."""
    codes = re.findall(r"`([^`]+)`", prose(page))
    return {option for code in codes for option in re.findall(r"(?<!\S)--[a-z][\w.]*", code)}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the anchor of a page's links into the repository; either may be empty."""
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs and GitHub make them."""
    headings = _HEADING.findall(prose(page))
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}
