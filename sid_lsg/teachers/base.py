"""The interface between the method and the diffusion model it distils.

Everything outside this wing sees a teacher through this class alone. Another family of models (two
text encoders, a flow-matching transformer) is a subclass in a file of its own and a line in
`families.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.sampling import denoiser, sample, seeded_noises
from sid_lsg.method.schedule import Schedule

Tokens = dict[str, Tensor]
"""What a tokenizer makes of prompts: named tensors, the first dimension over prompts."""

Tokenize = Callable[[Sequence[str]], Tokens]


def linear_layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the linear and convolution layers, which mixed precision runs in 16 bits."""
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


class Architecture(Protocol):
    """An untrained model that a family can make."""

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Return the Hub ids of models of this architecture."""


class Teacher(nn.Module, ABC):
    """A frozen text-to-image diffusion model; the fake score and generator are copies of `network`.

    Attributes:
        network_name: What diffusers calls the denoising network, in pipelines and in folders:
            "unet" or "transformer".
        architectures: The family's untrained models, by the NAME of `architecture:NAME`.
        pipeline_options: Arguments with which the family's pipeline samples a generator: no
            guidance.
        network: The denoising network, f_phi.
        schedule: alpha_t, sigma_t, the prediction type and the times.
        scheduler_config: The configuration of the scheduler that the model came with.
        latent_shape: (C, H, W) of a latent at the chosen resolution.
        image_size: (H, W) of an image in pixels.
        frozen_dtype: The dtype of the frozen weights of linear and convolution layers, if it is
            not that of the others (`memory.set_frozen_precision`).
    """

    network_name: ClassVar[str]
    architectures: ClassVar[Mapping[str, Architecture]] = {}
    pipeline_options: ClassVar[Mapping[str, Any]] = {"guidance_scale": 0}
    network: nn.Module
    schedule: Schedule
    scheduler_config: dict[str, Any]
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    frozen_dtype: torch.dtype | None = None

    # ------------------------------------------------------------------ opening a model

    @classmethod
    @abstractmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        variant: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> Self:
        """Load a folder or Hub id of the family in float32, from safetensors alone.

        The arguments and errors are those of `families.load`.
        """

    @classmethod
    @abstractmethod
    def outline(
        cls,
        model: str,
        revision: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> Self:
        """Make a folder's or Hub id's model on the meta device, from its configuration files."""

    @classmethod
    def build(
        cls,
        name: str,
        device: str | torch.device | None = None,
        resolution: int | None = None,
        seed: int = 0,
        option: str = "model.teacher",
    ) -> Self:
        """Make one of the family's architectures with random weights, without a download.

        Args:
            name: One of `architectures`.
            device: Where its weights are made, by default PyTorch's default device; on "meta" they
                have shapes alone, for counting.
            resolution: Pixels of an image's side.
            seed: Seed of the weights. The global random state is as before.
            option: The option that named it, for messages.

        Raises:
            UsageError: If the architecture cannot take the resolution.
        """
        raise NotImplementedError(f"{cls.__name__} has no architectures")

    # ------------------------------------------------------------------ text

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizers of transformers by their subfolders."""
        return {}

    @property
    @abstractmethod
    def tokenize(self) -> Tokenize:
        """Return the function from prompts to tokens, on the CPU; data workers copy it."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Conditioning:
        """Turn tokens into conditioning, on the teacher's device, without gradient."""

    def encode_null(self) -> Conditioning:
        """Return the conditioning of no prompt, one sample: that of the empty prompt by default."""
        return self.encode_prompts([""])

    def cut_off(self, prompt: str) -> str:
        """Return the part of a prompt that is cut off because it is too long; "" for none."""
        return ""

    # ------------------------------------------------------------------ networks

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
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher itself in many steps: images as from `decode`."""

    # ------------------------------------------------------------------ diffusers

    @abstractmethod
    def pipeline(self, network: nn.Module, scheduler: Any) -> Any:
        """Make the family's diffusers pipeline of a network, a scheduler and the other parts."""

    def predicted_by(self, scheduler_config: Mapping[str, Any]) -> str:
        """Return the prediction type of networks that come with a scheduler of the family."""
        return self.schedule.prediction_type

    def scheduler_options(self, t_init: int) -> dict[str, Any]:
        """Return the arguments that tell `export.scheduler.SiDScheduler` the schedule.

        The default is for flow matching, where alpha_t = 1 - t and sigma_t = t.

        Args:
            t_init: The generator's first timestep.
        """
        return {
            "num_train_timesteps": len(self.schedule),
            "prediction_type": self.schedule.prediction_type,
            "t_init": t_init,
        }

    def one_step_scheduler(self, t_init: int) -> Any | None:
        """Return a scheduler of diffusers that samples a generator in one step, if there is one.

        Args:
            t_init: The generator's first timestep.
        """
        return None

    # ------------------------------------------------------------------ what families share

    @contextmanager
    def precision_of(self, network: nn.Module) -> Iterator[torch.dtype]:
        """Compute in a network's precision, and yield the dtype of its inputs.

        If only its linear and convolution layers have 16-bit weights, that is mixed precision.
        """
        weight = next(linear_layers(network)).weight
        if weight.dtype != self.frozen_dtype:
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
        """Freeze every parameter; gradients still flow to the inputs."""
        self.requires_grad_(False).eval()

    @property
    def network_options(self) -> dict[str, Any]:
        """Return the configuration of the network, as diffusers stores it."""
        network: Any = self.network
        return dict(network.config)

    def use_channels_last(self) -> None:
        """Put the network's weights into the memory format in which convolutions are fastest."""
        network: Any = self.network
        network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a frozen network has no dropout, whatever Lightning asks."""
        return super().train(False)

    def null_condition(self) -> Conditioning:
        """Return the conditioning of no prompt, one sample; encoded once per run."""
        if not hasattr(self, "_null"):
            self._null = self.encode_null()
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
