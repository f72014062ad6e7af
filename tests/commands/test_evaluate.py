"""The command `evaluate`: reports of models and folders, interruptions, repeats and errors."""

import csv
import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.export.folder import save_pipeline
from sid_lsg.files.replacing import text_hash
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.metrics.reference import compute_statistics
from sid_lsg.metrics.statistics import Statistics
from sid_lsg.training.module import SiDLSG
from tests.helpers import forked
from tests.helpers.embedders import make_clip, write_inception
from tests.helpers.tables import write_table

PROMPTS = ["a red cat", "two dogs on a log", "something else"]
NUM_IMAGES = 6


class Files:
    """The files that evaluations need."""

    def __init__(self, folder: Path, small_sd: str) -> None:
        self.folder = folder
        module = SiDLSG(small_sd)
        self.generator = folder / "generator"
        save_pipeline(module.teacher, module.generator, self.generator, module.t_init)
        self.clip = make_clip(folder / "clip", Path(small_sd, "tokenizer"))
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(PROMPTS) + "\n")
        self.real = folder / "real"
        self.real.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
        for index, pixels in enumerate(noise):
            Image.fromarray(pixels).save(self.real / f"{index}.png")
        self.inception = write_inception(folder / "inception.pt")

    def line(self, *more: Any, model: Any = None, **options: Any) -> list[str]:
        """Return a command line that evaluates a model."""
        chosen = {
            "model": model or self.generator, "prompts": self.prompts, "reference": self.real,
            "protocol": "clip", "clip": self.clip, "num_images": NUM_IMAGES, "batch_size": 4,
            "accelerator": "cpu", "progress": "false",
        } | options  # fmt: skip
        pairs = [(f"--{name}", str(value)) for name, value in chosen.items() if value is not None]
        return ["evaluate", *(part for pair in pairs for part in pair), *map(str, more)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, small_sd: str) -> Files:
    return Files(tmp_path_factory.mktemp("evaluate"), small_sd)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SID_LSG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.reader(file)][1:]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must end with one error message; return the message."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    return error


KEYS = ("fid", "kid", "precision", "recall", "density", "coverage", "clip_score")


