"""A single file gives back every weight, and the same images, through diffusers' own loaders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sid_lsg.export.original import transformers
from sid_lsg.export.original.layout import Layout, NoPlace
from sid_lsg.export.original.models import ORIGINALS, original
from sid_lsg.export.single_file import save_single_file
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families
from tests.helpers.paths import GOLDEN_FLOW
from tests.helpers.tiny_families import FAMILIES as TINY

PIPELINES = GOLDEN_FLOW / "pipelines"
# Each text encoder has its own width: diffusers tells two of them apart by it.
WIDE = {"hidden_size": 24, "num_attention_heads": 2}


def remade(kind: Any, part: Any, **changes: Any) -> Any:
    """Return a network of another configuration, with random weights."""
    return kind.from_config({**part.config, **changes})


def text_encoder(kind: Any, part: Any, **changes: Any) -> Any:
    return kind(CLIPTextConfig(**{**part.config.to_dict(), **changes})).eval()


def stable_diffusion_1(tiny_sd: str) -> Any:
    return StableDiffusionPipeline.from_pretrained(tiny_sd)


def stable_diffusion_2(tiny_sd: str) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipeline.unet = remade(
        UNet2DConditionModel, pipeline.unet, use_linear_projection=True, layers_per_block=2
    )
    pipeline.text_encoder = text_encoder(CLIPTextModel, pipeline.text_encoder)
    return pipeline


def stable_diffusion_xl(_: str) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(PIPELINES / "tiny_sdxl")
    second = text_encoder(CLIPTextModelWithProjection, pipeline.text_encoder_2, **WIDE)
    width = pipeline.text_encoder.config.hidden_size + second.config.hidden_size
    pipeline.text_encoder_2 = second
    pipeline.unet = remade(UNet2DConditionModel, pipeline.unet, cross_attention_dim=width)
    return pipeline


def stable_diffusion_3(_: str) -> Any:
    pipeline = StableDiffusion3Pipeline.from_pretrained(PIPELINES / "tiny_sd3")
    pipeline.text_encoder_2 = text_encoder(
        CLIPTextModelWithProjection, pipeline.text_encoder_2, **WIDE
    )
    first = pipeline.text_encoder
    first.text_projection.weight.data = torch.eye(len(first.text_projection.weight))
    options = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}  # as in SD3.5 medium
    pipeline.transformer = remade(SD3Transformer2DModel, pipeline.transformer, **options)
    return pipeline


FAMILIES: dict[str, Callable[[str], Any]] = {
    "stable-diffusion-1": stable_diffusion_1,
    "stable-diffusion-2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
}


def network_of(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or pipeline.transformer


def save(pipeline: Any, path: Path, layout: str | None, dtype: torch.dtype = torch.float32) -> Path:
    parts = network_of(pipeline), pipeline.components
    save_single_file(path, original(layout), *parts, dtype, {"title": "tiny"})
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_diffusers_reads_every_weight_back(family: str, tiny_sd: str, tmp_path: Path) -> None:
    pipeline = FAMILIES[family](tiny_sd)
    pipeline.save_pretrained(tmp_path / "folder")
    path = save(pipeline, tmp_path / "one.safetensors", family)
    read = type(pipeline).from_single_file(str(path), config=str(tmp_path / "folder"))
    networks = 0
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        found, expected = getattr(read, name).state_dict(), part.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
        networks += 1
    assert networks == {"sdxl": 4, "sd3": 5}.get(family, 3)
    if family == "sd3":
        return  # its prompts would be wider than the tiny transformer takes
    assert torch.equal(sampled(read), sampled(pipeline))


def test_a_file_of_sdxl_says_that_it_predicts_v(tiny_sd: str, tmp_path: Path) -> None:
    pipeline = stable_diffusion_xl(tiny_sd)
    pipeline.save_pretrained(tmp_path / "folder")
    parts = original("sdxl"), pipeline.unet, pipeline.components, torch.float16, {}
    for kind in ("epsilon", "v_prediction"):
        path = tmp_path / f"{kind}.safetensors"
        save_single_file(path, *parts, prediction_type=kind)
        with safe_open(path, "pt") as file:
            assert ("v_pred" in file.keys()) == (kind == "v_prediction")  # noqa: SIM118
            if kind == "v_prediction":
                assert file.get_tensor("v_pred").shape == (0,)
    read = type(pipeline).from_single_file(str(path), config=str(tmp_path / "folder"))
    expected = pipeline.unet.half().state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in read.unet.half().state_dict().items()
    )


def sampled(pipeline: DiffusionPipeline) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    images: Tensor = pipeline(
        "a red cat",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return images


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_has_one_dtype_and_its_metadata(
    tiny_sd: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    pipeline = stable_diffusion_1(tiny_sd)
    path = save(pipeline, tmp_path / "one.safetensors", "stable-diffusion-1", dtype)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "title": "tiny"}
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118
        found = file.get_tensor("model.diffusion_model.out.2.weight")
    assert torch.equal(found, pipeline.unet.conv_out.weight.to(dtype))


def test_a_weight_that_overflows_is_named(tiny_sd: str, tmp_path: Path) -> None:
    pipeline = stable_diffusion_1(tiny_sd)
    pipeline.unet.conv_out.weight.data[0] = 1e6
    with pytest.raises(UsageError, match=r"--dtype: the weight 'out\.2\.weight' is too large"):
        save(pipeline, tmp_path / "one.safetensors", "stable-diffusion-1", torch.float16)


@pytest.mark.slow
def test_families_know_their_layout(tiny_sd: str) -> None:
    found = {name: families.load(str(TINY[name].folder)).original_layout for name in TINY}
    assert {name for name, layout in found.items() if layout is None} == {"sana", "pixart"}
    assert {*filter(None, found.values())} | {*FAMILIES} == {*ORIGINALS}
    assert families.load(tiny_sd).original_layout == "stable-diffusion-1"
    with pytest.raises(UsageError, match=r"--format: no tool reads one file of this family"):
        original(None)


@pytest.mark.slow
def test_flux_is_read_back_at_its_own_width() -> None:
    """Diffusers' converter knows only FLUX's width; tensors of one number make that cheap."""
    config = json.loads((PIPELINES / "tiny_flux" / "transformer" / "config.json").read_text())
    wide = {"num_attention_heads": 24, "attention_head_dim": 128}
    options = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    with torch.device("meta"):
        network = FluxTransformer2DModel.from_config({**config, **wide, **options})
    weights = {
        name: torch.tensor(number % 251, dtype=torch.uint8).expand(value.shape)
        for number, (name, value) in enumerate(network.state_dict().items())
    }
    # A norm's two halves differ, to see their order.
    for kind in ("weight", "bias"):
        half = torch.zeros_like(weights[f"norm_out.linear.{kind}"])
        half[: len(half) // 2] = 1
        weights[f"norm_out.linear.{kind}"] = half
    layout = transformers.flux(network.config)
    converted = {
        name: layout.change(name, torch.cat([weights[source] for source in sources]))
        for name, sources in layout.names(weights).items()
    }
    read = convert_flux_transformer_checkpoint_to_diffusers(converted)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("flux2", Flux2Transformer2DModel),
        ("z_image", ZImageTransformer2DModel),
        ("qwen_image", QwenImageTransformer2DModel),
    ],
)
def test_transformers_are_read_back_alone(family: str, kind: Any, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(TINY[family].folder)
    path = save(pipeline, tmp_path / "one.safetensors", family.replace("_", "-"))
    read = kind.from_single_file(
        str(path), config=str(TINY[family].folder), subfolder="transformer"
    ).state_dict()
    expected = pipeline.transformer.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) for name, value in expected.items())


def test_the_autoencoder_is_read_alone(tiny_sd: str, tmp_path: Path) -> None:
    pipeline = stable_diffusion_1(tiny_sd)
    path = save(pipeline, tmp_path / "one.safetensors", "stable-diffusion-1")
    read = AutoencoderKL.from_single_file(str(path), config=tiny_sd, subfolder="vae")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.encode(image).latent_dist.mean, pipeline.vae.encode(image)[0].mean)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("unknown.weight", r"'unknown\.weight' has no place"), ("b.weight", "have the same place")],
)
def test_weights_without_a_place_of_their_own_are_named(name: str, expected: str) -> None:
    layout = Layout(((r"^a\.", "a."), (r"^b\.", "a.")))
    with pytest.raises(NoPlace, match=expected):
        layout.names(["a.weight", name])
