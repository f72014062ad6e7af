"""An SDXL teacher: its calls equal the stock pipeline's; the errors for unusable folders."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import concatenate, expand
from sid_lsg.networks.memory import set_text
from sid_lsg.options.text import Text
from sid_lsg.teachers import families
from sid_lsg.teachers.sdxl import SDXL
from tests.helpers.golden import error
from tests.helpers.model_folders import edit, refusal
from tests.helpers.paths import GOLDEN_FLOW

FOLDER = GOLDEN_FLOW / "pipelines" / "tiny_sdxl"
PROMPTS = ["a photo of the red cat", "two dogs running and jumping"]
LAYOUT = ", ".join(SDXL.parts)


@pytest.fixture(scope="module")
def teacher() -> SDXL:
    loaded = families.load(str(FOLDER))
    assert isinstance(loaded, SDXL)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the teacher's folder that a test may damage."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


# ---------------------------------------------------------------------- the stock pipeline's calls


@pytest.mark.parametrize("guidance", [1, 3])
def test_a_call_equals_the_stock_pipelines(teacher: SDXL, guidance: int) -> None:
    recorded = load_file(GOLDEN_FLOW / "golden" / f"sdxl_stock_g{guidance}.safetensors")
    condition = teacher.encode_prompts(PROMPTS)
    if guidance > 1:
        condition = concatenate(expand(teacher.encode_null(), 2), condition)
    for name, value in condition.items():
        torch.testing.assert_close(value, recorded[f"net.{name}"], rtol=1e-5, atol=1e-5)
    for x_t, t, expected in zip(
        recorded["net.sample"], recorded["net.timestep"], recorded["net.output"], strict=True
    ):
        with torch.no_grad():
            found = teacher.predict(teacher.network, x_t, t.long(), condition)
        assert error(found, expected) < 1e-5
    images = teacher.decode(recorded["latents_after"][-1])
    assert error(images[:1, :, ::4, ::4], recorded["decoded"]) < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.slow
def test_the_teacher_samples_as_its_stock_pipeline(
    folder: Path, guidance: float, zeros: bool
) -> None:
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=zeros)
    stock = StableDiffusionXLPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    latents = stock(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        output_type="latent",
    ).images
    own = families.load(str(folder))
    images = own.sample_reference(PROMPTS, [5, 6], 4, guidance)
    torch.testing.assert_close(images, own.decode(latents), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- conditioning


def test_the_second_tokenizer_pads_with_its_own_token(teacher: SDXL) -> None:
    tokens = teacher.tokenize(["a cat"])
    first, second = tokens["input_ids"][0], tokens["input_ids_2"][0]
    one, two = teacher.tokenizers.values()
    assert len(first) == len(second) == 77
    assert (int(first[-1]), int(second[-1])) == (one.pad_token_id, two.pad_token_id)
    assert one.pad_token_id != two.pad_token_id == 0
    assert torch.equal(first[:4], second[:4])


def test_null_conditioning_is_zeros_or_the_empty_prompts(folder: Path, teacher: SDXL) -> None:
    zeros, empty = teacher.encode_null(), teacher.encode_prompts([""])
    assert not zeros["encoder_hidden_states"].any()
    assert not zeros["text_embeds"].any()
    assert torch.equal(zeros["time_ids"], empty["time_ids"])
    assert empty["text_embeds"].any()
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    own = families.load(str(folder))
    for name, value in own.encode_null().items():
        assert torch.equal(value, empty[name])
    saved = own.pipeline(own.network, own.one_step_scheduler(625))
    assert saved.config.force_zeros_for_empty_prompt is False


def test_null_conditioning_can_be_chosen(teacher: SDXL) -> None:
    assert teacher.null_kind == "zeros"
    own = families.load(str(FOLDER))
    set_text(Text(null="empty"), own)
    found, expected = own.null_condition(), teacher.encode_prompts([""])
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    with pytest.raises(UsageError, match=r"--model.text.null is zeros, but this teacher's"):
        set_text(Text(null="zeros"), families.load("architecture:sd15-small"))
    with pytest.raises(UsageError, match=r"--model.text.null must be zeros, empty or null"):
        Text(null="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(("resolution", "side"), [(None, 64), (32, 32), (128, 128)])
@pytest.mark.slow
def test_sizes_follow_the_resolution(resolution: int | None, side: int) -> None:
    own = families.load(str(FOLDER), resolution=resolution)
    assert own.latent_shape == (4, side // 8, side // 8)
    assert (
        own.encode_prompts(["a", "b"])["time_ids"].tolist() == [[side, side, 0, 0, side, side]] * 2
    )
    assert own.sample_reference(["a"], [0], 1, 1.0).shape == (1, 3, side, side)


def test_the_end_of_a_long_prompt_is_reported(teacher: SDXL) -> None:
    assert teacher.cut_off("a cat") == ""
    assert teacher.cut_off("a cat " * 100).endswith("cat")


# ---------------------------------------------------------------------- autoencoder


def test_images_are_encoded_and_decoded_with_the_models_scale(teacher: SDXL) -> None:
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    mean = teacher.vae.encode(pixels / 127.5 - 1).latent_dist.mean
    assert error(teacher.encode_images(pixels), mean * 0.13025) < 1e-5
    latents = torch.randn(2, 4, 8, 8)
    expected = teacher.vae.decode(latents / 0.13025).sample
    assert error(teacher.decode(latents), expected) < 1e-6


def test_latents_with_a_mean_and_deviation_are_scaled(folder: Path) -> None:
    """As in Playground v2.5's autoencoder; diffusers' pipelines decode it so."""
    mean, std = [-1.0, 0.5, 2.0, 0.0], [2.0, 1.0, 0.5, 3.0]
    edit(folder / "vae" / "config.json", latents_mean=mean, latents_std=std)
    own = families.load(str(folder))
    assert isinstance(own, SDXL)
    latents = torch.randn(1, 4, 8, 8)
    a, b = torch.tensor(std).view(1, 4, 1, 1), torch.tensor(mean).view(1, 4, 1, 1)
    expected = own.vae.decode(latents * a / 0.13025 + b).sample
    assert error(own.decode(latents), expected) < 1e-5
    pixels = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    z = own.vae.encode(pixels / 127.5 - 1).latent_dist.mean
    assert error(own.encode_images(pixels), (z - b) * 0.13025 / a) < 1e-5


def test_a_float16_autoencoder_decodes_in_float32(folder: Path) -> None:
    for upcast, dtype in ((True, torch.float32), (False, torch.float16)):
        edit(folder / "vae" / "config.json", force_upcast=upcast)
        own = families.load(str(folder))
        assert isinstance(own, SDXL)
        own.vae.half()
        assert own.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32
        assert own.vae.dtype == dtype


# ---------------------------------------------------------------------- errors


def replace_unet(folder: Path, **config: Any) -> None:
    """Replace the folder's UNet with a random one of another configuration."""
    changed = UNet2DConditionModel.load_config(folder / "unet") | config
    UNet2DConditionModel.from_config(changed).save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda f: replace_unet(f, in_channels=9), "takes 9 channels and its VAE's latents have 4"),
        (lambda f: replace_unet(f, cross_attention_dim=48), "attends to 48 features and its text"),
        (
            lambda f: replace_unet(f, projection_class_embeddings_input_dim=16 + 5 * 8),
            r"takes 5 numbers with a prompt's features, not 6 (a refiner?)",
        ),
        (
            lambda f: replace_unet(f, addition_embed_type=None),
            "the config of its unet has addition_embed_type None, not 'text_time'",
        ),
        (
            lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="sample"),
            "prediction_type is 'sample', not one of epsilon, v_prediction",
        ),
        (
            lambda f: edit(f / "scheduler/scheduler_config.json", sigma_data=0.5),
            "its scheduler is an EDM scheduler",
        ),
    ],
    ids=["inpainting", "cross-attention", "refiner", "no sizes", "sample prediction", "EDM"],
)
@pytest.mark.slow
def test_parts_that_do_not_fit_together_are_rejected(
    folder: Path, spoil: Callable[[Path], None], found: str
) -> None:
    spoil(folder)
    message = refusal(folder)
    assert message.startswith("--model.teacher: ")
    assert found in message
    assert "Give a text-to-image model of SDXL, such as stabilityai/stable-diff" in message


