"""The formats of `export` that other tools read: one file, ComfyUI's workflow, LoRA."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import diffusers.utils.dynamic_modules_utils as dynamic_modules
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.generation.trained import load_trained
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from tests.helpers.tiny_families import FAMILIES, LORA, command

FILES = {"README.md", "scheduler"}


@pytest.fixture(scope="module")
def root(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    shutil.copytree(small_sd, root / "tiny")
    return root


@pytest.fixture(scope="module")
def run(root: Path) -> Path:
    """Train the adapters of a two-step generator for two iterations."""
    options = {"trainer__default_root_dir": root / "run", "model__num_steps": 2}
    alpha = {"model__lora__generator__alpha": 6}
    teacher = {"model__teacher": root / "tiny"}
    main(command(FAMILIES["sdxl"], root, **LORA, **options, **alpha, **teacher))
    return root / "run"


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def generated(run: Path, num_steps: int) -> Any:
    """Generate the image of the snippets' prompt and seed with this package."""
    loaded = load_trained(require_checkpoint(run))
    made = ["a lighthouse at dawn"], [0], loaded.t_init, num_steps
    latents = loaded.teacher.generate(loaded.teacher.network, *made)
    return to_uint8(loaded.teacher.decode(latents))[0].permute(1, 2, 0).numpy().astype(int)


def executed(folder: Path) -> Any:
    """Run the code on a folder's card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder))
    names: dict[str, Any] = {}
    exec(code.replace("path/to/the/teacher", str(folder.parent / "tiny")), names)
    assert isinstance(names["image"], Image.Image)
    return np.array(names["image"]).astype(int)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.slow
def test_the_card_of_one_file_generates_our_image(run: Path, num_steps: int) -> None:
    folder = run.parent / f"one{num_steps}"
    export(str(run), str(folder), format="single-file", num_steps=num_steps)
    assert {path.name for path in folder.iterdir()} == FILES | {f"{folder.name}.safetensors"}
    assert np.abs(executed(folder) - generated(run, num_steps)).max() <= 1


def test_one_file_says_what_it_is(run: Path, tmp_path: Path) -> None:
    options = {"dtype": "bfloat16", "license": "openrail++"}
    export(str(run), str(tmp_path / "mine"), format="single-file", **options)  # type: ignore[arg-type]
    with safe_open(tmp_path / "mine" / "mine.safetensors", "pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert (
        metadata.items()
        >= {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "stable-diffusion-v1",
            "modelspec.title": "SiD-LSG of tiny, 2 steps",
            "modelspec.resolution": "64x64",
            "modelspec.prediction_type": "epsilon",
            "modelspec.timestep_range": "0,625",
            "modelspec.license": "openrail++",
            "sid_lsg.kappas": "2, 2, 2, 2",
            "sid_lsg.num_steps": "2",
        }.items()
    )


def test_comfyuis_folder_has_a_workflow_for_its_file(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    export(str(run), str(folder), format="comfyui")
    assert {path.name for path in folder.iterdir()} == FILES | {"mine.safetensors", "workflow.json"}
    nodes = json.loads((folder / "workflow.json").read_text())
    assert nodes["1"]["inputs"]["ckpt_name"] == "mine.safetensors"
    assert len(nodes["7"]["inputs"]["sigmas"].split(",")) == 3
    assert "`models/checkpoints`" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_network_alone_has_a_workflow_and_a_card(tmp_path: Path) -> None:
    main(command(FAMILIES["z_image"], tmp_path, trainer__default_root_dir=tmp_path / "run"))
    folder = tmp_path / "mine"
    export(str(tmp_path / "run"), str(folder), format="comfyui")
    assert {path.name for path in folder.iterdir()} == FILES | {"mine.safetensors", "workflow.json"}
    nodes = json.loads((folder / "workflow.json").read_text())
    assert nodes["1"]["inputs"]["unet_name"] == "mine.safetensors"
    card = (folder / "README.md").read_text()
    assert "`mine.safetensors` in `models/diffusion_models`, the published `qwen_3_4b" in card
    assert "ZImageTransformer2DModel.from_single_file" in card


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.slow
def test_the_card_of_adapters_generates_our_image(run: Path, layout: Any) -> None:
    folder = run.parent / f"lora_{layout}"
    export(str(run), str(folder), format="lora", layout=layout, num_steps=1)
    name = "pytorch_lora_weights" if layout == "diffusers" else folder.name
    assert {path.name for path in folder.iterdir()} == FILES | {f"{name}.safetensors"}
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert np.abs(executed(folder) - generated(run, 1)).max() <= 1


def test_an_earlier_export_is_replaced_by_another_format(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for kind in ("lora", "comfyui", "lora"):
        export(str(run), str(folder), format=kind, overwrite=True)  # type: ignore[arg-type]
    assert {path.name for path in folder.iterdir()} == FILES | {"pytorch_lora_weights.safetensors"}


def test_the_card_lists_the_files_and_shows_the_runs_images(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (copied / "grids").mkdir()
    for step in (1, 2):
        Image.new("RGB", (4, 4), (step, 0, 0)).save(copied / "grids" / f"step-{step:07d}.png")
    export(str(copied), str(tmp_path / "out"), format="network")
    assert Image.open(tmp_path / "out" / "example.png").getpixel((0, 0)) == (2, 0, 0)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "(example.png)" in text
    table = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert {"| `unet/`", "| `scheduler/`", "| `lora/`"} <= {*table}
    export(str(run), str(tmp_path / "plain"), format="lora")
    assert "example.png" not in (tmp_path / "plain" / "README.md").read_text()


def test_wrong_targets_end_in_one_message(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = str(tmp_path / "out")
    with pytest.raises(UsageError, match=r"--layout kohya: only --format lora has layouts"):
        export(str(run), folder, layout="kohya")
    loaded = load_trained(require_checkpoint(run))._replace(adapted=None)
    monkeypatch.setattr("sid_lsg.generation.trained.load_trained", lambda *_, **__: loaded)
    with pytest.raises(UsageError, match=r"--format lora: .* trained without LoRA adapters"):
        export(str(run), folder, format="lora")
    fixed = loaded._replace(noise="fixed")
    monkeypatch.setattr("sid_lsg.generation.trained.load_trained", lambda *_, **__: fixed)
    with pytest.raises(UsageError, match=r"--format comfyui: .* --model\.noise fixed"):
        export(str(run), folder, format="comfyui")
    assert not [*tmp_path.iterdir()]
