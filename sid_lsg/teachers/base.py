"""The interface between the method and the diffusion model it distils.

The rest of the package uses teachers only through this class. To add a family (two text encoders, a
flow-matching transformer), write a subclass in a new file and add a line to `families.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from sid_lsg.method.choices import Noise
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.method.guidance import Rescale, sampling_evaluations
from sid_lsg.method.sampling import denoiser, sample, seeded_noises
from sid_lsg.method.schedule import Schedule
from sid_lsg.teachers.precision import (
    FLOAT32,
    Dtypes,
    autocast_dtype,
    backbone,
    in_8_bits,
    linear_layers,
    without_float16,
)
from sid_lsg.teachers.remembered import Remembered, drop_weights

Tokens = dict[str, Tensor]
"""A tokenizer's output: named tensors, with one row per prompt."""

Tokenize = Callable[[Sequence[str]], Tokens]


_AT_ONCE = 64  # prompts that are encoded at a time; Qwen 2.5 VL takes 75 MiB for each


class Architecture(Protocol):
    """An untrained model that a family can make."""

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Return the Hub ids of models of this architecture."""


class Teacher(nn.Module, ABC):
    """A frozen text-to-image diffusion model; the fake score and generator are copies of `network`.

    Attributes:
        network_name: The denoising network's name in diffusers' pipelines and folders: "unet" or
            "transformer".
        architectures: The family's untrained models, by the NAME in `architecture:NAME`.
        pipeline_options: Arguments of the family's pipeline that sample a generator without
            guidance.
        missing_parts: Parts of the family's pipeline that this model lacks.
        original_layout: How the original code stores the model, by its name in
            `export.original.models`; None if no tool reads one file of it.
        hands_generator_on: Whether the family's pipeline hands its random generator to the
            scheduler; else the noise of the steps after the first follows PyTorch's global seed.
        logit_limit: Limit of the discriminator's logits (`method.adversarial`); None for no limit.
        network: The denoising network, f_phi.
        schedule: alpha_t, sigma_t, the prediction type and the timesteps.
        scheduler_config: The configuration of the model's scheduler.
        latent_shape: (C, H, W) of a latent at the chosen resolution.
        image_size: (H, W) of an image in pixels.
        max_sequence_length: Tokens of the text encoder whose length can be chosen; None if there is
            none.
        embeds_guidance: Whether the networks take a guidance scale as an input, which conditioning
            then has as `method.guidance.EMBEDDED`; 1 for generators.
        null_kind: "zeros" or "empty" (the empty prompt) if the null conditioning can be chosen.
        remembered: The conditioning of all prompts, after `encode_once`.
        load_again: Loads a part by its name in `pipeline`.
    """

    network_name: ClassVar[str]
    architectures: ClassVar[Mapping[str, Architecture]] = {}
    pipeline_options: Mapping[str, Any] = {"guidance_scale": 0}
    missing_parts: Sequence[str] = ()
    original_layout: str | None = None
    logit_limit: ClassVar[float | None] = None
    hands_generator_on: ClassVar[bool] = True
    network: nn.Module
    schedule: Schedule
    scheduler_config: dict[str, Any]
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    max_sequence_length: int | None = None
    null_kind: str | None = None
    embeds_guidance: bool = False
    remembered: Remembered | None = None
    load_again: Callable[[str], nn.Module] | None = None

    # ------------------------------------------------------------------ loading

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
        dtypes: Dtypes = FLOAT32,
    ) -> Self:
        """Load a folder or Hub id of the family, from safetensors only.

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
        """Make the model of a folder or Hub id on the meta device, from its configuration files."""

    @classmethod
    def check_configs(
        cls,
        model: str,
        where: Mapping[str, str] | None = None,
        revision: str | None = None,
        option: str = "model.teacher",
        index: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the parts' configurations, before their weights are read; by default nothing.

        Args:
            model: The model's folder or Hub id.
            where: The parts' subfolders; by default the parts' names.
            revision: Branch, tag or commit on the Hub.
            option: The option that named the model, for messages.
            index: The model's index; networks that it gives another class are not checked.

        Raises:
            UsageError: If a part is of another class, or has a field that this family does not
                know how to serve.
        """

    @classmethod
    def build(
        cls,
        name: str,
        device: str | torch.device | None = None,
        resolution: int | None = None,
        seed: int = 0,
        option: str = "model.teacher",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Make one of the family's architectures with random weights; nothing is downloaded.

        Args:
            name: One of `architectures`.
            device: Device of the weights; PyTorch's default device by default. On "meta" they have
                only shapes, for counting.
            resolution: Pixels per side of an image.
            seed: Seed of the weights. The global random state does not change.
            option: The option that named the model, for messages.
            dtype: Dtype of the network's linear and convolution weights; others are float32.

        Raises:
            UsageError: If the architecture cannot take the resolution.
        """
        raise NotImplementedError(f"{cls.__name__} has no architectures")

    # ------------------------------------------------------------------ text

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Return the transformers tokenizers by subfolder."""
        return {}

    @property
    @abstractmethod
    def tokenize(self) -> Tokenize:
        """Return a function from prompts to tokens on the CPU; data workers copy it."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Conditioning:
        """Turn tokens into conditioning on the teacher's device, without gradients."""

    def encode_null(self) -> Conditioning:
        """Return the null conditioning of one sample; by default that of the empty prompt."""
        return self.encode_prompts([""])

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that is cut off because it is too long; "" if none is."""
        return ""

    # ------------------------------------------------------------------ networks

    @abstractmethod
    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        """Call a network of the teacher's architecture once.

        Returns:
            [B, C, H, W] in the dtype of `x_t`, for any precision of the network.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents into images: [B, 3, H, W] float32, nominally in [-1, 1]."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, [B, 3, H, W] uint8, into their most likely latents, without gradients."""

    @abstractmethod
    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        """Return the module whose output are the discriminator's features (`method.adversarial`).

        In a UNet, the decoder starts after it and its output (the first, if there are several) is
        [B, C, h, w]; in a transformer, it is the final norm, and its output is [B, tokens, C].
        """

    @abstractmethod
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample images from the teacher itself in many steps, as `decode` returns them."""

    @property
    def rescale(self) -> Rescale | None:
        """Return what the family's pipeline does to a guided prediction; None for nothing."""
        return None

    def sampling_evaluations(self, num_steps: int, guidance: float) -> int:
        """Return the NFE of `sample_reference`; a guidance embedding needs no second pass."""
        return sampling_evaluations(num_steps, 1.0 if self.embeds_guidance else guidance)

    # ------------------------------------------------------------------ diffusers

    @abstractmethod
    def pipeline(self, network: nn.Module, scheduler: Any) -> Any:
        """Make the family's diffusers pipeline from a network, a scheduler and the other parts."""

    def predicted_by(self, scheduler_config: Mapping[str, Any]) -> str:
        """Return the prediction type of a network from the configuration of its scheduler."""
        return self.schedule.prediction_type

    def scheduler_options(self, t_init: int) -> dict[str, Any]:
        """Return the schedule as arguments of `export.scheduler.SiDScheduler`.

        The default is for flow matching, where alpha_t = 1 - t and sigma_t = t.

        Args:
            t_init: The generator's first timestep.
        """
        return {
            "num_train_timesteps": len(self.schedule),
            "prediction_type": self.schedule.prediction_type,
            "t_init": t_init,
            "shift": getattr(self.schedule, "shift", 1.0),
        }

    def one_step_scheduler(self, t_init: int) -> Any | None:
        """Return a diffusers scheduler that samples a generator in one step, or None.

        Args:
            t_init: The generator's first timestep.
        """
        return None

    def stock_scheduler(self, t_init: int, num_steps: int, noise: Noise) -> Any | None:
        """Return a diffusers scheduler that samples a generator, or None.

        By default only for one step: no scheduler of diffusers for diffusion adds fresh noise to
        x_0 at the generator's timesteps.

        Args:
            t_init: The generator's first timestep.
            num_steps: K.
            noise: The noise of the later steps.
        """
        return self.one_step_scheduler(t_init) if num_steps == 1 else None

    # ------------------------------------------------------------------ shared by all families

    @contextmanager
    def precision_of(self, network: nn.Module) -> Iterator[torch.dtype]:
        """Compute in a network's precision within the context; yield the dtype of its inputs."""
        weight, half = next(linear_layers(backbone(network))).weight, autocast_dtype(network)
        if half is None:
            yield weight.dtype
            return
        device = weight.device.type
        known = torch.amp.is_autocast_available(device)  # not on `meta`, for counting
        with torch.autocast(device, half) if known else nullcontext():
            yield torch.float32

    def condition_on(self, tokens: Tokens) -> Conditioning:
        """Turn tokens into conditioning on the device of the network, some prompts at a time."""
        device = next(self.network.parameters()).device
        size = len(next(iter(tokens.values())))
        slices = [slice(first, first + _AT_ONCE) for first in range(0, size, _AT_ONCE)]
        with without_float16():
            parts = [self.encode({n: ids[own] for n, ids in tokens.items()}) for own in slices]
        return {
            name: (torch.cat([part[name] for part in parts]) if parts[1:] else value).to(device)
            for name, value in parts[0].items()
        }

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Turn prompts into conditioning on the device of the network.

        Raises:
            UsageError: If the text encoders were dropped before a prompt was encoded.
        """
        if self.remembered is None:
            return self.condition_on(self.tokenize(prompts))
        device = next(self.network.parameters()).device
        return {name: value.to(device) for name, value in self.remembered[prompts].items()}

    def encode_once(self, prompts: Iterable[str]) -> None:
        """Encode all prompts of a run, and drop the text encoders.

        Raises:
            UsageError: If there are too many prompts.
        """
        self.remembered = Remembered(prompts, self.encode_prompts)
        self.keep_text_apart()
        for part in self.text_parts.values():
            drop_weights(part)

    def whole_part(self, name: str, part: nn.Module) -> nn.Module:
        """Return a part of `pipeline`; load it, in float32, if it has no weights or is rounded.

        Raises:
            UsageError: If it cannot be loaded.
        """
        weight = next(part.parameters())
        whole = not weight.is_meta and not in_8_bits(part) and weight.dtype == torch.float32
        if whole or self.load_again is None:
            return part
        return self.load_again(name)

    @property
    def text_parts(self) -> dict[str, nn.Module]:
        """Return the text encoders, the attributes whose names begin with `text`."""
        found = self._modules | self.__dict__
        return {
            name: part
            for name, part in found.items()
            if name.startswith("text") and isinstance(part, nn.Module)
        }

    @property
    def text_is_apart(self) -> bool:
        """Return whether the text encoders stay where they are when the teacher moves."""
        return not self.text_parts.keys() <= self._modules.keys()

    def keep_text_apart(self) -> None:
        """Keep the text encoders where they are when the teacher moves to another device."""
        for name, part in self.text_parts.items():
            self._modules.pop(name, None)
            object.__setattr__(self, name, part.requires_grad_(False).eval())

    def freeze(self) -> None:
        """Freeze every parameter; gradients still flow to the inputs."""
        self.requires_grad_(False).eval()

    @property
    def network_options(self) -> dict[str, Any]:
        """Return the configuration of the network, as diffusers stores it."""
        network: Any = self.network
        return dict(network.config)

    def use_channels_last(self) -> None:
        """Convert the network to channels-last, the fastest memory format for convolutions."""
        network: Any = self.network
        network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: Lightning calls `train()`, which would enable dropout."""
        return super().train(False)

    def null_condition(self) -> Conditioning:
        """Return the null conditioning of one sample, which is encoded once per run."""
        if not hasattr(self, "_null"):
            self._null = self.encode_null()
        device = next(self.network.parameters()).device
        self._null = {name: value.to(device) for name, value in self._null.items()}
        return self._null

    def sample(
        self,
        network: nn.Module,
        condition: Conditioning,
        noises: Sequence[Tensor],
        t_init: int,
        noise: Noise = "fresh",
    ) -> Tensor:
        """Generate latents with a generator, one network evaluation per noise."""
        denoise = denoiser(partial(self.predict, network), self.schedule, condition)
        return sample(denoise, self.schedule, noises, t_init, noise=noise)

    @torch.no_grad()
    def generate(
        self,
        network: nn.Module,
        prompts: Sequence[str],
        seeds: Sequence[int],
        t_init: int,
        num_steps: int,
        noise: Noise = "fresh",
    ) -> Tensor:
        """Generate one latent per prompt and seed; no random state changes.

        Args:
            network: The generator.
            prompts: B prompts.
            seeds: B seeds; each image depends only on its prompt and seed.
            t_init: The first timestep.
            num_steps: K.
            noise: The noise of the later steps.

        Returns:
            [B, C, H, W] float32 latents, for `decode`.
        """
        device = next(self.network.parameters()).device
        noises = seeded_noises(seeds, self.latent_shape, num_steps, device)
        return self.sample(network, self.encode_prompts(prompts), noises, t_init, noise)