@pytest.mark.parametrize("part", SDXL.parts)
def test_a_folder_without_a_part_is_rejected(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    message = refusal(folder)
    assert f"is not in SDXL's layout: it lacks {part} (StableDiffusionXLPipeline)" in message
    assert LAYOUT in message


def test_the_refiner_is_rejected_by_its_index(folder: Path) -> None:
    """It has the second text encoder alone."""
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    index = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    edit(folder / "model_index.json", **index)
    message = refusal(folder)
    assert "it lacks text_encoder, tokenizer (StableDiffusionXLImg2ImgPipeline)" in message


def test_the_base_models_parts_in_another_pipeline_load(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    assert isinstance(families.load(str(folder)), SDXL)


# ---------------------------------------------------------------------- untrained models


def numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
def test_the_architecture_has_the_published_parameter_counts() -> None:
    for model in ("architecture:sdxl", "stabilityai/stable-diffusion-xl-base-1.0"):
        teacher = families.outline(model)
        assert isinstance(teacher, SDXL)
        assert numbers(teacher.network) == 2_567_463_684
        assert numbers(teacher.vae) == 83_653_863
        assert numbers(teacher.text_encoder) == 123_060_480
        assert numbers(teacher.text_encoder_2) == 694_659_840
        assert teacher.image_size == (1024, 1024)
        assert teacher.tokenize([""])["input_ids_2"][0, -1] == 0
    assert families.outline("architecture:sdxl", resolution=512).latent_shape == (4, 64, 64)


@pytest.mark.slow
def test_the_small_architecture_has_the_same_blocks() -> None:
    small, full = (families.outline(f"architecture:{name}") for name in ("sdxl-small", "sdxl"))
    names = [set(t.network.state_dict()) for t in (small, full)]
    assert names[0] == names[1]
    assert 50 < numbers(full.network) / numbers(small.network) < 150


@pytest.mark.slow
def test_random_weights_give_plausible_outputs() -> None:
    teacher = families.load("architecture:sdxl-small", resolution=64)
    condition = teacher.encode_prompts(["a red shoe", ""])
    assert condition["encoder_hidden_states"].shape == (2, 77, 192)
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps = teacher.predict(teacher.network, x_t, torch.tensor([20, 979]), condition)
    assert 0.1 < eps.std() < 10
    assert 0.1 < teacher.decode(eps).std() < 20


def test_an_outline_matches_the_folders_model(teacher: SDXL) -> None:
    def shapes(teacher: Any) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (t.shape, t.dtype) for name, t in teacher.state_dict().items()}

    found = families.outline(str(FOLDER))
    assert shapes(found) == shapes(teacher)
    assert {t.device.type for t in (*found.parameters(), *found.buffers())} == {"meta"}
