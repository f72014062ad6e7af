"""Models that can be sampled: exported generators, teachers, and any diffusers pipeline."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from sid_lsg.export.exported import Exported
from sid_lsg.export.exported import exported as exported_as
from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import _ready, load_model
from sid_lsg.generation.pipelines import cut_off_by, guidance_arguments
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import SamplerName
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.families import load
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from sid_lsg.training.module import SiDLSG
from tests.helpers.tiny_families import FAMILIES

PROMPTS, SEEDS = ["a red cat", "two dogs on a log", ""], [0, 7, 2]


@pytest.fixture(scope="module")
def module(tiny_sd: str) -> SiDLSG:
    """Return a module whose EMA differs from its teacher."""
    module = SiDLSG(tiny_sd, t_init=600)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.ema.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.fixture(scope="module")
def exported(module: SiDLSG, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("samplers") / "generator"
    save_pipeline(module.teacher, module.ema, folder, module.t_init)
    return str(folder)


@pytest.mark.parametrize("num_steps", [None, 1, 2, 4])
@pytest.mark.slow
def test_an_exported_generator_samples_as_in_training(
    module: SiDLSG, exported: str, num_steps: int | None
) -> None:
    """Bitwise equal, so that its scores are those of the training."""
    model = load_model(exported, num_steps=num_steps)
    expected = module.teacher.decode(module.generate(PROMPTS, SEEDS, num_steps))
    assert torch.equal(model.sample(PROMPTS, SEEDS), expected)
    assert (model.about["sampler"], model.about["t_init"]) == ("generator", 600)
    assert model.about["num_steps"] == model.evaluations == (num_steps or 1)


def test_a_teacher_is_sampled_as_in_the_trainings_comparison(module: SiDLSG, tiny_sd: str) -> None:
    model = load_model(tiny_sd, "ddim", num_steps=3, guidance=1.5)
    expected = module.teacher.sample_reference(PROMPTS, SEEDS, 3, 1.5)
    assert torch.equal(model.sample(PROMPTS, SEEDS), expected)
    assert model.evaluations == 6
    unguided = load_model(tiny_sd, "ddim", num_steps=3, guidance=1.0)
    assert unguided.evaluations == 3
    # diffusers' value for no guidance
    none = load_model(tiny_sd, "ddim", num_steps=3, guidance=0.0)
    assert torch.equal(none.sample(PROMPTS, SEEDS), unguided.sample(PROMPTS, SEEDS))


def by_hand(pipeline: StableDiffusionPipeline, steps: int, guidance: float) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        PROMPTS, num_inference_steps=steps, guidance_scale=guidance, generator=generators,
        output_type="pt",
    ).images  # fmt: skip
    return images * 2 - 1


def test_any_pipeline_keeps_its_own_scheduler(tiny_sd: str, tmp_path: Path) -> None:
    folder = tmp_path / "ddim"
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, low_cpu_mem_usage=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(folder)
    model = load_model(str(folder), num_steps=2, guidance=3.0)
    expected = by_hand(pipeline, 2, 3.0)
    torch.testing.assert_close(model.sample(PROMPTS, SEEDS), expected, rtol=0, atol=1e-5)
    assert model.about["sampler"] == "pipeline"
    assert model.about["scheduler"] == "DDIMScheduler"
    assert float(model.sample(PROMPTS, SEEDS).min()) >= -1


def test_an_export_also_works_as_a_pipeline(exported: str) -> None:
    """The image of stock diffusers equals this package's up to rounding."""
    ours = load_model(exported).sample(PROMPTS, SEEDS)
    stock = load_model(exported, "pipeline", num_steps=1, guidance=0.0).sample(PROMPTS, SEEDS)
    by_diffusers = by_hand(
        DiffusionPipeline.from_pretrained(exported, low_cpu_mem_usage=False), 1, 0
    )
    torch.testing.assert_close(stock, by_diffusers, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.clamp(-1, 1), stock, rtol=0, atol=1e-3)


def test_an_image_depends_only_on_its_prompt_and_seed(exported: str) -> None:
    model = load_model(exported)
    whole = model.sample(PROMPTS, SEEDS)
    for place in range(3):
        alone = model.sample([PROMPTS[place]], [SEEDS[place]])
        torch.testing.assert_close(alone[0], whole[place], rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.sample(PROMPTS, [1, 8, 3]), whole)


def test_half_precision_images_are_close(exported: str) -> None:
    exact, half = load_model(exported), load_model(exported, dtype="bfloat16")
    images = half.sample(PROMPTS, SEEDS)
    assert images.dtype == torch.float32
    difference = (images - exact.sample(PROMPTS, SEEDS)).abs().mean()
    assert 0 < float(difference) < 0.1
    assert half.about["dtype"] == "bfloat16"


