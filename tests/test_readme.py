"""The README's figures are those of the stored run, and its links lead somewhere."""

import json
import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def test_the_table_is_the_stored_runs() -> None:
    summary = json.loads((REPOSITORY / "docs/demo.json").read_text())
    table = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.match(r"teacher,|untrained,|SiD-LSG,", cells[0]):
            table[cells[0].split(",")[0]] = cells[1:]
    assert table.keys() == {"teacher", "untrained", "SiD-LSG"}
    for name, prefix in (("teacher", "teacher_"), ("untrained", "initial_"), ("SiD-LSG", "")):
        fid, clip, seconds, evaluations = table[name]
        assert fid == f"{summary[f'{prefix}fid']:.3f}"
        assert clip == f"{summary[f'{prefix}clip']:.3f}"
        assert seconds == f"{summary[f'{prefix}seconds_per_image']:.4f}"
        assert evaluations == str(summary[f"{prefix}evaluations_per_image"])
    assert f"{summary['fit_seconds']:.0f} s" in README
    assert f"{summary['iterations']} iterations" in README


def test_the_demo_does_what_the_project_promises() -> None:
    summary = json.loads((REPOSITORY / "docs/demo.json").read_text())
    assert summary["fid"] <= 1.2 * summary["teacher_fid"]
    assert summary["clip"] >= summary["teacher_clip"] - 0.01
    assert summary["fit_seconds"] <= 300


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert "docs/demo.png" in local
    for link in local:
        assert (REPOSITORY / link).is_file(), link
