"""The code on a model card makes the generator from adapters, as its training made it."""

import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.generation.trained import load_trained
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from tests.helpers.tiny_families import FAMILIES, LORA, command

PROMPT = "a lighthouse at dawn"  # of the cards


def trained(root: Path, teacher: Path | str, family: str = "sdxl", **options: Any) -> Path:
    """Train adapters for two iterations; return the run."""
    options |= {"model__teacher": teacher, "trainer__default_root_dir": root / "run"}
    main(command(FAMILIES[family], root, **LORA, **options))
    return root / "run"


@pytest.fixture(scope="module")
def run(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("usage")
    return trained(root, shutil.copytree(small_sd, root / "tiny"))


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("pixart"), FAMILIES["pixart"].folder, "pixart")


def generated(run: Path) -> Any:
    """Generate the image of the cards' prompt and seed with this package."""
    loaded = load_trained(require_checkpoint(run))
    teacher = loaded.teacher
    latents = teacher.generate(teacher.network, [PROMPT], [0], loaded.t_init, 1)
    return to_uint8(teacher.decode(latents))[0].permute(1, 2, 0).numpy().astype(int)


def lora_call(folder: Path) -> str:
    """Return the code beside `lora/` on a card."""
    text = (folder / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| `lora/`")]
    (code,) = re.findall(r"`(\S+\(.*\))`", line)
    return str(code).replace("path/to/this/folder", str(folder))


def sampled(pipeline: DiffusionPipeline, folder: Path, **options: Any) -> Any:
    """Sample the teacher's pipeline with an export's scheduler."""
    kind = getattr(diffusers, DiffusionPipeline.load_config(folder)["scheduler"][1])
    pipeline.scheduler = kind.from_pretrained(folder, subfolder="scheduler")
    seeded = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 1}
    return np.array(pipeline(PROMPT, **seeded, **options).images[0]).astype(int)


def test_the_adapters_in_a_folder_are_loaded_by_their_name(run: Path, tmp_path: Path) -> None:
    """A Hub id has no list of files from which diffusers could guess the name."""
    export(str(run), str(tmp_path / "out"))
    code = lora_call(tmp_path / "out")
    assert 'weight_name="pytorch_lora_weights.safetensors"' in code
    pipeline = DiffusionPipeline.from_pretrained(run.parent / "tiny")
    eval(f"pipeline.{code}")
    image = sampled(pipeline, tmp_path / "out", guidance_scale=0)
    assert np.abs(image - generated(run)).max() <= 1


@pytest.mark.slow
def test_pixarts_adapters_in_a_folder_are_loaded_by_peft(pixart: Path, tmp_path: Path) -> None:
    export(str(pixart), str(tmp_path / "out"))
    pipeline = DiffusionPipeline.from_pretrained(FAMILIES["pixart"].folder)
    names = {"PeftModel": peft.PeftModel, "pipeline": pipeline}
    pipeline.transformer = eval(lora_call(tmp_path / "out"), names)
    options = {"use_resolution_binning": False, "clean_caption": False}
    image = sampled(pipeline, tmp_path / "out", guidance_scale=1, **options)
    assert np.abs(image - generated(pixart)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_the_card_of_pixarts_adapters_generates_our_image(
    pixart: Path, layout: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    export(str(pixart), str(folder), format="lora", layout=layout)
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "scheduler"}
    assert {path.name for path in folder.iterdir()} == files
    text = (folder / "README.md").read_text()
    assert "| `adapter_config.json` | peft |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder))
    names: dict[str, Any] = {}
    exec(code.replace("path/to/the/teacher", str(FAMILIES["pixart"].folder)), names)
    assert np.abs(np.array(names["image"]).astype(int) - generated(pixart)).max() <= 1


@pytest.mark.slow
def test_pixarts_adapters_have_the_requested_dtype(pixart: Path, tmp_path: Path) -> None:
    export(str(pixart), str(tmp_path / "out"), format="lora", dtype="bfloat16")
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    with pytest.raises(UsageError, match=r"--layout kohya: this family has no names there"):
        export(str(pixart), str(tmp_path / "other"), format="lora", layout="kohya")


def test_adapters_of_another_network_are_exported_only_merged(run: Path, tmp_path: Path) -> None:
    """The teacher with these adapters would be another generator."""
    options = {"model__init__generator": run / "generator"}
    other = trained(tmp_path, run.parent / "tiny", **options)
    with pytest.raises(UsageError, match=r"--format lora: .* --model\.init\.generator .*diffusers"):
        export(str(other), str(tmp_path / "adapters"), format="lora")
    assert not (tmp_path / "adapters").exists()
    for kind in ("diffusers", "network"):
        export(str(other), str(tmp_path / kind), format=kind)  # type: ignore[arg-type]
        assert not (tmp_path / kind / "lora").exists()
        assert "`lora/`" not in (tmp_path / kind / "README.md").read_text()
