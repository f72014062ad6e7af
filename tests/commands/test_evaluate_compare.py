"""`evaluate --compare`: tables, intervals and the page of several models."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.export.folder import save_pipeline
from sid_lsg.images.folder import read_image
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.intervals import groups_of, interval
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.training.module import SiDLSG
from tests.helpers.embedders import make_clip

PROMPTS = ['a "red" cat, <b>asleep</b> & warm', "two dogs on a log", "something | else"]
NUM_IMAGES = 8
KEY = f"clip_score_clip_{NUM_IMAGES}"
NAMES = ["teacher, 1 step", "teacher, 2 steps", "others <i>", "student"]


class Reports:
    """Four reports: a teacher at two settings, a folder of other images, and a student."""

    def __init__(self, root: Path, small_sd: str) -> None:
        self.root = root
        module = SiDLSG(small_sd)
        save_pipeline(module.teacher, module.generator, root / "generator", module.t_init)
        self.clip = make_clip(root / "clip", Path(small_sd, "tokenizer"))
        (root / "prompts.txt").write_text("\n".join(PROMPTS))
        (root / "photos" / "inner").mkdir(parents=True)
        random = np.random.default_rng(0)
        self.captions = [PROMPTS[i % 3] for i in range(NUM_IMAGES)]
        rows = [["file_name", "text"]]
        for i, caption in enumerate(self.captions):
            name = f"inner/photo-{i}.png"
            colour = tuple(random.integers(0, 256, 3).tolist())
            Image.new("RGB", (150, 150), colour).save(root / "photos" / name)
            rows.append([name, caption])
        with (root / "captions.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        teacher = {"model": small_sd, "sampler": "ddim", "guidance": 1}
        folder = {"images": root / "photos", "captions": root / "captions.csv", "column": "text"}
        self.evaluate("a", **teacher, num_steps=1, name=NAMES[0])
        self.evaluate("b", **teacher, num_steps=2, name=NAMES[1])
        self.evaluate("c", **folder, name=NAMES[2])
        others = ",".join(str(root / name) for name in "abc")
        self.evaluate("d", model=root / "generator", name=NAMES[3], compare=f"[{others}]")

    def evaluate(self, output: str, **options: Any) -> None:
        chosen = {
            "protocol": "clip", "clip": self.clip, "num_images": NUM_IMAGES, "batch_size": 3,
            "accelerator": "cpu", "progress": "false", "output": self.root / output,
        } | options  # fmt: skip
        if "model" in options:
            chosen["prompts"] = self.root / "prompts.txt"
        main(["evaluate", *(str(p) for k, v in chosen.items() for p in (f"--{k}", v))])


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, small_sd: str) -> Reports:
    return Reports(tmp_path_factory.mktemp("compare"), small_sd)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_scores_of_each_image_are_kept_in_order(reports: Reports) -> None:
    clip = CLIPFeatures.from_pretrained(str(reports.clip))
    protocol = clip_protocol(clip)
    for name in "cd":
        content = json.loads((reports.root / name / "report.json").read_text())
        rows = rows_of(reports.root / name / "images.csv")
        assert [row["prompt"] for row in rows] == reports.captions
        for row in rows:
            image = read_image(Path(content["images"], row["file_name"]))
            with torch.no_grad():
                ours = clip.embed(protocol.prepare([image]))[0].double()
                text = clip.texts([f"A photo depicts {row['prompt']}"])[0].double()
            expected = float(ours @ text / ours.norm() / text.norm())
            assert float(row[KEY]) == pytest.approx(expected, rel=1e-4)
        mean = np.mean([float(row[KEY]) for row in rows])
        assert content["scores"][KEY] == pytest.approx(mean, rel=1e-12)


def test_tables_have_intervals_pairs_and_costs(
    reports: Reports, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(reports.root / "d" / "report.csv")
    assert [row["name"] for row in rows] == NAMES
    for name, row in zip("abcd", rows, strict=True):
        values = [float(each[KEY]) for each in rows_of(reports.root / name / "images.csv")]
        found = interval(values, groups_of(reports.captions))
        assert [float(row[f"{KEY}{end}"]) for end in ("", "_low", "_high")] == pytest.approx(found)
    assert [row["evaluations_per_image"] for row in rows] == ["1", "2", "", "1"]
    assert [bool(row["seconds_per_image"]) for row in rows] == [True, True, False, True]

    text = (reports.root / "d" / "report.md").read_text()
    mean, low, high = (float(rows[3][f"{KEY}{end}"]) for end in ("", "_low", "_high"))
    assert f"| student | {mean:.4g} [{low:.4g}, {high:.4g}] | 1 |" in text
    assert "95% intervals by bootstrap over 3 prompts" in text
    pairs = re.findall(
        r"^\| (.+) - (.+) \| clip_score\S+ \| .* \| ([\d.]+)% \| ([\d.]+)% \|$", text, re.M
    )
    assert [(a, b) for a, b, *_ in pairs] == [
        (NAMES[i], NAMES[j]) for i in range(4) for j in range(i + 1, 4)
    ]
    first, second = (rows_of(reports.root / name / "images.csv") for name in "ad")
    wins = 0
    for prompt in PROMPTS:
        ours, theirs = (
            [float(row[KEY]) for row in some if row["prompt"] == prompt] for some in (first, second)
        )
        wins += np.mean(ours) > np.mean(theirs)
    assert float(pairs[2][2]) == pytest.approx(100 * wins / 3, abs=0.06)


class Page(HTMLParser):
    """Reads a page, and checks that its elements are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.images: list[tuple[str, bytes]] = []
        self.kinds: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add(tag)
        given = dict(attrs)
        assert not {name for name in given if name.startswith("on") or name == "href"}
        if tag == "img":
            kind, _, data = str(given["src"]).partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            self.images.append((str(given["alt"]), base64.b64decode(data, validate=True)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)


def test_the_page_shows_all_models_side_by_side_without_a_network(reports: Reports) -> None:
    path = reports.root / "d" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "://" not in text
    assert "url(" not in text
    page = Page(path)
    assert not page.open
    assert not page.kinds & {"script", "link", "b", "i", "iframe"}  # names and prompts are text
    assert [text.strip() for text in page.texts["h2"]] == reports.captions
    assert page.texts["small"] == [f"image {place}" for place in range(NUM_IMAGES)]
    assert page.texts["figcaption"] == NAMES * NUM_IMAGES
    assert [alt for alt, _ in page.images] == [text for text in reports.captions for _ in NAMES]
    for place in (0, 5):
        for number, name in enumerate("abcd"):
            content = json.loads((reports.root / name / "report.json").read_text())
            row = rows_of(reports.root / name / "images.csv")[place]
            shown = Image.open(io.BytesIO(page.images[place * len(NAMES) + number][1]))
            with Image.open(Path(content["images"], row["file_name"])) as image:
                difference = np.asarray(shown).astype(int) - np.asarray(image)
            assert np.abs(difference).mean() <= (0 if name != "c" else 3)  # photos are JPEG


def test_reports_are_compared_alone_and_from_another_directory(
    reports: Reports,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ",".join(str(reports.root / name) for name in "abcd")
    for _ in range(2):  # its own files are replaced
        main(["evaluate", "--compare", f"[{names}]", "--output", "all"])
    assert "| student |" in capsys.readouterr().out
    assert rows_of(tmp_path / "all" / "report.csv") == rows_of(reports.root / "d" / "report.csv")
    assert len(Page(tmp_path / "all" / "report.html").images) == len(NAMES) * NUM_IMAGES
    for line, said in (
        (["--compare", "all"], "--compare: 'all' is not a report folder .it compares"),
        (["--compare", str(reports.root / "a"), "--output", str(reports.root)], "--output"),
    ):
        (reports.root / "report.html").write_text("mine")
        with pytest.raises(SystemExit):
            main(["evaluate", *line])
        assert re.search(said, capsys.readouterr().err)


def test_reports_of_earlier_versions_are_compared_without_intervals(
    reports: Reports, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "report.json").write_bytes((reports.root / "a" / "report.json").read_bytes())
    both = f"[{old},{reports.root / 'b'}]"
    main(["evaluate", "--compare", both, "--output", str(tmp_path / "out")])
    first, second = rows_of(tmp_path / "out" / "report.csv")
    assert (first[f"{KEY}_low"], bool(second[f"{KEY}_low"])) == ("", True)
    assert first[KEY]
