"""Helpers of the recipes' stages: batches, captions and the optimization."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sid_lsg.demo.dataset import Photographs, draw


@torch.no_grad()
def encode(
    autoencoder: AutoencoderKL, photographs: Photographs, repeats: int
) -> tuple[Tensor, Tensor]:
    """Encode every photograph `repeats` times, in random colours on random backgrounds.

    Returns:
        Scaled posterior means and deviations [N, 8, 8, 8] float16, and [N] caption indices.
    """
    generator = torch.Generator().manual_seed(5)
    moments, captions = [], []
    for index in torch.arange(len(photographs.labels)).repeat(repeats).split(500):
        images, labels = draw(photographs, index, generator)
        posterior = autoencoder.encode(images).latent_dist
        scaled = torch.cat((posterior.mean, posterior.std), 1) * autoencoder.config.scaling_factor
        moments.append(scaled.half())
        captions.append(labels)
    return torch.cat(moments), torch.cat(captions)


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Tokenize and pad to the tokenizer's full length, as Stable Diffusion does."""
    padded = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    return padded.input_ids


def batches(
    photographs: Photographs, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches of random photographs in random colours."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(len(photographs.labels), (batch_size,), generator=generator)
        yield draw(photographs, index, generator)


def adamw(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters of a network."""
    return [torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99))]


def optimize(
    network: Any,
    loss: Callable[[], Tensor],
    steps: int,
    optimizers: Sequence[torch.optim.Optimizer],
    decay: float,
) -> Any:
    """Minimize a loss, with warm-up and cosine decay of the learning rates.

    Args:
        network: The network.
        loss: Returns the loss of the next batch.
        steps: Optimizer steps.
        optimizers: Optimizers of the network's parameters.
        decay: Decay of the EMA per step.

    Returns:
        The EMA of the network.
    """
    ema = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 200) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))

    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    start, total = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        value = loss()
        network.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        ema.update_parameters(network)
        total += value.item()
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  loss {total / 100:.4f}  {seconds:.0f} s", flush=True)
            total = 0.0
    return ema.module.requires_grad_(False).eval()
