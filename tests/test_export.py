"""The exported folder in stock diffusers: the same latents and images as our own sampler's."""

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers.utils.logging
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.images import to_uint8
from sid_lsg.module import SiDLSG

PROMPTS = ["a red cat on a log", "", "two dogs " * 16]  # the last is cut at 77 tokens
SEEDS = [5, 0, 2**40]
CASES = [("epsilon", 625), ("epsilon", 300), ("v_prediction", 625), ("v_prediction", 999)]


@pytest.fixture
def diffusers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What diffusers logs at its default level."""
    level = diffusers.utils.logging.get_verbosity()
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    diffusers.utils.logging.set_verbosity_warning()
    yield caplog
    diffusers.utils.logging.set_verbosity(level)
    logger.removeHandler(caplog.handler)


def trained(tiny_sd: str, prediction_type: str, t_init: int, **options: int) -> SiDLSG:
    """Return a module whose averaged generator is not its teacher."""
    v = {"scheduler": "../tiny_sd_v/scheduler"}
    subfolders = v if prediction_type == "v_prediction" else None
    module = SiDLSG(tiny_sd, subfolders=subfolders, t_init=t_init, **options)  # type: ignore[arg-type]
    module.ema.load_state_dict(load_file(Path(tiny_sd).parent / "weights_g.safetensors"))
    return module


def sample(pipeline: DiffusionPipeline, output_type: str = "latent") -> Tensor:
    """Sample as the README says."""
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        PROMPTS,
        num_inference_steps=1,
        guidance_scale=0,
        generator=generator,
        output_type=output_type,
    ).images
    return torch.as_tensor(np.array(images)) if output_type == "pil" else images


@pytest.mark.parametrize(("prediction_type", "t_init"), CASES)
def test_stock_diffusers_samples_the_same_latents(
    tiny_sd: str,
    tmp_path: Path,
    prediction_type: str,
    t_init: int,
    diffusers_log: pytest.LogCaptureFixture,
) -> None:
    module = trained(tiny_sd, prediction_type, t_init)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.teacher.save_generator(module.ema, tmp_path, t_init)
        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
        latents = sample(pipeline)

    ours = module.generate(PROMPTS, SEEDS)
    untrained = module.generate(PROMPTS, SEEDS, network=module.teacher.network)
    assert (latents - ours).norm() / ours.norm() < 1e-4
    assert (latents - untrained).norm() / untrained.norm() > 1e-2  # it is the generator's

    assert [str(w.message) for w in caught if w.category is FutureWarning] == []  # diffusers' own
    for word in ("deprecat", "outdated", "safety", "not expected"):
        assert word not in diffusers_log.text.lower()
    assert pipeline.safety_checker is None


def test_images_are_the_decoded_latents(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    module.teacher.save_generator(module.ema, tmp_path, 625)
    pixels = sample(DiffusionPipeline.from_pretrained(tmp_path), "pil")
    ours = to_uint8(module.teacher.decode(module.generate(PROMPTS, SEEDS)))
    assert (pixels.int() - ours.permute(0, 2, 3, 1).int()).abs().max() <= 1


def test_the_folder_samples_at_the_resolution_of_the_training(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625, resolution=32)
    module.teacher.save_generator(module.ema, tmp_path, 625)
    latents = sample(DiffusionPipeline.from_pretrained(tmp_path))
    ours = module.generate(PROMPTS, SEEDS)
    assert latents.shape == ours.shape == (3, 4, 4, 4)
    assert (latents - ours).norm() / ours.norm() < 1e-4


def test_the_folder_holds_safetensors_and_stock_classes_alone(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    module.teacher.save_generator(module.ema, tmp_path, 625)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    weights = {name for name in files if not name.endswith((".json", ".txt"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    parts = json.loads((tmp_path / "model_index.json").read_text())
    libraries = {value[0] for value in parts.values() if isinstance(value, list)}
    assert libraries == {"diffusers", "transformers", None}
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    ema = module.ema.state_dict()
    assert stored.keys() == ema.keys()
    assert all(torch.equal(value, ema[name]) for name, value in stored.items())


def test_exporting_changes_nothing_in_the_module(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    before = module.generate(PROMPTS, SEEDS)
    flags = [(p.requires_grad, p.dtype) for p in module.parameters()]
    module.teacher.save_generator(module.ema, tmp_path, 625)
    assert torch.equal(module.generate(PROMPTS, SEEDS), before)
    assert [(p.requires_grad, p.dtype) for p in module.parameters()] == flags
