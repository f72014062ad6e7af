"""The command `evaluate`: reports, repeats, the cache of references and a full disk."""

import csv
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import clip_protocol
from sid_lsg.metrics.reference import compute_statistics
from sid_lsg.metrics.statistics import Statistics
from tests.helpers import forked
from tests.helpers.evaluations import NUM_IMAGES, PROMPTS, Files, folder_line, refused, report

pytestmark = pytest.mark.usefixtures("cache")


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.reader(file)][1:]


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
