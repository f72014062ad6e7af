"""Paths given as `--ckpt_path`: damaged files, folders, models, other projects' files."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sid_lsg.cli import main
from tests.helpers.checkpoint_runs import change, contents, load, refused


@pytest.mark.slow
def test_options_never_come_from_a_checkpoint(
    command: list[str], copied: Path, tmp_path: Path
) -> None:
    """Lightning would take options from a checkpoint's hyperparameters."""

    def add(found: dict[str, Any]) -> None:
        options = {"alpha": 0.5, "t_init": 500, "seed": 7, "num_steps": 3}
        found["hyper_parameters"] = options | {"_class_path": "torch.nn.Linear"}
        found["hparams_name"], found["hparams_type"] = "options", "os.system"
        found["datamodule_hyper_parameters"] = {"batch_size": 3}
        found["sid_lsg"]["config"] = {"model": {"alpha": 0.5}, "data": {"batch_size": 1}}

    path = copied / "checkpoints/0000002.ckpt"
    change(path, add)
    main([*command, f"--ckpt_path={path}", "--model.alpha=0.75", "--trainer.default_root_dir=new"])
    config = yaml.safe_load((tmp_path / "new/config.yaml").read_text())
    assert (config["model"]["alpha"], config["model"]["t_init"]) == (0.75, 625)
    assert (config["seed_everything"], config["model"]["num_steps"]) == (0, 1)
    assert (config["data"]["batch_size"], config["trainer"]["max_steps"]) == (1, 3)
    assert load(tmp_path / "new/checkpoints/last.ckpt")["global_step"] == 3


@pytest.mark.slow
def test_a_file_that_is_no_checkpoint_is_explained(
    command: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied.parent / "given"
    folder.mkdir()
    whole = (copied / "checkpoints/0000002.ckpt").read_bytes()
    (folder / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.ckpt").touch()
    (folder / "text.txt").write_text("a cat\n")
    (folder / "config.yaml").write_text("model: {}\n")
    (folder / "official.pkl").write_bytes(pickle.dumps({"ema": 1}))
    (folder / "weights.safetensors").write_bytes(b"\0" * 16)
    (folder / "page.ckpt").write_text("<html>404 Not Found</html>")
    (folder / "pointer.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": {}}, folder / "weights_only.ckpt")
    before = contents(copied.parent)
    for path in sorted(folder.iterdir()):
        said = refused(command, capsys, f"--ckpt_path={path}")
        assert said.startswith(f"error: --ckpt_path: {str(path)!r} "), said
        assert said.count("\n") == 0
        assert ("import-official" in said) == (path.suffix == ".pkl")
        assert ("--model.init.generator" in said) == (path.suffix in (".pkl", ".safetensors"))
    assert contents(copied.parent) == before
    assert "there is no file ''" in refused(command, capsys, "--ckpt_path=")


def test_a_folder_that_is_no_checkpoint_is_explained(
    command: list[str], tiny_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/checkpoints").mkdir(parents=True)
    (tmp_path / "other/checkpoints/notes.txt").touch()
    for name in ("empty", "other", "other/checkpoints"):
        said = refused(command, capsys, f"--ckpt_path={name}")
        assert f"--ckpt_path: the folder {name!r} contains no checkpoint. Give a" in said
    for model in (tiny_sd, f"{tiny_sd}/unet"):
        said = refused(command, capsys, f"--ckpt_path={model}")
        assert "neither optimizers nor fake score. Start a new run from it with" in said
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize("inside", [".", "checkpoints"])
@pytest.mark.slow
def test_a_run_directory_stands_for_its_newest_checkpoint(
    command: list[str], copied: Path, tmp_path: Path, inside: str
) -> None:
    other = Path(shutil.move(copied, tmp_path / "other"))
    options = ["--trainer.max_steps=7", "--data.batch_size=2"]
    main([*command, *options, f"--ckpt_path={other / inside}"])
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 7
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["ckpt_path"] == str(other / "checkpoints/last.ckpt")


@pytest.mark.slow
def test_its_own_run_directory_continues_the_run(
    command: list[str], copied: Path, tmp_path: Path
) -> None:
    main([*command, "--trainer.max_steps=7", "--data.batch_size=2", "--ckpt_path=run"])
    assert load(copied / "checkpoints/last.ckpt")["global_step"] == 7
    assert not (tmp_path / "run.1").exists()
