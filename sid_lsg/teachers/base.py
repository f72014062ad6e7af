"""The interface between the method and the diffusion model it distils.

The objective and the LightningModule see a teacher only through this class, so another family of
models (two text encoders, a flow-matching transformer) joins by a subclass of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.sampling import denoiser, sample, seeded_noises
from sid_lsg.method.schedule import Schedule

Tokens = dict[str, Tensor]
"""What a tokenizer makes of prompts: named tensors, the first dimension over prompts."""

Tokenize = Callable[[Sequence[str]], Tokens]


def products(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Find the layers that multiply by their weights; mixed precision does that in 16 bits."""
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


class Teacher(nn.Module, ABC):
    """A frozen text-to-image diffusion model; the fake score and generator are copies of `network`.

    Attributes:
        network: The denoising network, f_phi.
        schedule: alpha_t, sigma_t, the prediction type and the times.
        latent_shape: (C, H, W) of a latent at the chosen resolution.
        image_size: (H, W) of an image in pixels.
        products_in: The type in which the frozen weights of networks' products are stored, where
            the others' is float32 (`memory.set_frozen_precision`).
    """

    network: nn.Module
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    products_in: torch.dtype | None = None

    @property
    @abstractmethod
    def tokenize(self) -> Tokenize:
        """What turns prompts into tokens, on the CPU; a loader's workers have copies of it."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Conditioning:
        """Turn tokens into conditioning, on the teacher's device, without gradient."""

    @abstractmethod
    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        """Call a network of the teacher's kind once.

        Returns:
            [B, C, H, W] in the dtype of `x_t`, whatever precision the network computes in.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents into images: [B, 3, H, W] float32, nominally in [-1, 1]."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, [B, 3, H, W] uint8: the most likely latents, without gradient."""

    @abstractmethod
    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the part of a network of the teacher's kind after which its decoder begins.

        Its output, or the first of its outputs, is [B, C, h, w] and depends on all of x_t.
        """

    @abstractmethod
    def save_generator(
        self, network: nn.Module, folder: str | Path, t_init: int, num_steps: int = 1
    ) -> None:
        """Save a generator as a folder that the family's usual library samples."""

    @abstractmethod
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher itself, slowly: images as `decode` gives them."""

    @contextmanager
    def precision_of(self, network: nn.Module) -> Iterator[torch.dtype]:
        """Compute in a network's precision; give the type of its inputs.

        Where its products alone have weights in 16 bits, that is mixed precision.
        """
        weight = next(products(network)).weight
        if weight.dtype != self.products_in:
            yield weight.dtype
            return
        device = weight.device.type
        known = torch.amp.is_autocast_available(device)  # not for `meta`, where costs are counted
        with torch.autocast(device, weight.dtype) if known else nullcontext():
            yield torch.float32

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Turn prompts into conditioning."""
        return self.encode(self.tokenize(prompts))

    def freeze(self) -> None:
        """Make every parameter constant; gradients still flow through to the inputs."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a frozen network has no dropout, whatever Lightning asks."""
        return super().train(False)

    def null_condition(self) -> Conditioning:
        """Return the empty prompt's conditioning, one sample; encoded once per run."""
        if not hasattr(self, "_null"):
            self._null = self.encode_prompts([""])
        device = next(self.network.parameters()).device
        self._null = {name: value.to(device) for name, value in self._null.items()}
        return self._null

    def sample(
        self, network: nn.Module, condition: Conditioning, noises: Sequence[Tensor], t_init: int
    ) -> Tensor:
        """Generate latents with a network of the generator's kind, one evaluation per noise."""
        denoise = denoiser(partial(self.predict, network), self.schedule, condition)
        return sample(denoise, self.schedule, noises, t_init)

    @torch.no_grad()
    def generate(
        self,
        network: nn.Module,
        prompts: Sequence[str],
        seeds: Sequence[int],
        t_init: int,
        num_steps: int,
    ) -> Tensor:
        """Generate one latent per prompt and seed, without touching any random state.

        Args:
            network: The generator.
            prompts: B prompts.
            seeds: B seeds; an image depends on its own prompt and seed alone.
            t_init: The first timestep.
            num_steps: K.

        Returns:
            [B, C, H, W] float32 latents, for `decode`.
        """
        device = next(self.network.parameters()).device
        noises = seeded_noises(seeds, self.latent_shape, num_steps, device)
        return self.sample(network, self.encode_prompts(prompts), noises, t_init)
