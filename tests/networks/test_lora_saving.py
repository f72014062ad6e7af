"""Adapters merged into a plain network, and saved for diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sid_lsg.export.folder import save_pipeline
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.lora import LORA_FILE, adapt, save_lora
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters
from sid_lsg.training.module import SiDLSG
from tests.helpers.adapters import (
    ADAPTERS,
    BOTH,
    PROMPTS,
    SEEDS,
    call,
    make,
    places,
    relative,
    stir,
)
from tests.helpers.modules import merged


@pytest.fixture
def trained(tiny_sd: str) -> SiDLSG:
    """Return a module whose EMA is far from the teacher."""
    module = make(tiny_sd, **BOTH)
    stir(module.ema)
    assert relative(call(module, module.ema), call(module, module.teacher.network)) > 0.05
    return module


def test_merged_returns_a_plain_network_like_the_teacher(trained: SiDLSG) -> None:
    before = {name: p.clone() for name, p in trained.ema.named_parameters()}
    plain = merged(trained.ema)
    teacher = trained.teacher.network
    assert type(plain) is type(teacher)
    assert [*plain.state_dict()] == [*teacher.state_dict()]
    assert [type(m) for m in plain.modules()] == [type(m) for m in teacher.modules()]
    assert plain.config == teacher.config
    assert relative(call(trained, plain), call(trained, trained.ema)) < 1e-5
    # It shares no tensor with the module, and the module has not changed.
    own = places(p for net in (trained.ema, teacher) for p in net.parameters())
    assert own.isdisjoint(places(plain.parameters()))
    assert all(torch.equal(p, before[name]) for name, p in trained.ema.named_parameters())
    # The weights are W_0 + (alpha / r) B A, up to the rounding of one addition.
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (before[f"{key}.lora_{which}.default.weight"].double() for which in "AB")
    exact = teacher.state_dict()[f"{key}.weight"].double() + 3 * b @ a
    assert relative(plain.state_dict()[f"{key}.weight"], exact) < 1e-7


def pipeline_latents(pipeline: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(
        PROMPTS, num_inference_steps=1, guidance_scale=0, generator=noise, output_type="latent"
    ).images


def test_diffusers_loads_the_adapters_and_the_merged_export(
    trained: SiDLSG, tmp_path: Path
) -> None:
    ours = trained.generate(PROMPTS, SEEDS)
    save_pipeline(trained.teacher, merged(trained.ema), tmp_path / "merged", trained.t_init)
    save_pipeline(trained.teacher, trained.teacher.network, tmp_path / "teacher", trained.t_init)
    save_lora(trained.ema, "unet", tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [LORA_FILE]
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert relative(pipeline_latents(pipeline), ours) < 1e-4
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "teacher")
    assert relative(pipeline_latents(pipeline), ours) > 0.05
    pipeline.load_lora_weights(tmp_path / "lora")
    assert relative(pipeline_latents(pipeline), ours) < 1e-4
    pipeline.fuse_lora()
    assert relative(pipeline_latents(pipeline), ours) < 1e-4


def test_adapters_of_convolutions_load_too(small_sd: str, tmp_path: Path) -> None:
    lora = LoRA(3, alpha=1.5, targets=["conv1", "proj_in", "to_v"])
    module = make(small_sd, lora=Adapters(generator=lora))
    ours = call(module, stir(module.ema))
    assert relative(call(module, merged(module.ema)), ours) < 1e-5
    save_pipeline(module.teacher, module.teacher.network, tmp_path / "teacher", module.t_init)
    save_lora(module.ema, "unet", tmp_path / "lora")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "teacher")
    assert relative(pipeline_latents(pipeline), ours) > 1e-3
    pipeline.load_lora_weights(tmp_path / "lora")
    assert relative(pipeline_latents(pipeline), ours) < 1e-4


def test_a_generator_is_rebuilt_from_a_checkpoint(trained: SiDLSG, tiny_sd: str) -> None:
    state = trained.state_dict()
    average = {name[4:]: value for name, value in state.items() if name.startswith("ema.")}
    fresh = make(tiny_sd)
    network = adapt(fresh.teacher.network, ADAPTERS.generator, seed=99)
    assert adapters(network).keys() == average.keys()
    network.load_state_dict(average, strict=False)
    assert torch.equal(call(fresh, network), call(trained, trained.ema))
