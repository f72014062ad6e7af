"""A second family of teachers, as small and as different from Stable Diffusion as possible.

It has a transformer, two text inputs, latents of two channels, flow matching with real times, no
VAE and no tokenizer, and zeros as null conditioning. This file has all that a family needs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from sid_lsg.files.loading import explained, load_network
from sid_lsg.images.pixels import from_uint8
from sid_lsg.method.conditioning import Conditioning, expand
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.teachers.base import Teacher, Tokenize, Tokens
from sid_lsg.teachers.layout import locate_parts
from sid_lsg.teachers.precision import FLOAT32, Dtypes

REGISTERED = "tests.helpers.fake_family.FakeFamily"
PARTS = ("transformer", "text_encoder", "scheduler")
LENGTH, WIDTH, POOLED, CHANNELS, FACTOR = 6, 8, 4, 2, 2


class FakeTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Two convolutions, conditioned on the time and on both texts."""

    @register_to_config
    def __init__(self, sample_size: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.to_q = nn.Linear(WIDTH, WIDTH)
        self.pooled = nn.Linear(POOLED + 1, WIDTH)
        self.conv_out = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor
    ) -> Tensor:
        time = (timestep / 1000).to(pooled.dtype)[:, None]
        told = self.to_q(words).mean(1) + self.pooled(torch.cat((pooled, time), 1))
        return self.conv_out(F.silu(self.conv_in(hidden_states) + told[:, :, None, None]))


class FakeTextEncoder(ModelMixin, ConfigMixin):
    """An embedding of bytes, and one of a prompt's length."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.lengths = nn.Embedding(LENGTH + 1, POOLED)


class FakePipeline(DiffusionPipeline):
    """A diffusers pipeline that samples without guidance."""

    def __init__(self, transformer: Any, text_encoder: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, text_encoder=text_encoder, scheduler=scheduler
        )

    @torch.no_grad()
    def __call__(
        self, prompts: list[str], num_inference_steps: int, generator: list[torch.Generator]
    ) -> Tensor:
        """Return latents."""
        size = self.transformer.config.sample_size
        noise = [torch.randn(CHANNELS, size, size, generator=g) for g in generator]
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.stack(noise) * self.scheduler.init_noise_sigma
        condition = encode(self.text_encoder, tokenize(prompts))
        for t in self.scheduler.timesteps:
            v = self.transformer(x, t.expand(len(x)), **condition)
            x = self.scheduler.step(v, t, x, generator=generator, return_dict=False)[0]
        return x


def tokenize(prompts: Sequence[str]) -> Tokens:
    """Return the prompts' first bytes [B, L] and their numbers [B]."""
    cut = [prompt.encode()[:LENGTH] for prompt in prompts]
    return {
        "bytes": torch.tensor([list(text.ljust(LENGTH, b"\0")) for text in cut]),
        "lengths": torch.tensor([len(text) for text in cut]),
    }


@torch.no_grad()
def encode(text_encoder: Any, tokens: Tokens) -> Conditioning:
    """Embed tokens: `words` [B, L, D] and `pooled` [B, P]."""
    device = text_encoder.device
    return {
        "words": text_encoder.bytes(tokens["bytes"].to(device)),
        "pooled": text_encoder.lengths(tokens["lengths"].to(device)),
    }


class FakeFamily(Teacher):
    """A family with a transformer, flow matching and no VAE."""

    network_name = "transformer"
    pipeline_options: Mapping[str, Any] = {}

    def __init__(
        self, transformer: Any, text_encoder: Any, scheduler: Any, resolution: int | None
    ) -> None:
        super().__init__()
        self.network, self.text_encoder = transformer, text_encoder
        self.scheduler_config = dict(scheduler)
        self.schedule = FlowSchedule()
        size = resolution // FACTOR if resolution else transformer.config.sample_size
        transformer.register_to_config(sample_size=size)
        self.latent_shape = (CHANNELS, size, size)
        self.image_size = (size * FACTOR, size * FACTOR)
        self.freeze()

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        variant: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
        dtypes: Dtypes = FLOAT32,
    ) -> "FakeFamily":
        source, where, _ = locate_parts(
            model, PARTS, subfolders, option, "the fake family", "FakePipeline", revision
        )
        with explained(f"--{option}: could not load {model!r}", "Give a fake."):
            networks = [
                load_network(kind, source, subfolder=where[name], variant=variant)
                for kind, name in ((FakeTransformer, PARTS[0]), (FakeTextEncoder, PARTS[1]))
            ]
            subfolder = where["scheduler"]
            scheduler = FlowMatchEulerDiscreteScheduler.load_config(source, subfolder=subfolder)
        return cls(*networks, scheduler, resolution)

    @classmethod
    def outline(
        cls,
        model: str,
        revision: str | None = None,
        subfolders: Mapping[str, str] | None = None,
        resolution: int | None = None,
        option: str = "model.teacher",
    ) -> "FakeFamily":
        with torch.device("meta"):
            return cls(FakeTransformer(), FakeTextEncoder(), {}, resolution)

    @property
    def tokenize(self) -> Tokenize:
        return tokenize

    def encode(self, tokens: Tokens) -> Conditioning:
        return encode(self.text_encoder, tokens)

    def encode_null(self) -> Conditioning:
        """Return zeros as null conditioning."""
        condition = self.encode_prompts([""])
        return {name: torch.zeros_like(value) for name, value in condition.items()}

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, condition: Conditioning
    ) -> Tensor:
        with self.precision_of(network) as dtype:
            named = {name: value.to(dtype) for name, value in condition.items()}
            time = self.schedule.network_time(t)
            return network(x_t.to(dtype), time, **named).to(x_t.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        mean = latents.mean(1, keepdim=True)
        return F.interpolate(torch.cat((latents, mean), 1), scale_factor=FACTOR).float()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(from_uint8(images)[:, :CHANNELS], FACTOR)

    def end_of_encoder(self, network: nn.Module) -> nn.Module:
        conv: nn.Module = network.get_submodule("conv_in")
        return conv

    @torch.no_grad()
    def sample_reference(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Take Euler steps along the guided velocity."""
        noise = [torch.randn(self.latent_shape, generator=seeded(seed)) for seed in seeds]
        x = torch.stack(noise).to(next(self.network.parameters()).device)
        condition = self.encode_prompts(prompts)
        null = expand(self.encode_null(), len(prompts))
        for i in range(num_steps):
            t = torch.full((len(x),), 1 - i / num_steps, device=x.device)
            cond, uncond = (self.predict(self.network, x, t, c) for c in (condition, null))
            x = x - (uncond + guidance * (cond - uncond)) / num_steps
        return self.decode(x)

    def pipeline(self, network: nn.Module, scheduler: Any) -> FakePipeline:
        return FakePipeline(network, self.text_encoder, scheduler)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save_fake(folder: Path) -> str:
    """Write a model of the family with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = FakeTransformer(), FakeTextEncoder(), FlowMatchEulerDiscreteScheduler()
    FakePipeline(*parts).save_pretrained(folder)
    return str(folder)
