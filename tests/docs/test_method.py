"""docs/method/method.md lists every file of the method, and its links are valid."""

import re

from tests.helpers.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "method" / "method.md"


def test_the_map_lists_every_file_of_the_method() -> None:
    listed = set(re.findall(r"^\| \[(\w+\.py)\]", PAGE.read_text(), re.MULTILINE))
    files = {path.name for path in (REPOSITORY / "sid_lsg" / "method").glob("*.py")}
    assert listed == files - {"__init__.py"}


def test_links_point_to_files() -> None:
    links = re.findall(r"\]\((\.\./[^)#]+)\)", PAGE.read_text())
    assert len(links) > 10
    assert not [link for link in links if not (PAGE.parent / link).exists()]


def test_docstrings_name_existing_sections() -> None:
    sections = set(re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE))
    named = set()
    for path in (REPOSITORY / "sid_lsg" / "method").glob("*.py"):
        named |= set(re.findall(r"\bmethod\.md, ([\w ]+)", path.read_text()))
    assert named
    assert {name.capitalize() if name != "EMA" else name for name in named} <= sections
