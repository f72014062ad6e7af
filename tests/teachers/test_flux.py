"""FLUX.1 as a teacher: its text, its size, guidance as an input, exports and errors.

`tests/method/test_parity_flow.py` compares its numbers with the official code's.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from sid_lsg.export.exported import exported
from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.draws import Draws
from sid_lsg.method.phases import PhaseInputs
from sid_lsg.options.guidance import Guidance
from sid_lsg.teachers import families
from sid_lsg.teachers.flux import Flux
from sid_lsg.training.module import SiDLSG
from tests.helpers.paths import GOLDEN_FLOW

FOLDER = GOLDEN_FLOW / "pipelines" / "tiny_flux"


def load(folder: Path, **options: Any) -> Flux:
    loaded = families.load(str(folder), **options)
    assert isinstance(loaded, Flux)
    return loaded


@pytest.mark.parametrize("steps", [1, 3])
def test_an_export_keeps_its_size_length_and_steps(tmp_path: Path, steps: int) -> None:
    teacher = load(FOLDER, resolution=48)
    teacher.max_sequence_length = 16
    save_pipeline(teacher, teacher.network, tmp_path / "out", 999, steps)
    again = load(tmp_path / "out")
    assert again.latent_shape == (16, 6, 6)
    assert again.pipeline_options == {
        "guidance_scale": 1, "height": 48, "width": 48, "max_sequence_length": 16,
    }  # fmt: skip
    found = exported(again.scheduler_config)
    assert found is not None
    assert (found.t_init, found.num_steps, found.noise) == (999, steps, "fresh")
    stock = FluxPipeline.from_pretrained(tmp_path / "out")
    for other in (steps, 2):
        stock("a cat", num_inference_steps=other, output_type="latent", **again.pipeline_options)
        times = [1 - i / other for i in range(other)]
        assert stock.scheduler.sigmas[:-1].tolist() == pytest.approx(times)


@pytest.mark.parametrize(
    ("options", "fake", "real"),
    [
        ({}, [2.0, 2.0], [3.0, 3.0]),
        ({"embedded": 3.5}, [3.5, 3.5], [3.5, 3.5]),
        ({"true_cfg": False}, [2.0], [3.0]),
    ],
)
def test_guidance_is_an_input_and_a_difference(
    options: dict[str, Any], fake: list[float], real: list[float]
) -> None:
    """The generator's input is 1; the others' are their kappas, unless an option says otherwise."""
    guidance = Guidance(train_fake=1, eval_fake=2, eval_real=3, **options)
    module = SiDLSG(str(FOLDER), guidance=guidance, num_steps=1)
    seen: dict[str, list[float]] = {"generator": [], "fake_score": [], "teacher": []}
    networks = {
        "generator": module.generator,
        "fake_score": module.fake_score,
        "teacher": module.teacher.network,
    }
    for name, network in networks.items():

        def keep(_: Any, args: Any, named: Any, name: str = name) -> None:
            seen[name] += named["guidance"].tolist()

        network.register_forward_pre_hook(keep, with_kwargs=True)
    noise = torch.randn(1, 16, 8, 8)
    draws = Draws([noise], noise, torch.tensor([0.5]), torch.ones(1))
    inputs = PhaseInputs(module.teacher.encode_prompts(["a cat"]), draws, 1)
    module.generator_phase(inputs)
    assert seen["generator"] == [1.0]
    assert seen["fake_score"] == fake
    assert seen["teacher"] == real
    guiding = module.guiding if module.teacher.embeds_guidance else None
    assert module.kappas.evaluations_of(guiding)[1:] == (len(fake), len(real))


def test_guidance_options_need_an_embedding() -> None:
    for options in ({"embedded": 2.0}, {"true_cfg": False}):
        with pytest.raises(UsageError, match="but this teacher has no guidance embedding"):
            SiDLSG(str(GOLDEN_FLOW / "pipelines" / "tiny_sd3"), guidance=Guidance(**options))
    with pytest.raises(UsageError, match="so the scales have no effect"):
        Guidance(true_cfg=False, embedded=2.0)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"in_channels": 384}, "takes 384 channels and its VAE's latents have 64 in patches"),
        ({"out_channels": 32}, "takes 64 channels and returns 32"),
        ({"joint_attention_dim": 48}, "attends to 48 features and its text_encoder_2 outputs 24"),
        ({"pooled_projection_dim": 48}, "takes 48 pooled features and its text_encoder outputs 16"),
    ],
)
def test_parts_that_do_not_fit_together_are_rejected(
    tmp_path: Path, config: dict[str, Any], found: str
) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "model"))
    changed = dict(FluxTransformer2DModel.load_config(folder / "transformer")) | config
    FluxTransformer2DModel.from_config(changed).save_pretrained(folder / "transformer")
    with pytest.raises(UsageError) as caught:
        load(folder)
    assert found in str(caught.value)
    assert "Give a text-to-image model of FLUX.1, such as black-forest" in str(caught.value)


@pytest.mark.slow
def test_the_architecture_has_the_published_parameter_count() -> None:
    teacher = families.outline("architecture:flux-dev")
    assert sum(p.numel() for p in teacher.network.parameters()) == 11_901_408_320
    assert teacher.latent_shape == (16, 128, 128)
    x_t = torch.empty(1, *teacher.latent_shape, device="meta")
    t = torch.zeros(1, device="meta")
    found = teacher.predict(teacher.network, x_t, t, teacher.null_condition())
    assert found.shape == x_t.shape
    small = families.outline("architecture:flux-small")
    assert 100 < 11_901_408_320 / sum(p.numel() for p in small.network.parameters()) < 5000
