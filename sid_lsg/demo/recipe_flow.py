"""Train the embedded teacher `fashion_flow` from Fashion-MNIST, on a CPU.

    python -m sid_lsg.demo.recipe_flow text --output fashion_flow
    python -m sid_lsg.demo.recipe_flow transformer --output fashion_flow   # needs text

The folder contains a Stable Diffusion 3 pipeline in diffusers' layout, without T5. Its autoencoder
and both its text encoders are those of the teacher `fashion`, and so are the captions, the CLIP of
the scores and the reference statistics. The transformer is trained in float32, stored in float16.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from sid_lsg.demo.dataset import CAPTIONS, DATA_DIR, SIZE, load_photographs
from sid_lsg.demo.training import encode, optimize, tokenize
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.lengths import LENGTH_KEY

FASHION = Path(__file__).parent / "fashion"
T5_LENGTH = 256  # the zeros that the pipeline appends to the text if there is no T5


def text(output: Path, fashion: Path = FASHION) -> None:
    """Copy the text towers, twice, and the autoencoder of the teacher `fashion`.

    Args:
        output: The teacher's folder.
        fashion: The folder of `fashion`.
    """
    tokenizer = CLIPTokenizer.from_pretrained(fashion / "tokenizer")
    clip = CLIPModel.from_pretrained(fashion / "clip", dtype=torch.float16)
    clip.config.text_config.projection_dim = clip.config.projection_dim
    encoder = CLIPTextModelWithProjection(clip.config.text_config).half()
    encoder.text_model.load_state_dict(clip.text_model.state_dict())
    encoder.text_projection.load_state_dict(clip.text_projection.state_dict())
    for suffix in ("_2", ""):
        encoder.save_pretrained(output / f"text_encoder{suffix}")
        tokenizer.save_pretrained(output / f"tokenizer{suffix}")
        tokenizer.init_kwargs[LENGTH_KEY] = 0  # of the first: this project adds no zeros for T5
    autoencoder = AutoencoderKL.from_pretrained(fashion / "vae", torch_dtype=torch.float16)
    autoencoder.register_to_config(shift_factor=0.0)
    autoencoder.save_pretrained(output / "vae")


def transformer(
    output: Path, data_dir: str = DATA_DIR, steps: int = 2600, batch_size: int = 64
) -> None:
    """Train the transformer by flow matching with 10% prompt dropout; save the pipeline.

    Args:
        output: The teacher's folder, with its text encoders and autoencoder.
        data_dir: Folder with Fashion-MNIST's IDX files.
        steps: Optimizer steps.
        batch_size: Images per step.
    """
    parts = load_parts(output)
    context, pooled = encode_texts(parts, [*CAPTIONS, ""])
    torch.manual_seed(0)
    model = new_transformer(context.shape[-1], pooled.shape[-1])
    moments, captions = encode(parts["vae"], load_photographs(data_dir, "train"), repeats=3)
    generator = torch.Generator().manual_seed(4)
    calls = 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        index = torch.randint(len(captions), (batch_size,), generator=generator)
        mean, deviation = moments[index].float().chunk(2, dim=1)
        x_0 = mean + deviation * torch.randn(mean.shape, generator=generator)
        eps = torch.randn(x_0.shape, generator=generator)
        t = (1.4 * torch.randn(batch_size, generator=generator)).sigmoid()
        dropped = torch.rand(batch_size, generator=generator) < 0.1
        chosen = captions[index].masked_fill(dropped, len(CAPTIONS))
        words = context[chosen]
        if calls % 40 == 0:  # so that images hardly depend on the number of zeros
            words = F.pad(words, (0, 0, 0, T5_LENGTH))
        sigma = t[:, None, None, None]
        x_t = (1 - sigma) * x_0 + sigma * eps
        return F.mse_loss(model(x_t, words, pooled[chosen], 1000 * t).sample, eps - x_0)

    ema = optimize(model, loss, steps, muon(model), decay=0.998)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline = StableDiffusion3Pipeline(
        transformer=ema, scheduler=scheduler, text_encoder_3=None, tokenizer_3=None, **parts
    )
    pipeline.to(dtype=torch.float16).save_pretrained(output)


def load_parts(folder: Path) -> dict[str, Any]:
    """Load the text encoders, tokenizers and autoencoder in float32, by their names."""
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    }
    for suffix in ("", "_2"):
        parts[f"tokenizer{suffix}"] = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        parts[f"text_encoder{suffix}"] = CLIPTextModelWithProjection.from_pretrained(
            folder / f"text_encoder{suffix}", dtype=torch.float32
        )
    return parts


@torch.no_grad()
def encode_texts(parts: dict[str, Any], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encode texts as `StableDiffusion3Pipeline` does, without the zeros in place of T5.

    Returns:
        The hidden states before the last layer [N, 16, 192], and the projections [N, 128], each of
        both encoders side by side.
    """
    states, projections = [], []
    for suffix in ("", "_2"):
        ids = tokenize(parts[f"tokenizer{suffix}"], texts)
        found = parts[f"text_encoder{suffix}"](ids, output_hidden_states=True)
        states.append(found.hidden_states[-2])
        projections.append(found.text_embeds)
    return torch.cat(states, -1), torch.cat(projections, -1)


def new_transformer(joint_attention_dim: int, pooled_projection_dim: int) -> SD3Transformer2DModel:
    """Make a transformer of four joint blocks whose output, and every block's change, is zero."""
    model = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=joint_attention_dim,
        caption_projection_dim=192,
        pooled_projection_dim=pooled_projection_dim,
        pos_embed_max_size=SIZE // 8,
        qk_norm="rms_norm",
    )
    for name, parameter in model.named_parameters():
        if name.startswith(("proj_out.", "norm_out.linear.")) or ".norm1" in name:
            nn.init.zeros_(parameter)
    return model


def muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for all other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith("transformer_blocks.") and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.99)),
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


if __name__ == "__main__":
    from jsonargparse import auto_cli

    try:
        auto_cli([text, transformer], as_positional=False)
    except UsageError as error:
        sys.exit(f"error: {error}")
