"""The configs, from the comments at their heads."""

import re
from pathlib import Path

from docs.tables.blocks import REPOSITORY, named, table


@named("configs")
def configs() -> str:
    """Return what each config is for, as its header says."""
    paths = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    paths = [path for path in paths if path.parent.name != "paper"]
    rows = [[config_link(path), purpose(header(path))] for path in paths]
    return table(["config", "what it is for"], rows)


@named("paper")
def paper() -> str:
    """Return the published rows, and what a run of each is estimated to take."""
    rows = []
    for path in sorted((REPOSITORY / "configs/paper").glob("*.yaml")):
        text = header(path)
        found = re.search(
            r"Images seen: ([\d.]+ M).*Published: FID ([\d.]+), CLIP ([\d.]+) "
            r".*Estimated: (\d+) H200-hours",
            text,
        )
        assert found, path
        rows.append([config_link(path), purpose(text), *found.groups()])
    return table(["config", "row", "images seen", "FID", "CLIP", "H200-hours"], rows)


def header(path: Path) -> str:
    """Return the comment at the head of a config, in one line."""
    lines = re.match(r"(#.*\n)+", path.read_text())
    assert lines, path
    return " ".join(line.removeprefix("#").strip() for line in lines[0].splitlines())


def purpose(text: str) -> str:
    """Return the first sentence of a header."""
    return re.split(r"(?<=[.?])\s", text, maxsplit=1)[0]


def config_link(path: Path) -> str:
    """Return a link from a page of docs/reference/ to a config."""
    name = path.relative_to(REPOSITORY / "configs").as_posix()
    return f"[{name}](../../configs/{name})"