def test_networks_are_converted_before_they_move(
    exported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that fits a device in bfloat16 may not fit in float32."""
    moved = []

    def to(teacher: Teacher, device: torch.device) -> Teacher:
        moved.append({p.dtype for p in teacher.parameters()})
        return teacher

    monkeypatch.setattr(Teacher, "to", to)
    model = load_model(exported, dtype="bfloat16")
    assert moved == [{torch.bfloat16}]
    assert model.about["weights_sha256"] == load_model(exported).about["weights_sha256"]


def test_t5_keeps_layers_that_overflow_float16() -> None:
    teacher = _ready(load(str(FAMILIES["sd3"].folder)), torch.device("cpu"), torch.float16)
    kinds = {name: p.dtype for name, p in teacher.text_encoder_3.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".wo." in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if ".wo." not in name} == {torch.float16}
    assert all(value.isfinite().all() for value in teacher.encode_prompts(["a cat"]).values())


def test_a_guidance_embedding_gets_no_scale_below_1() -> None:
    folder = str(FAMILIES["flux"].folder)
    given = load(folder).reference_guidance
    assert [given(scale)["guidance_scale"] for scale in (0, 1, 3.5)] == [1, 1, 3.5]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    for scale, expected in ((0.0, 1.0), (3.5, 3.5)):
        assert guidance_arguments(pipeline, scale, 2) == {"guidance_scale": expected}


def test_a_prompt_is_cut_off_where_no_encoder_reads_it() -> None:
    """Stable Diffusion 3's pipeline: 77 tokens for CLIP, 256 for T5."""
    cut = cut_off_by(DiffusionPipeline.from_pretrained(FAMILIES["sd3"].folder))
    words = [f"word{number}" for number in range(200)]
    ends = [len(cut(" ".join(words[:length])).split()) for length in (2, 20, 200)]
    assert ends[0] == 0
    t5 = DiffusionPipeline.from_pretrained(FAMILIES["sd3"].folder).tokenizer_3
    assert len(t5(" ".join(words[:20])).input_ids) < 256 < len(t5(" ".join(words)).input_ids)
    assert ends[1] == 0 < ends[2]


def test_the_weights_sha256_depends_only_on_the_weights(
    exported: str, tiny_sd: str, tmp_path: Path
) -> None:
    moved = shutil.copytree(exported, tmp_path / "moved")
    identities = [
        load_model(str(folder), "pipeline", 1, 0.0).about["weights_sha256"]
        for folder in (exported, moved, tiny_sd)
    ]
    assert identities[0] == identities[1] != identities[2]
    assert load_model(exported).about["weights_sha256"] == identities[0]


def test_a_teacher_is_not_an_export(tiny_sd: str, exported: str) -> None:
    assert exported_as(StableDiffusion.from_pretrained(tiny_sd).scheduler_config) is None
    assert exported_as(StableDiffusion.from_pretrained(exported).scheduler_config) == Exported(
        600, 1
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": "generator"}, "--sampler generator: .* is not a generator"),
        ({}, "--num_steps and --guidance are required"),
        ({"num_steps": 5}, "--num_steps and --guidance are required"),
        ({"sampler": "ddim", "guidance": 1.0}, "--num_steps and --guidance"),
        ({"num_steps": 0, "guidance": 1.0}, "--num_steps must be at least 1"),
        ({"sampler": "ddim", "num_steps": 5, "guidance": 0.5}, "--guidance must be .*at least 1"),
        ({"sampler": "ddim", "num_steps": 5, "guidance": -2.0}, "--guidance must be .*at least 1"),
        ({"num_steps": 1001, "guidance": 1.0}, "--num_steps must be at most 1000"),
        ({"sampler": "ddim", "num_steps": 1001, "guidance": 1.0}, "--num_steps must be at most"),
        ({"num_steps": 1, "guidance": 1.0, "resolution": 33}, "--resolution must be a multiple"),
    ],
)
@pytest.mark.slow
def test_impossible_options_for_a_teacher_are_rejected(
    tiny_sd: str, options: dict, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load_model(tiny_sd, **options)


def test_errors_of_a_pipelines_own_checks_are_reported(
    tiny_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("`height` is to be divisible by 128")

    monkeypatch.setattr(StableDiffusionPipeline, "check_inputs", refuse)
    with pytest.raises(UsageError, match=r"--resolution, .* rejects these values \(.* by 128\)"):
        load_model(tiny_sd, num_steps=1, guidance=1.0, resolution=64).sample(PROMPTS, SEEDS)


@pytest.mark.parametrize("sampler", ["auto", "ddim", "pipeline"])
def test_a_model_in_the_home_folder_loads(
    sampler: SamplerName, tiny_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(tiny_sd).parent))
    there, at_home = (
        load_model(name, sampler, 1, 1.0).about for name in (tiny_sd, f"~/{Path(tiny_sd).name}")
    )
    assert there["weights_sha256"] == at_home["weights_sha256"]


def test_impossible_options_for_a_generator_are_rejected(exported: str) -> None:
    with pytest.raises(UsageError, match="--guidance must be left out"):
        load_model(exported, guidance=2.0)
    with pytest.raises(UsageError, match="--num_steps must be at most 600"):
        load_model(exported, num_steps=601)
    for resolution in (24, 33):  # diffusers' own pipeline accepts 24
        with pytest.raises(UsageError, match=f"--resolution: {resolution} pixels .* multiple of"):
            load_model(exported, resolution=resolution)


@pytest.mark.parametrize("sampler", ["auto", "generator", "ddim", "pipeline"])
def test_a_missing_model_is_rejected(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"--model: .*nothing"):
        load_model("./nothing", sampler, 1, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("out_channels", 8), ("in_channels", 9)])
def test_a_unet_of_other_channels_than_the_latents_is_rejected(
    small_sd: str, tmp_path: Path, field: str, value: int
) -> None:
    """Its weights fit its config, so that it loads; calling it would fail, or ignore an output."""
    folder = Path(shutil.copytree(small_sd, tmp_path / "model"))
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, **{field: value}).save_pretrained(folder / "unet")
    with pytest.raises(UsageError, match=rf"--model: .*its UNet takes .*{field}"):
        load_model(str(folder), "pipeline", 1, 1.0)
