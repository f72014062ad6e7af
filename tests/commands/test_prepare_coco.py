"""Convert COCO's files to a caption list and reference statistics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.commands.prepare_coco import official_order
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.protocol import clean256, clip_protocol
from sid_lsg.metrics.reference import compute_statistics
from sid_lsg.metrics.statistics import Statistics
from tests.helpers.embedders import make_clip, write_inception

COUNT = 7


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Write seven images with three captions each in COCO's layout, and one without captions."""
    folder = tmp_path / "coco"
    (folder / "val2014").mkdir(parents=True)
    random = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(COUNT + 1):
        name = f"COCO_val2014_{index:012d}.jpg"
        images.append({"id": 100 - index, "file_name": name, "height": 40, "width": 60})
        pixels = random.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "val2014" / name)
        if index < COUNT:
            texts = [f" image {index},\n caption {number}. " for number in range(3)]
            annotations += [
                {"id": 10 * index + number, "image_id": 100 - index, "caption": text}
                for number, text in enumerate(texts)
            ]
    content = {"images": images, "annotations": annotations[::-1]}
    (folder / "captions.json").write_text(json.dumps(content))
    return folder


def prepare(coco: Path, output: Path, *more: str) -> None:
    main(
        ["prepare-coco", "--annotations", str(coco / "captions.json"), "--output", str(output),
         "--num_prompts", "5", "--accelerator", "cpu", "--progress", "false", *more]
    )  # fmt: skip


