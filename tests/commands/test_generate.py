"""The command `generate`: equal prompts and seeds give equal images in every call."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from sid_lsg.cli import main
from sid_lsg.commands.generate import parse_seeds
from sid_lsg.export.folder import save_pipeline
from sid_lsg.images.pixels import to_pil
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers import forked

LINES = ["a red cat", "", "two dogs on a log", "   ", "a boat", "a green tree", "rain", "snow"]
SEEDS_OF_LINES = [0, 2, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def model(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("generate") / "generator"
    teacher = StableDiffusion.from_pretrained(small_sd)
    save_pipeline(teacher, teacher.network, folder, 600)
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def line(source: str, output: Path, **options: Any) -> list[str]:
    given = {"model": source, "output": output, "progress": "false", "accelerator": "cpu"} | options
    return ["generate", *(f"--{name}={value}" for name, value in given.items())]


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    return error


# ---------------------------------------------------------------------- output


def test_line_i_gets_seed_i_and_blank_lines_count(
    model: str, prompts: Path, tmp_path: Path, small_sd: str
) -> None:
    main(line(model, tmp_path / "out", prompts=prompts))
    made = images(tmp_path / "out")
    assert list(made) == [f"{seed:06d}.png" for seed in SEEDS_OF_LINES]
    teacher = StableDiffusion.from_pretrained(small_sd)
    for seed in SEEDS_OF_LINES:
        path = tmp_path / "out" / f"{seed:06d}.png"
        about = Image.open(path).text  # type: ignore[attr-defined]
        assert (about["prompt"], about["seed"]) == (LINES[seed], str(seed))
        assert about["model"] == model
        latents = teacher.generate(teacher.network, [LINES[seed]], [seed], 600, 1)
        (expected,) = to_pil(teacher.decode(latents))
        assert np.abs(pixels(path).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    rows = [json.loads(row) for row in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert rows[1] == {"file_name": "000002.png", "text": "two dogs on a log", "seed": 2}


def test_every_prompt_is_sampled_with_every_seed(
    model: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    main(line(model, Path("~/out"), prompts=prompts, seeds="3,7-8"))
    assert list(images(tmp_path / "out")) == [
        f"{row:06d}-{seed}.png" for row in SEEDS_OF_LINES for seed in (3, 7, 8)
    ]
    main(line(model, tmp_path / "one", prompt=LINES[2], seeds="7"))
    one = tmp_path / "one" / "000000-7.png"
    assert one.read_bytes() == (tmp_path / "out" / "000002-7.png").read_bytes()
    sheet = Image.open(tmp_path / "out" / "contact_sheet.png")
    assert sheet.width > 3 * 160 > 2 * sheet.height / len(LINES)  # one row per prompt


@pytest.mark.slow
def test_batch_size_and_processes_do_not_change_images(
    model: str, prompts: Path, tmp_path: Path
) -> None:
    options = {"prompts": prompts, "seeds": "0-2"}
    for size in (1, 3, 16):
        main(line(model, tmp_path / f"{size}", batch_size=size, **options))
    two = line(model, tmp_path / "two", batch_size=4, devices=2, **options)
    forked.all_end_well(forked.launch, [([two], {})], tmp_path)
    expected = images(tmp_path / "1")
    assert len(expected) == 18
    assert len(set(expected.values())) == 18
    for name in ("3", "16", "two"):
        assert images(tmp_path / name) == expected
    reverse = tmp_path / "reverse.txt"
    reverse.write_text("\n".join(LINES[::-1]))
    main(line(model, tmp_path / "reverse", prompts=reverse, seeds="0-2"))
    last = len(LINES) - 1
    for row in SEEDS_OF_LINES:
        name = f"{last - row:06d}-1.png"
        assert (tmp_path / "reverse" / name).read_bytes() == expected[f"{row:06d}-1.png"]


def test_inexact_batches_differ_by_at_most_one_grey_level(
    model: str, prompts: Path, tmp_path: Path
) -> None:
    main(line(model, tmp_path / "a", prompts=prompts))
    main(line(model, tmp_path / "b", prompts=prompts, exact="false"))
    for name in images(tmp_path / "a"):
        ours, theirs = (pixels(tmp_path / of / name).astype(int) for of in "ab")
        assert np.abs(ours - theirs).max() <= 1


def test_an_interrupted_command_continues(model: str, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(line(model, out, prompts=prompts, batch_size=2))
    expected = images(out)
    kept = out / "000002.png"
    stamp = kept.stat().st_mtime_ns
    (out / "000004.png").unlink()
    (out / ".000005.png.1.tmp").write_bytes(b"half a picture")
    (out / "contact_sheet.png").unlink()
    main(line(model, out, prompts=prompts, batch_size=2))
    assert images(out) == expected
    assert kept.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in out.iterdir()) == [
        *sorted(expected), "contact_sheet.png", "images.json", "metadata.jsonl",
    ]  # fmt: skip


def test_the_archive_has_the_same_pixels(model: str, prompts: Path, tmp_path: Path) -> None:
    main(line(model, tmp_path / "out", prompts=prompts, npz="true"))
    with np.load(tmp_path / "out" / "images.npz", allow_pickle=False) as archive:
        assert archive["seeds"].tolist() == SEEDS_OF_LINES
        assert archive["prompts"].tolist() == [LINES[seed] for seed in SEEDS_OF_LINES]
        for picture, name in zip(archive["images"], images(tmp_path / "out"), strict=True):
            assert np.array_equal(picture, pixels(tmp_path / "out" / name))


def test_a_truncated_prompt_warns(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="too long: the model does not see '.*the very End'"):
        main(line(model, tmp_path / "out", prompt="a cat and " * 40 + "the very End"))


# ---------------------------------------------------------------------- models


@pytest.mark.slow
def test_checkpoint_run_and_export_give_the_same_images(
    small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, run = tmp_path / "prompts.txt", tmp_path / "run"
    texts.write_text("\n".join(f"a {i} b" for i in range(30)))
    options = ["--optimizer_generator.lr=0.01", "--num_steps=2", "--t_init=500"]
    main([
        "fit", f"--model.teacher={small_sd}", *(o.replace("--", "--model.") for o in options),
        f"--data.prompts={texts}", "--data.batch_size=2", "--data.num_heldout=4",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--metrics.num_images=2",
        "--metrics.clip=null", "--image_grid.num_images=2", "--health.every_n_images=1000",
        f"--trainer.default_root_dir={run}",
    ])  # fmt: skip
    capsys.readouterr()
    wanted: dict[str, Any] = {"prompt": "a 3 b", "seeds": "0-3"}
    main(line(str(run / "checkpoints" / "last.ckpt"), tmp_path / "a", **wanted))
    main(line(str(run), tmp_path / "b", **wanted))
    main(line(str(run / "generator"), tmp_path / "c", num_steps=2, **wanted))
    main(line(small_sd, tmp_path / "d", num_steps=2, guidance=1, sampler="ddim", **wanted))
    kept = [[pixels(path) for path in sorted((tmp_path / of).glob("0*"))] for of in "abcd"]
    assert len(kept[0]) == 4
    assert np.array_equal(kept[0], kept[1])
    assert np.array_equal(kept[0], kept[2])
    assert not np.array_equal(kept[0], kept[3])
    about = json.loads((tmp_path / "a" / "images.json").read_text())
    assert (about["sampler"], about["num_steps"], about["t_init"]) == ("generator", 2, 500)

    message = refused(capsys, *line(str(run), tmp_path / "e", sampler="ddim", **wanted))
    assert "--sampler must be auto or generator" in message
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:-900])
    message = refused(capsys, *line(str(damaged), tmp_path / "e", **wanted))
    assert "--model: " in message
    assert "is truncated or corrupted" in message


def test_any_diffusers_model_can_be_compared(small_sd: str, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"prompt": "a cat", "num_steps": 1, "guidance": 0}
    main(line(small_sd, tmp_path / "a", **wanted))
    about = json.loads((tmp_path / "a" / "images.json").read_text())
    assert about["sampler"] == "pipeline"
    assert list(images(tmp_path / "a")) == ["000000-0.png"]


# ---------------------------------------------------------------------- refusals


def overflowing(model: str, folder: Path) -> str:
    """Copy a model with finite weights that give infinite activations."""
    shutil.copytree(model, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: w.sign() * 1e38 for name, w in load_file(path).items()}, path)
    return str(folder)


def test_a_failed_command_without_images_can_be_corrected(
    model: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images.json and metadata.jsonl do not block the next command."""
    out = tmp_path / "out"
    refused(capsys, *line(overflowing(model, tmp_path / "broken"), out, prompt="a cat"))
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "metadata.jsonl"]
    main(line(model, out, prompts=prompts))
    assert list(images(out)) == [f"{seed:06d}.png" for seed in SEEDS_OF_LINES]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": " "}, "--prompt is empty"),
        ({}, "Give either --prompt"),
        ({"prompt": "a", "prompts": "b"}, "Give either --prompt"),
        ({"prompts": ""}, "--prompts is empty"),
        ({"prompt": "caf\udce9"}, "--prompt is not UTF-8"),  # as Latin-1 bytes arrive
        ({"prompts": "[]"}, "--prompts is empty"),
        ({"prompts": "none.txt"}, "--prompts: there is no file 'none.txt'"),
        ({"prompt": "a", "seeds": "one"}, "--seeds: 'one' is neither"),
        ({"prompt": "a", "seeds": "1,,2"}, "--seeds: '' is neither"),
        ({"prompt": "a", "seeds": "-3"}, "--seeds: '-3' is neither"),
        ({"prompt": "a", "seeds": "9-3"}, "--seeds: '9-3' is empty or too large"),
        ({"prompt": "a", "seeds": f"{2**64}"}, "is empty or too large"),
        ({"prompt": "a", "seeds": "0-99999999999"}, "is empty or too large"),
        ({"prompt": "a", "seeds": "3,0-5"}, "contains a seed twice"),
        ({"prompt": "a", "batch_size": 0}, "--batch_size must be at least 1"),
        ({"prompt": "a", "num_steps": 0}, "--num_steps must be at least 1"),
        ({"prompt": "a", "num_steps": 601}, "--num_steps must be at most 600"),
        ({"prompt": "a", "resolution": 0}, "--resolution must be at least 1, got 0"),
        ({"prompt": "a", "guidance": 2}, "--guidance must be left out for a generator"),
        ({"prompt": "a", "dtype": "int8"}, "--dtype"),
        ({"prompt": "a", "model": "./none"}, "--model: "),
        ({"prompt": "a", "model": "none.ckpt"}, "--model: there is no checkpoint 'none.ckpt'"),
        ({"prompt": "a", "sampler": "ddim"}, "--num_steps and --guidance are required"),
        ({"prompt": "a", "devices": 0}, "--devices 0"),
    ],
)
def test_a_mistake_gives_one_message(
    options: dict[str, Any],
    said: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *line(model, tmp_path / "out", **options))
    assert not list(tmp_path.glob("out/*"))