@pytest.mark.slow
def test_evaluating_a_model_writes_report_and_images(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    main(files.line(output=out, name="ours"))
    found = report(out)
    assert list(found["scores"]) == [f"{key}_clip_6" for key in KEYS]
    assert all(np.isfinite(list(found["scores"].values())))
    assert found["seeds"] == "image i: prompt i modulo 3, seed i"
    assert (found["sampler"], found["num_steps"], found["dtype"]) == ("generator", 1, "float32")
    assert found["reference"]["count"] == 9
    assert found["reference"]["source"] == str(files.real)
    assert found["clip"]["prefix"] == "A photo depicts "
    assert len(found["prompts_sha256"]) == 64
    assert found["versions"]["torch"] == torch.__version__
    assert found["seconds_per_image"] > 0
    alignment = found["alignment"]
    assert alignment["images"] == {"generated": 6, "reference": 9}
    assert alignment.keys() >= {"features", "neighbours", "pixels"}

    assert sorted(path.name for path in out.iterdir()) == [
        "alignment.png", "images", "images.csv", "report.csv", "report.html", "report.json",
        "report.md", "samples.png",
    ]  # fmt: skip
    for name in ("alignment.png", "samples.png"):
        Image.open(out / name).verify()
    images = sorted((out / "images").glob("*.png"))
    assert [path.name for path in images] == [f"{i:07d}.png" for i in range(NUM_IMAGES)]
    about = Image.open(images[4]).text  # type: ignore[attr-defined]
    assert (about["prompt"], about["seed"]) == (PROMPTS[1], "4")
    rows = [json.loads(row) for row in (out / "images" / "metadata.jsonl").read_text().splitlines()]
    assert rows[4] == {"file_name": "0000004.png", "text": PROMPTS[1], "seed": 4}

    markdown, printed = (out / "report.md").read_text(), capsys.readouterr().out
    score = f"{found['scores']['fid_clip_6']:.4g}"
    for text in (markdown, printed):
        assert "fid_clip_6" in text
        assert f"| ours | {score} |" in text


@pytest.mark.slow
def test_the_images_score_the_same_as_a_folder(files: Files, tmp_path: Path) -> None:
    main(files.line(output=tmp_path / "a"))
    images = tmp_path / "a" / "images"
    main(
        files.line(
            "--images", images, "--captions", images / "metadata.jsonl", output=tmp_path / "b"
        )[:1]
        + folder_line(files, images, captions=images / "metadata.jsonl", output=tmp_path / "b")
    )
    assert report(tmp_path / "b")["scores"] == report(tmp_path / "a")["scores"]
    assert report(tmp_path / "b")["prompts_sha256"] == report(tmp_path / "a")["prompts_sha256"]


@pytest.mark.slow
def test_the_export_gets_the_scores_of_the_training(
    files: Files, small_sd: str, tmp_path: Path
) -> None:
    """Bitwise equal: the same networks, prompts, seeds, batches and protocol."""
    reference = tmp_path / "reference.safetensors"
    protocol = clip_protocol(CLIPFeatures.from_pretrained(str(files.clip)))
    compute_statistics(sorted(files.real.iterdir()), protocol, "").save(reference)
    scores = f"{{pickscore: {files.clip}, fid_teacher: {reference}}}"
    shared = {"clip": files.clip, "clip_prefix": "see ", "protocol": "clip", "scores": scores,
              "reference": reference, "num_images": NUM_IMAGES, "batch_size": 4}  # fmt: skip
    root = tmp_path / "run"
    options = {"model.teacher": small_sd, "data.prompts": files.prompts, "data.batch_size": 2,
               "data.num_workers": 0, "trainer.max_steps": 2, "trainer.accelerator": "cpu",
               "trainer.default_root_dir": root, "metrics.teacher_steps": 1,
               "progress.refresh_rate": 0}  # fmt: skip
    options |= {f"metrics.{name}": value for name, value in shared.items()}
    main(["fit", *(part for n, v in options.items() for part in (f"--{n}", str(v)))])
    summary = json.loads((root / "summary.json").read_text())

    main(files.line(model=root / "generator", output=root / "report", **shared))
    found = report(root / "report")["scores"]
    assert len(found) == 9
    assert found["pickscore_own_v1_6"] != 0
    assert found["fid_teacher_clip_6"] == pytest.approx(found["fid_clip_6"], rel=1e-9)
    assert {name: summary[name] for name in found} == found

    teacher = {"sampler": "ddim", "num_steps": 1, "guidance": summary["teacher_guidance"]}
    main(files.line(model=small_sd, output=root / "teacher", **teacher, **shared))
    found = report(root / "teacher")["scores"]
    assert {name: summary[f"teacher_{name}"] for name in found} == found


def folder_line(files: Files, images: Path, **options: Any) -> list[str]:
    """Return the options for a folder of images."""
    line = files.line(**({"prompts": None} | options))[1:]
    place = line.index("--model")
    return [*line[:place], "--images", str(images), *line[place + 2 :]]


@pytest.mark.slow
def test_finished_images_are_not_generated_again(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    main(files.line(output=out))
    first, images = report(out), out / "images"
    old = {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    content = (images / "0000005.png").read_bytes()
    (images / "0000005.png").unlink()  # as if interrupted there
    for path in (p for p in out.iterdir() if p.is_file()):
        path.unlink()
    main(files.line(output=out))
    assert report(out)["scores"] == first["scores"]
    assert (images / "0000005.png").read_bytes() == content
    new = {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    assert {name for name in new if new[name] == old[name]} == {f"000000{i}.png" for i in range(4)}

    main(files.line(output=out, num_images=8))  # more images of the same kind
    assert "fid_clip_8" in report(out)["scores"]
    still = {path.name: path.stat().st_mtime_ns for path in images.glob("*.png")}
    assert all(still[f"000000{i}.png"] == old[f"000000{i}.png"] for i in range(4))

    message = refused(capsys, *files.line(output=out, num_steps=2))
    assert "--output" in message
    assert "num_steps is 1, and now 2" in message


@pytest.mark.slow
def test_statistics_are_computed_once(files: Files, tmp_path: Path, cache: Path) -> None:
    images = files.real
    for name in ("a", "b"):
        main(["evaluate", *folder_line(files, images, num_images=9, output=tmp_path / name)])
        (kept,) = (cache / "sid_lsg" / "references").iterdir()
        if name == "a":
            written = kept.stat().st_mtime_ns
    assert kept.stat().st_mtime_ns == written
    scores = report(tmp_path / "b")["scores"]
    assert abs(scores["fid_clip_9"]) < 1e-6  # compared with itself
    assert scores["precision_clip_9"] == scores["recall_clip_9"] == scores["coverage_clip_9"] == 1

    line = folder_line(files, images, num_images=9, reference=kept, output=tmp_path / "c")
    main(["evaluate", *line])  # a file of statistics is also a reference
    assert report(tmp_path / "c")["scores"] == scores


@pytest.mark.slow
def test_statistics_of_a_changed_folder_are_recomputed(
    files: Files, tmp_path: Path, cache: Path
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 40), (index, 9, 9)).save(real / f"{index}.png")
    for count in (1, 2):
        line = folder_line(files, files.real, reference=real, output=tmp_path / "out")
        main(["evaluate", *line])
        assert len(list((cache / "sid_lsg" / "references").iterdir())) == count
        Image.new("RGB", (41, 41)).save(real / "6.png")
    assert report(tmp_path / "out")["reference"]["count"] == 7


@pytest.mark.slow
def test_clean256_uses_a_local_inception(files: Files, tmp_path: Path, cache: Path) -> None:
    options = {"protocol": "clean256", "inception": files.inception, "output": tmp_path / "out"}
    main(files.line(**options))
    found = report(tmp_path / "out")
    assert [f"{key}_clean256_6" for key in KEYS] == list(found["scores"])
    assert found["protocol"]["network"] == "inception-2015-12-05"
    (kept,) = (cache / "sid_lsg" / "references").iterdir()
    assert Statistics.load(kept).about["protocol"]["protocol"] == "clean256"


def test_foreign_images_are_not_taken_for_the_models(
    files: Files, small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "images"
    folder.mkdir(parents=True)
    (folder / "0000000.png").write_bytes(b"a photograph")
    options = {"sampler": "ddim", "num_steps": 1, "guidance": 1, "output": tmp_path / "out"}
    assert "images' holds other files" in refused(capsys, *files.line(model=small_sd, **options))
    assert [path.name for path in folder.iterdir()] == ["0000000.png"]


@pytest.mark.slow
def test_teacher_and_student_are_compared_in_one_table(
    files: Files, small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    options = {"sampler": "ddim", "num_steps": 2, "guidance": 1.5, "output": teacher}
    main(files.line(model=small_sd, name="teacher", **options))
    main(files.line("--compare", str(teacher), output=student, name="student"))
    table = (student / "report.md").read_text()
    assert table.index("| teacher |") < table.index("| student |")
    height, width = (Image.open(p / "samples.png").size[::-1] for p in (teacher, student))
    assert width[0] > height[0] + 60  # two rows of images
    assert report(teacher)["evaluations_per_image"] == 4

    message = refused(
        capsys, *files.line("--compare", f"[{teacher}]", output=student, num_images=8)
    )
    assert "--compare: the report of 'teacher' differs in its num_images (6, here 8)" in message
    assert len([*(student / "images").glob("*.png")]) == 6  # rejected before sampling
    message = refused(capsys, *files.line("--compare", f"[{tmp_path}]", output=student))
    assert "--compare" in message


def test_reports_of_equal_name_are_both_shown(files: Files, tmp_path: Path) -> None:
    options = {"num_images": 2, "reference": None}
    main(files.line(output=tmp_path / "a", **options))
    main(files.line("--compare", tmp_path / "a", output=tmp_path / "b", **options))
    one, two = (Image.open(tmp_path / name / "samples.png").height for name in "ab")
    assert two > one + 60


@pytest.mark.slow
def test_a_reference_with_replaced_images_counts_as_another(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real, old = tmp_path / "real", tmp_path / "old"
    shutil.copytree(files.real, real)
    main(files.line(reference=real, output=old))
    again = files.line("--compare", f"[{old}]", reference=real, output=tmp_path / "new")
    (real / "0.png").touch()  # the image is unchanged
    main(again)

    Image.new("RGB", (64, 64)).save(real / "0.png")
    assert "the report of 'generator' differs in its reference" in refused(capsys, *again)

    content = report(old)
    del content["reference"]["files"]  # as earlier versions wrote it
    (old / "report.json").write_text(json.dumps(content))
    main(again)


@pytest.mark.slow
def test_two_processes_report_as_one(files: Files, tmp_path: Path) -> None:
    """Six images in three batches of two."""
    main(files.line(output=tmp_path / "one", batch_size=2))
    line = files.line("--devices", "2", output=tmp_path / "two", batch_size=2)
    said = forked.all_end_well(main, [([line], rank) for rank in forked.ranks(2)], tmp_path)
    one, two = (report(tmp_path / name) for name in ("one", "two"))
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-5)
    ones, twos = (read_table(tmp_path / name / "images.csv") for name in ("one", "two"))
    for ours, theirs in zip(ones, twos, strict=True):
        assert ours[:2] == theirs[:2]  # the image and its prompt
        assert [*map(float, theirs[2:])] == pytest.approx([*map(float, ours[2:])], rel=1e-3)
    for path in (tmp_path / "one" / "images").glob("*.png"):
        ours, theirs = (
            np.asarray(Image.open(tmp_path / name / "images" / path.name)).astype(int)
            for name in ("one", "two")
        )
        assert np.abs(ours - theirs).max() <= 1
    assert said.count("Report and images") == 1


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": None}, "--prompts is missing"),
        ({"prompts": "{tmp}/none.txt"}, "--prompts"),
        ({"model": "{tmp}/none"}, "--model: .*none"),
        ({"reference": "{tmp}/none"}, "--reference: .*none"),
        ({"reference": "{tmp}"}, "--reference: .*contains no image"),
        ({"protocol": "clean256", "inception": "{tmp}/none.pt"}, "--inception"),
        ({"protocol": "clean256"}, "--inception: the protocol needs the Inception"),
        ({"clip": "null"}, "--clip is missing"),
        ({"clip": "{tmp}/none"}, "--clip: could not load"),
        ({"num_images": "1"}, "--num_images must be at least 2"),
        ({"batch_size": "0"}, "--batch_size must be at least 1"),
        ({"num_steps": "0"}, "--num_steps must be at least 1"),
        ({"sampler": "ddim", "num_steps": "9", "guidance": "0.5"}, "--guidance must be .* 1"),
        ({"protocol": "fid"}, "--protocol"),
        ({"output": "{tmp}/file/report"}, "--output: cannot write"),
        ({"devices": "0"}, "--devices"),
        ({"scores": "{cmmd: {tmp}/none}"}, "--scores.cmmd: could not load"),
        ({"scores": "[pickscores]"}, "--scores: there is no score 'pickscores'"),
        ({"scores": "{fid_teacher: {tmp}/none}"}, "--scores.fid_teacher: .*none"),
        ({"captions": "{tmp}/none.txt"}, "--captions needs --images"),
    ],
)
def test_bad_options_are_named(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str | None],
    said: str,
) -> None:
    (tmp_path / "file").touch()
    filled = {
        name: value and value.replace("{tmp}", str(tmp_path)) for name, value in options.items()
    }
    message = refused(capsys, *files.line(**({"output": tmp_path / "out"} | filled)))
    assert re.search(said, message), message
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    "option",
    [{"sampler": "ddim"}, {"num_steps": 4}, {"guidance": 0}, {"resolution": 64},
     {"dtype": "float16"}],
)  # fmt: skip
def test_sampling_options_are_rejected_for_a_folder(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: dict[str, Any]
) -> None:
    line = folder_line(files, files.real, output=tmp_path / "out", **option)
    assert f"--{next(iter(option))} needs --model" in refused(capsys, "evaluate", *line)


def test_column_needs_captions(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = folder_line(files, files.real, output=tmp_path / "out", column="text")
    assert "--column needs --captions, which is not given" in refused(capsys, "evaluate", *line)


def test_foreign_files_are_not_replaced(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notes"
    out.mkdir()
    (out / "report.md").write_text("mine")
    message = refused(capsys, "evaluate", *folder_line(files, files.real, output=out))
    assert "--output" in message
    assert "contains a 'report.md' that no evaluation wrote" in message
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("report.md", "mine")]
    message = refused(capsys, "evaluate", *folder_line(files, files.real, output=files.real))
    assert "is the folder of --images" in message


def test_fewer_images_than_the_protocol_needs_are_rejected(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = folder_line(files, files.real, num_images=None, output=out)
    message = refused(capsys, "evaluate", *line)
    assert "contains 9 images, but 10000 are needed by the protocol clip" in message
    assert "--num_images 9" in message
    assert not (out / "report.json").exists()


def test_fewer_images_than_processes_are_rejected(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda: (0, 7))
    message = refused(capsys, *files.line(output=tmp_path / "out"))
    assert "--num_images: 6 images for 7 processes" in message
    assert not (tmp_path / "out" / "images").exists()  # rejected before sampling


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 image for 1 process"), (3, "all of 3 images have the same features")]
)
def test_an_unusable_reference_is_rejected(
    files: Files,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    said: str,
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for index in range(count):
        Image.new("RGB", (40, 40)).save(real / f"{index}.png")
    message = refused(capsys, *files.line(reference=real, output=tmp_path / "out"))
    assert f"--reference: {said}" in message
    assert not cache.exists()  # nothing is cached
    assert not (tmp_path / "out" / "images").exists()


def test_a_wrong_number_of_captions_is_rejected(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = folder_line(files, files.real, captions=files.prompts, output=tmp_path / "out")
    message = refused(capsys, "evaluate", *line)
    assert "holds 3 captions" in message
    assert "9 images" in message


def test_unreadable_images_are_listed(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in files.real.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    (bad / "3.png").write_bytes((bad / "3.png").read_bytes()[:500])
    (bad / "7.png").write_text("no image")
    for option in ("images", "reference"):
        images, reference = (bad, files.real) if option == "images" else (files.real, bad)
        line = folder_line(files, images, reference=reference, num_images=9, output=tmp_path / "o")
        message = refused(capsys, "evaluate", *line)
        assert f"--{option}: 2 of 9 images cannot be read" in message
        assert "3.png" in message
        assert "7.png" in message
        assert "5.png" not in message


@pytest.mark.slow
def test_statistics_of_another_protocol_are_rejected(
    files: Files, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(files.line(output=tmp_path / "a"))
    (kept,) = (cache / "sid_lsg" / "references").iterdir()
    message = refused(capsys, *files.line(reference=kept, protocol="fast", output=tmp_path / "b"))
    assert "--reference" in message
    assert "its protocol is 'clip', but that of `fast`" in message


COLOURS = ["red", "lime", "blue", "black", "white", "gray", "navy", "pink"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write a folder of plain images, whose captions are their colours."""
    (tmp_path / "pairs").mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pairs" / f"{number}.png")
    return tmp_path / "pairs"


@pytest.mark.parametrize(
    ("kind", "column"),
    [("jsonl", "image"), ("csv", "filename"), ("tsv", "img_path"), ("parquet", "file_name")],
)
def test_captions_are_paired_by_any_column_of_files(
    files: Files, pairs: Path, tmp_path: Path, kind: str, column: str
) -> None:
    rows = [[f"{n}.png", colour] for n, colour in enumerate(COLOURS)]
    table = write_table(tmp_path / f"c.{kind}", [column, "text"], rows[::-1])
    options = {"captions": table, "reference": None, "num_images": 8, "output": tmp_path / "out"}
    main(["evaluate", *folder_line(files, pairs, **options)])
    found = report(tmp_path / "out")
    assert found["prompts_sha256"] == text_hash(COLOURS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("c.csv", "image,text\n" + "x.png,a\n" * 8, "no caption for 8 of 8 images"),
        ("c.csv", "file_name,text\n0.png,a cat, asleep\n", "line 2: found 3 fields"),
        ("c.csv", "file_name,text\n0.png\n", "line 2: found 1 fields"),
        ("c.jsonl", '{"image": "0.png", "text": ["a", "b"]}\n', "no caption for 7 of 8 images"),
        ("c.jsonl", '{"image": "0.png", "text": 3}\n', "line 1: expected a string"),
        ("c.txt", "a\rb\rc\rd\re\rf\rg\rh", "line 1: a carriage return"),
        ("c.txt", "a\n" * 9, "holds 9 captions and .* 8 images"),
    ],
)
def test_captions_that_belong_to_no_image_end_the_command(
    files: Files,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    said: str,
) -> None:
    (tmp_path / name).write_text(content)
    options = {"captions": tmp_path / name, "reference": None, "num_images": 8}
    line = folder_line(files, pairs, output=tmp_path / "out", **options)
    message = refused(capsys, "evaluate", *line)
    assert re.search(f"error: --captions: .*{said}", message), message


def test_hidden_images_are_neither_scored_nor_a_reference(
    files: Files, pairs: Path, tmp_path: Path
) -> None:
    (pairs / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (64, 64)).save(pairs / ".ipynb_checkpoints" / "0-checkpoint.png")
    (pairs / "._0.png").write_bytes(b"\0\5\x16\7")
    (pairs / "movie.gif").touch()
    options = {"reference": pairs, "num_images": 8, "output": tmp_path / "out"}
    main(["evaluate", *folder_line(files, pairs, **options)])
    found = report(tmp_path / "out")
    assert (found["num_images"], found["reference"]["count"]) == (8, 8)


def evaluate_on_a_full_disk(line: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    main(line)


@pytest.mark.slow
def test_a_full_disk_ends_with_one_message_and_keeps_finished_files(
    files: Files, tmp_path: Path
) -> None:
    """Simulate the full disk with a file size limit; the first large file fails."""

    log = tmp_path / "log"
    process = forked.start(evaluate_on_a_full_disk, files.line(output=tmp_path / "out"), log=log)
    process.join(300)
    assert process.exitcode == 2, log.read_text()[-3000:]
    assert log.read_text().splitlines()[-1].startswith("error: --output: cannot write to")
    assert "Traceback" not in log.read_text()
    out = tmp_path / "out"
    assert len(list((out / "images").glob("*.png"))) == NUM_IMAGES  # the 64-pixel images fitted
    assert not (out / "report.json").exists()
    assert list(out.rglob("*.tmp")) == []
    main(files.line(output=out))  # without the limit
    assert (out / "report.json").exists()