def test_each_image_has_one_caption_selected_by_the_seed(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        prepare(coco, Path("~", name), "--seed", seed)
    rows = [json.loads(row) for row in (tmp_path / "a" / "captions.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [
        f"COCO_val2014_{i:012d}.jpg" for i in range(COUNT)
    ]
    numbers = set()
    for index, row in enumerate(rows):
        number = row["caption"].removesuffix(".").rsplit(" ", 1)[1]
        assert row["caption"] == f"image {index}, caption {number}."  # on one line
        numbers.add(number)
    assert len(numbers) > 1  # not always the first
    prompts = (tmp_path / "a" / "prompts.txt").read_text().splitlines()
    assert len(prompts) == len(set(prompts)) == 5
    assert set(prompts) < {row["caption"] for row in rows}
    assert (tmp_path / "b" / "prompts.txt").read_text().splitlines() == prompts
    assert (tmp_path / "c" / "prompts.txt").read_text().splitlines() != prompts
    assert not list((tmp_path / "a").glob("*.safetensors"))  # no --images option


def official_list(folder: Path, annotations: list[dict[str, Any]], count: int) -> list[str]:
    """Follow the official code: a text file per image, then its sampler, written out."""
    folder.mkdir()
    for entry in annotations:  # each overwrites the text of its image
        (folder / f"COCO_val2014_{100 - entry['image_id']:012d}.txt").write_text(
            entry["caption"].lower()
        )
    files = sorted(folder.iterdir())
    random = np.random.RandomState(0)
    order = np.arange(len(files))
    random.shuffle(order)
    window, found = int(np.rint(len(files) * 0.5)), []
    for index in range(count):
        found.append(" ".join(files[order[index]].read_text().split()))
        other = (index - random.randint(window)) % len(files)
        order[index], order[other] = order[other], order[index]
    return found


def test_the_official_list_is_made_of_the_annotations(coco: Path, tmp_path: Path) -> None:
    prepare(coco, tmp_path / "o", "--captions", "official", "--num_prompts", "7")
    annotations = json.loads((coco / "captions.json").read_text())["annotations"]
    expected = official_list(tmp_path / "texts", annotations, 7)
    assert (tmp_path / "o" / "prompts.txt").read_text().splitlines() == expected
    assert expected[0].endswith("caption 0.")  # the last in this file


def test_the_first_10000_official_images_are_a_shuffle_with_seed_0() -> None:
    places = official_order(40_504, 10_000)  # of val2014
    assert places == np.random.RandomState(0).permutation(40_504)[:10_000].tolist()
    assert len({*official_order(40_504, 20_252)}) == 20_252
    assert len({*official_order(40_504, 30_000)}) < 30_000  # then images return


def test_references_of_scores_are_found_by_an_evaluation(
    coco: Path, tmp_path: Path, tiny_sd: str
) -> None:
    clip = make_clip(tmp_path / "clip", Path(tiny_sd, "tokenizer"))
    images = str(coco / "val2014")
    prepare(coco, tmp_path / "o", "--images", images, "--protocol", "clip", "--clip", str(clip),
            "--scores", f"{{cmmd: {clip}}}")  # fmt: skip
    names = ("reference-clip.safetensors", "reference-own_clip336.safetensors")
    assert sorted(path.name for path in (tmp_path / "o").glob("*.safetensors")) == sorted(names)
    main(["evaluate", "--images", images, "--reference", str(tmp_path / "o"), "--protocol", "clip",
          "--clip", str(clip), "--scores", f"{{cmmd: {clip}}}", "--num_images", str(COUNT),
          "--output", str(tmp_path / "report"), "--accelerator", "cpu", "--progress", "false",
          ])  # fmt: skip
    scores = json.loads((tmp_path / "report" / "report.json").read_text())["scores"]
    assert scores[f"cmmd_own_clip336_{COUNT}"] == pytest.approx(0.004, abs=0.05)
    assert scores[f"fid_clip_{COUNT}"] == pytest.approx(0.0, abs=0.5)


def test_the_reference_covers_all_images(coco: Path, tmp_path: Path) -> None:
    inception = write_inception(tmp_path / "inception.pt")
    images = coco / "val2014"
    prepare(coco, tmp_path / "o", "--images", str(images), "--inception", str(inception))
    found = Statistics.load(tmp_path / "o" / "reference-clean256.safetensors")
    protocol = clean256(InceptionFeatures.from_file(str(inception)))
    found.check_protocol(protocol, "", "")
    files = sorted(images.iterdir())[:COUNT]
    expected = compute_statistics(files, protocol, "images", batch_size=2)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-4, atol=1e-9)
    assert found.count == COUNT
    assert found.about["source"] == "7 images of captions.json"


def test_the_device_memory_is_freed(coco: Path) -> None:
    clip = CLIPFeatures.from_pretrained("package:demo/fashion/clip")
    where: list[Any] = []

    def to(device: Any) -> Any:
        where.append(device)
        return torch.nn.Module.to(clip, device)

    clip.to = to  # type: ignore[method-assign]
    files = sorted((coco / "val2014").iterdir())[:COUNT]
    compute_statistics(files, clip_protocol(clip), "images", device="cpu:0")
    assert where == ["cpu:0", "cpu"]


def test_the_output_works_in_training_and_evaluation(coco: Path, tmp_path: Path) -> None:
    """Under the CLIP protocol, the images themselves get perfect scores."""
    clip = "package:demo/fashion/clip"
    prepare(coco, tmp_path / "o", "--images", str(coco / "val2014"), "--protocol", "clip",
            "--clip", clip)  # fmt: skip
    (coco / "val2014" / f"COCO_val2014_{COUNT:012d}.jpg").unlink()  # the image without captions
    main(
        ["evaluate", "--images", str(coco / "val2014"), "--num_images", str(COUNT),
         "--captions", str(tmp_path / "o" / "captions.jsonl"), "--protocol", "clip",
         "--clip", clip, "--reference", str(tmp_path / "o" / "reference-clip.safetensors"),
         "--output", str(tmp_path / "report"), "--accelerator", "cpu", "--progress", "false"]
    )  # fmt: skip
    scores = json.loads((tmp_path / "report" / "report.json").read_text())["scores"]
    assert abs(scores["fid_clip_7"]) < 1e-4
    assert "clip_score_clip_7" in scores
    stored = Statistics.load(tmp_path / "o" / "reference-clip.safetensors")
    stored.check_protocol(clip_protocol(CLIPFeatures.from_pretrained(clip)), "", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--num_prompts", "8"],
            "--num_prompts: 8, but there are 7 images with captions. Give 1",
        ),
        (["--num_prompts", "0"], "--num_prompts: 0, but there are 7"),
        (["--annotations", "none.json"], "--annotations: cannot read 'none.json'"),
        (["--images", "none"], "--images: 'none' lacks 7 of 7 images, the first of them 'COCO_val"),
        (["--protocol", "clip", "--images", "{val}"], "--clip is missing"),
        (["--output", "{file}/x"], "--output: cannot write"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--accelerator", "foo"], "--accelerator foo"),
        (["--images", "{val}", "--inception", "none.pt"], "--inception"),
    ],
)
def test_bad_input_is_named(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    fill = {"{val}": str(coco / "val2014"), "{file}": str(coco / "captions.json")}
    for name, value in fill.items():
        options = [option.replace(name, value) for option in options]
    with pytest.raises(SystemExit) as end:
        prepare(coco, tmp_path / "o", *options)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()  # rejected before anything is written


GOOD = {"id": 1, "image_id": 5, "caption": "a"}
IMAGE = {"id": 5, "file_name": "a.jpg"}


@pytest.mark.parametrize(
    ("images", "annotations", "said"),
    [
        ([IMAGE], [GOOD, GOOD | {"id": 9, "caption": None}], "entry 2 (id 9) of 'annotations'"),
        ([IMAGE], [GOOD | {"caption": None}], "its caption is None"),
        ([IMAGE], [GOOD | {"caption": 7}], "its caption is 7"),
        ([IMAGE], [GOOD | {"caption": ["a", "b"]}], "its caption is ['a', 'b']"),
        ([IMAGE], [{"id": 3, "image_id": 5}], "entry 1 (id 3) of 'annotations' in"),
        ([IMAGE], [{"id": 3, "image_id": 5}], "its caption is missing"),
        ([IMAGE], [GOOD, {"image_id": 5, "caption": "b"}], "entry 2 of 'annotations' in"),
        ([IMAGE], [GOOD, {"image_id": 5, "caption": "b"}], "its id is missing"),
        ([IMAGE], [GOOD, GOOD | {"id": "2"}], "its id is '2'"),
        ([IMAGE], [{"id": 3, "caption": "b"}], "its image_id is missing"),
        ([IMAGE], [GOOD | {"image_id": 6}], "the annotation with id 1 in"),
        ([IMAGE], [None], "entry 1 of 'annotations'"),
        ([{"id": 5}], [GOOD], "entry 1 (id 5) of 'images' in"),
        ([{"file_name": "a.jpg"}], [GOOD], "its id is missing"),
        ([IMAGE, IMAGE], [GOOD], "gives 1 images the id of another one"),
    ],
)
def test_wrong_entries_are_named(
    coco: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: list[Any],
    annotations: list[Any],
    said: str,
) -> None:
    content = {"images": images, "annotations": annotations}
    (coco / "captions.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as end:
        prepare(coco, tmp_path / "o")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --annotations: ")
    assert said in error
    assert not (tmp_path / "o").exists()


def test_a_byte_order_mark_is_accepted(coco: Path, tmp_path: Path) -> None:
    content = (coco / "captions.json").read_bytes()
    (coco / "captions.json").write_bytes(b"\xef\xbb\xbf" + content)
    prepare(coco, tmp_path / "o")
    assert len((tmp_path / "o" / "prompts.txt").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": [], "annotations": [{"id": 1}]}',
        '{"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": null}]}',
    ],
)
def test_other_json_files_are_rejected(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (coco / "captions.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        prepare(coco, tmp_path / "o")
    assert end.value.code == 2
    assert "--annotations" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