def test_large_weights_are_not_blamed_on_the_precision(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = overflowing(model, tmp_path / "broken")
    message = refused(capsys, *line(broken, tmp_path / "out", prompt="a"))
    assert "--model: image 000000-0.png is not finite in float32" in message
    assert images(tmp_path / "out") == {}


def test_a_folder_of_another_layout_than_its_pipelines_is_rejected(
    small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sd"
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "text_encoder_2"):
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    message = refused(capsys, *line(str(folder), tmp_path / "out", prompt="a", sampler="generator"))
    assert "holds text_encoder_2 (StableDiffusionPipeline)" in message


def test_nothing_is_overwritten_without_overwrite(
    model: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("dear")
    message = refused(capsys, *line(model, out, prompts=prompts))
    assert "holds other files, such as 'diary.txt'" in message
    main(line(model, out, prompts=prompts, overwrite="true"))
    before = images(out)
    message = refused(capsys, *line(model, out, prompt="a cat"))
    assert "their prompts and seeds differ. Choose another folder, or give --overwrite" in message
    message = refused(capsys, *line(model, out, prompts=prompts, num_steps=2))
    assert "their num_steps is 1, and now 2" in message
    message = refused(capsys, *line("./none", out, prompts=prompts, overwrite="true"))
    assert images(out) == before
    main(line(model, out, prompt="a cat", overwrite="true"))
    assert list(images(out)) == ["000000-0.png"]
    assert (out / "diary.txt").read_text() == "dear"


def test_foreign_images_are_never_overwritten(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of captioned images, as for --data.real_images, was not written by `generate`."""
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.png").write_bytes(b"a photograph")
    (out / "metadata.jsonl").write_text('{"file_name": "cat.png", "text": "a cat"}\n')
    message = refused(capsys, *line(model, out, prompt="a cat", overwrite="true"))
    assert "'metadata.jsonl'. --overwrite replaces only files that `generate` wrote" in message
    assert sorted(path.name for path in out.iterdir()) == ["cat.png", "metadata.jsonl"]


def test_a_prompt_may_contain_any_line_break(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(line(model, out, prompt="a cat\u2028on a mat\x85"))
    main(line(model, out, prompt="a dog", overwrite="true"))
    (row,) = (out / "metadata.jsonl").read_text().splitlines()
    assert json.loads(row)["text"] == "a dog"


@pytest.mark.slow
def test_prompts_are_written_as_utf8_in_any_locale(model: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("ein Kätzchen\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "sid_lsg.cli", *line(model, out, prompts=prompts)]
    subprocess.run(command, check=True, env=os.environ | ascii_only)
    (row,) = (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["text"] == "ein Kätzchen"


def test_seeds_are_parsed_as_numbers_and_ranges() -> None:
    assert parse_seeds("0-3, 42,7 - 8") == [0, 1, 2, 3, 42, 7, 8]
    assert parse_seeds(f"{2**64 - 1}") == [2**64 - 1]
    with pytest.raises(UsageError, match=r"1\.5"):
        parse_seeds("1.5")
