"""Images and tables in Weights & Biases and TensorBoard, and several loggers at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from sid_lsg.cli import main
from sid_lsg.loggers import CSVLogger, WandbLogger, log_images, log_table
from tests.helpers.wandb_files import history, records


def test_images_and_tables_in_wandb(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DATA_DIR")
    logger = WandbLogger(offline=True)
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    log_images([logger, CSVLogger()], "grid", [red, blue], ["a red cat", "the sea"], step=0)
    log_table([logger, CSVLogger()], "best", ["prompt", "image"], [["x", red]], step=0)
    wandb.finish()
    grid, table = history(tmp_path)
    assert grid["grid"]["captions"] == ["a red cat", "the sea"]
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    colors = []
    for name in grid["grid"]["filenames"]:
        with Image.open(media.parent / name) as image:
            colors.append(image.convert("RGB").getpixel((0, 0)))
    assert colors == [(255, 0, 0), (0, 0, 255)]
    assert (table["best"]["ncols"], table["best"]["nrows"]) == (2, 1)
    (artifact,) = [
        r.artifact for r in records(tmp_path) if r.WhichOneof("record_type") == "artifact"
    ]
    stored = {Path(entry.path).suffix: entry for entry in artifact.manifest.contents}
    content = json.loads(Path(stored[".json"].local_path).read_text())
    assert content["columns"] == ["prompt", "image"]
    assert content["data"][0][0] == "x"
    assert content["data"][0][1]["path"] == stored[".png"].path
    for entry in stored.values():  # relative to the run, which may be sent from another machine
        assert Path(entry.local_path).is_relative_to(tmp_path / "wandb")
    assert not list(tmp_path.glob("metrics.csv"))


def accumulated(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


def decoded(event: Any) -> np.ndarray:
    from io import BytesIO

    return np.asarray(Image.open(BytesIO(event.encoded_image_string)).convert("RGB"))


def test_images_and_tables_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(str(tmp_path), name="", version="")
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    large = Image.new("RGB", (8, 8), "green")
    log_images([logger, CSVLogger()], "one", [red], ["a"], step=3)
    log_images([logger], "alike", [red, blue], ["a", "b"], step=3)
    log_images([logger], "unlike", [red, large], None, step=3)
    log_images([logger], "whole", [red, blue], ["a", "b"], step=5, whole=large)
    log_table([logger], "table", ["a|b", "image", "c"], [["x\ny", red, 0.123456]], step=7)
    logger.finalize("success")
    found = accumulated(tmp_path)
    assert set(found.Tags()["images"]) == {"one", "alike", "unlike/0", "unlike/1", "whole"}
    (whole,) = found.Images("whole")
    assert whole.step == 5
    assert np.array_equal(decoded(whole), np.asarray(large))
    (one,) = found.Images("one")
    assert np.array_equal(decoded(one), np.asarray(red))
    (alike,) = found.Images("alike")
    assert {(255, 0, 0), (0, 0, 255)} <= {tuple(p) for p in decoded(alike).reshape(-1, 3)}
    (table,) = found.Tensors("table/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["| a|b | c |", "| --- | --- |", "| x y | 0.1235 |"]
    assert table.step == 7


def run(small_sd: str, folder: Path, *options: str) -> None:
    """Run two iterations into folder/runs/x, through the command line."""
    (folder / "prompts.txt").write_text("a red cat\ntwo dogs\na blue bird\n")
    defaults = {
        "model.teacher": small_sd,
        "data.prompts": str(folder / "prompts.txt"),
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": "runs/x",
        "image_grid.every_n_steps": 1,
        "image_grid.num_images": 3,
        "progress.refresh_rate": 0,
    }
    main(["fit", *(f"--{name}={value}" for name, value in defaults.items()), *options])


@pytest.mark.slow
def test_a_run_in_tensorboard(
    small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(small_sd, tmp_path, "--trainer.logger", "lightning.pytorch.loggers.TensorBoardLogger")
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "runs"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"x"}
    found = accumulated(tmp_path / "runs/x")
    for name in ("loss_fake", "loss_generator", "images_per_s"):
        assert [event.step for event in found.Scalars(name)] == [1, 2]
    assert [event.value for event in found.Scalars("images_seen")] == [2, 4]
    grids = found.Images("grid")
    assert [event.step for event in grids] == [0, 1, 2]
    for event in grids:
        with Image.open(tmp_path / f"runs/x/grids/step-{event.step:07d}.png") as image:
            assert np.array_equal(decoded(event), np.asarray(image.convert("RGB")))
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert [values[f"kappa_{i}"].number_value for i in (1, 2, 3, 4)] == [1.5] * 4
    assert values["model/alpha"].number_value == 1.0
    assert values["data/batch_size"].number_value == 2


@pytest.mark.slow
def test_several_loggers_at_once(
    fresh: None, small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loggers write to the run directory; the stored configuration has relative folders."""
    loggers = [
        {"class_path": "sid_lsg.loggers.CSVLogger"},
        {
            "class_path": "sid_lsg.loggers.WandbLogger",
            "init_args": {"offline": True, "tags": ["t"]},
        },
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "tb", "name": "", "version": ""},
        },
    ]
    guidance = {"preset": "none", "train_fake": 1.0, "eval_fake": [2.0, 3.0], "eval_real": 4.0}
    config = {"trainer": {"logger": loggers}, "model": {"guidance": guidance}}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(config))
    run(small_sd, tmp_path, "--config", str(tmp_path / "several.yaml"))
    wandb.finish()
    root = tmp_path / "runs/x"
    written = {path.name for path in root.iterdir()}
    assert {"metrics.csv", "wandb", "tb", "config.yaml"} <= written
    assert "hparams.yaml" not in written
    assert accumulated(root / "tb").Scalars("loss_fake")[-1].step == 2
    table = history(root)
    assert [row["images_seen"] for row in table if "loss_fake" in row] == [2, 4]
    grids = [row for row in table if "grid" in row]
    assert [row["images_seen"] for row in grids] == [0, 2, 4]
    assert grids[0]["grid"]["captions"] == ["a red cat", "two dogs", "a blue bird"]
    updates = {
        item.key: json.loads(item.value_json)
        for r in records(root)
        for item in (*r.config.update, *r.run.config.update)
    }
    assert [updates[f"kappa_{i}"] for i in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 4.0]
    assert updates["model"]["guidance"]["eval_fake"] == [2.0, 3.0]
    assert updates["data"]["batch_size"] == 2

    saved = yaml.safe_load((root / "config.yaml").read_text())
    folders = [logger["init_args"]["save_dir"] for logger in saved["trainer"]["logger"]]
    assert folders == [".", ".", "tb"]
