"""`evaluate --export`: images as the official scorers of benchmarks read them."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.export.folder import save_pipeline
from sid_lsg.training.module import SiDLSG

PROMPTS = ["a red cat", "two dogs on a log"]
GENEVAL = [
    {"tag": "counting", "include": [{"class": "cat", "count": i + 1}], "prompt": prompt}
    for i, prompt in enumerate(PROMPTS)
]


def geneval(folder: Path) -> list[Path]:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, GENEVAL)))
    return [path]


def dpg(folder: Path) -> list[Path]:
    for name, prompt in zip(("1", "256"), PROMPTS, strict=True):
        (folder / f"{name}.txt").write_text(f"{prompt}\n")
    return [folder / "1.txt", folder / "256.txt"]


def hpsv2(folder: Path) -> list[Path]:
    for style in ("anime", "concept-art"):
        (folder / f"{style}.json").write_text(json.dumps(PROMPTS))
    return [folder / "anime.json", folder / "concept-art.json"]


def t2i_compbench(folder: Path) -> list[Path]:
    (folder / "color_val.txt").write_text("".join(f"{prompt}\tseen\n" for prompt in PROMPTS))
    return [folder / "color_val.txt"]


FILES: dict[str, Callable[[Path], list[Path]]] = {
    "geneval": geneval, "dpg": dpg, "hpsv2": hpsv2, "t2i-compbench": t2i_compbench,
}  # fmt: skip
LAYOUTS = {
    "geneval": [
        f"{i:05d}/{name}"
        for i in range(2)
        for name in ("metadata.jsonl", *(f"samples/{k:05d}.png" for k in range(4)))
    ],
    "dpg": ["1.png", "256.png"],
    "hpsv2": [f"{s}/{i:05d}.jpg" for s in ("anime", "concept-art") for i in range(2)],
    "t2i-compbench": [
        f"color_val/samples/{prompt}_{10 * i + k:06d}.png"
        for i, prompt in enumerate(PROMPTS)
        for k in range(10)
    ],
}
# The image at a place of a layout: its number, and the part of the file that shows it.
SHOWN = {
    "geneval": ("00001/samples/00002.png", 6),
    "dpg": ("256.png", 6),
    "hpsv2": ("concept-art/00001.jpg", 3),
    "t2i-compbench": ("color_val/samples/two dogs on a log_000017.png", 17),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, small_sd: str) -> dict[str, list[str]]:
    """Return the options of a generator and of a teacher."""
    folder = tmp_path_factory.mktemp("models") / "generator"
    module = SiDLSG(small_sd)
    save_pipeline(module.teacher, module.generator, folder, module.t_init)
    teacher = ["--model", small_sd, "--sampler", "ddim", "--num_steps", "1", "--guidance", "1"]
    return {"generator": ["--model", str(folder)], "teacher": teacher}


def line(benchmark: str, prompts: list[Path], output: Path, *more: Any) -> list[str]:
    given = f"[{','.join(map(str, prompts))}]"
    return [
        "evaluate", "--export", benchmark, "--prompts", given, "--output", str(output),
        "--batch_size", "4", "--accelerator", "cpu", "--progress", "false", *map(str, more),
    ]  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("benchmark", "model"),
    [*((name, "generator") for name in FILES), ("geneval", "teacher")],
)
@pytest.mark.slow
def test_images_are_where_the_scorer_reads_them(
    tmp_path: Path,
    models: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
    benchmark: str,
    model: str,
) -> None:
    out = tmp_path / "out"
    command = line(benchmark, FILES[benchmark](tmp_path), out, *models[model])
    main(command)
    root = out / benchmark
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(LAYOUTS[benchmark])
    assert str(root) in capsys.readouterr().out  # the scorer's command

    place, number = SHOWN[benchmark]
    image = out / "images" / f"{number:07d}.png"
    about = Image.open(image).text  # type: ignore[attr-defined]
    assert (about["prompt"], about["seed"]) == (PROMPTS[1], str(number))
    shown, expected = pixels(root / place), pixels(image)
    if benchmark == "dpg":
        assert shown.shape == (128, 128, 3)
        shown = shown[64:, :64]  # the third of four
    others = [pixels(path) for path in sorted((out / "images").glob("*.png"))]
    distances = [np.abs(shown - other).mean() for other in others]
    assert np.argmin(distances) == number
    assert distances[number] == 0 or benchmark == "hpsv2"  # JPEG
    if benchmark == "geneval":
        for i, row in enumerate(GENEVAL):
            assert json.loads((root / f"{i:05d}" / "metadata.jsonl").read_text()) == row

    os.remove(image)  # as if interrupted there
    for path in root.rglob("*"):
        if path.is_file():
            path.unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    main(command)
    assert (pixels(image) == expected).all()
    assert sorted(
        p.relative_to(root).as_posix() for p in root.rglob("*.*") if p.is_file()
    ) == sorted(LAYOUTS[benchmark])
    again = {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    remade = {name for name in again if again[name] != kept.get(name)}
    batch = range(number // 4 * 4, number // 4 * 4 + 4)
    assert remade <= {f"{i:07d}.png" for i in batch}


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "said"),
    [
        ("geneval", "p.txt", "a cat\n", "--prompts: .*p.txt holds no prompt.*GenEval's"),
        ("geneval", "p.jsonl", '{"prompt": "a cat"}\n', "prompt 1: it has no 'prompt' and 'tag'"),
        ("geneval", "p.jsonl", "{\n", "p.jsonl, line 1: not JSON.*GenEval's"),
        ("dpg", "p.txt", "a cat\na dog\n", "p.txt holds 2 lines.*dpg_bench/prompts"),
        ("dpg", "p.1.txt", "a cat\n", "p.1.txt has a dot in its name"),
        ("dpg", "p.csv", "text\na cat\n", "p.csv holds no prompt"),
        ("hpsv2", "anime.json", '{"a": 1}', "anime.json is not a list of texts.*HPSv2's lists"),
        ("hpsv2", "anime.json", "a cat", "anime.json is not JSON"),
        ("t2i-compbench", "c.txt", "a/c\n", "prompt 1: 'a/c' cannot be part of a file's name"),
        ("t2i-compbench", "c.txt", "a cat\n" + 50 * "a cat " + "\n", "prompt 2: .* is too long"),
        ("t2i-compbench", "c.txt", "\n", "c.txt holds no prompt"),
        ("t2i-compbench", None, None, "--prompts: there is no file"),
    ],
)
def test_other_files_of_prompts_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    benchmark: str,
    name: str | None,
    content: str | None,
    said: str,
) -> None:
    path = tmp_path / (name or "none.txt")
    if content is not None:
        path.write_text(content)
    refused(line(benchmark, [path], tmp_path / "out", "--model", tmp_path), said, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reference", "photos"], "--reference has no effect with --export"),
        (["--num_images", "8"], "--num_images has no effect with --export"),
        (["--compare", "a"], "--compare has no effect with --export"),
        (["--images", "photos"], "--images has no effect with --export"),
        (["--model", "null"], "--export geneval needs --model"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--export", "mine"], "--export"),
    ],
)
def test_options_of_scores_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    prompts = geneval(tmp_path)
    refused(line("geneval", prompts, tmp_path / "out", "--model", "m", *more), said, capsys)
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_ours_are_kept(
    tmp_path: Path, models: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "out" / "geneval" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    command = line("geneval", geneval(tmp_path), tmp_path / "out", *models["generator"])
    refused(command, "--output: .*out/geneval' exists", capsys)
    assert mine.read_text() == "mine"


def refused(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert re.search(said, error, re.DOTALL), error
