"""A baseline iteration that works as the official code does: the same numbers, more slowly.

It computes what `SiDLSG` computes, with these differences: the text encoder is called eight times
per iteration, since each network call encodes its prompts and, for each sample, the empty prompt;
x_0 is estimated one sample at a time through a diffusers scheduler; gradient repair and EMA loop
over the parameters; tensors have PyTorch's contiguous memory format; and the iteration ends with a
full garbage collection. Only `--benchmark.compare_official` uses it.
"""

import copy
import gc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from sid_lsg.method.conditioning import Conditioning, concatenate
from sid_lsg.method.ema import ema_beta
from sid_lsg.method.guidance import Kappas
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.optimizers.adam import BETAS, LEARNING_RATE
from sid_lsg.teachers.base import Teacher


class Noise(NamedTuple):
    """Random numbers of a phase: z and eps [B, C, H, W], t [B] int64."""

    z: Tensor
    eps: Tensor
    t: Tensor


class Baseline:
    """Networks, optimizers and EMA of a run, in float32 on the teacher's device.

    Attributes:
        collect: Whether an iteration ends with a garbage collection.
    """

    def __init__(
        self,
        teacher: Teacher,
        kappas: Kappas,
        alpha: float = 1.0,
        t_init: int = 625,
        tmin: int = 20,
        tmax: int = 980,
        prompt_dropout: float = 0.1,
        micro_batch_size: int | None = None,
        lr: float = LEARNING_RATE,
        collect: bool = True,
    ) -> None:
        """Copy the teacher's network; the arguments are those of `SiDLSG`.

        Raises:
            ValueError: If kappa_2 and kappa_3 differ, or the teacher is no discrete diffusion whose
                null conditioning is the empty prompt's.
        """
        if kappas.eval_fake_2 != kappas.eval_fake_3:
            raise ValueError("the baseline has one guidance scale for kappa_2 and kappa_3")
        if not isinstance(teacher.schedule, DiscreteSchedule):
            raise ValueError("the baseline samples through the timesteps of a DDPM scheduler")
        if teacher.null_kind not in (None, "empty"):
            raise ValueError("the baseline's null conditioning is that of the empty prompt")
        self.kappas, self.alpha, self.t_init = kappas, alpha, t_init
        self.tmin, self.tmax, self.prompt_dropout = tmin, tmax, prompt_dropout
        self.micro_batch_size, self.collect = micro_batch_size, collect
        self.encode, self.evaluate = teacher.encode_prompts, teacher.predict
        self.latent_shape = teacher.latent_shape
        self.scheduler = DDPMScheduler.from_config(teacher.scheduler_config, clip_sample=False)
        self.device = next(teacher.network.parameters()).device

        def copied() -> nn.Module:
            network: Any = copy.deepcopy(teacher.network)
            network.to(memory_format=torch.contiguous_format)
            return network.requires_grad_(False).eval()

        self.teacher, self.fake_score, self.generator, self.ema = (copied() for _ in range(4))
        self.optimizers = {
            network: torch.optim.Adam(network.parameters(), lr=lr, betas=BETAS)
            for network in (self.fake_score, self.generator)
        }
        self.images_seen = 0

    def iteration(self, fake: Sequence[str], generator: Sequence[str]) -> tuple[float, float]:
        """Train on B prompts per phase and return both phases' losses."""
        guided = self.kappas.train_fake != 1 or self.kappas.eval_fake_2 != 1
        dropout = self.prompt_dropout if guided else 0.0
        kept = ["" if float(u) < dropout else p for u, p in zip(torch.rand(len(fake)), fake)]  # noqa: B905
        losses = (
            self.fake_score_phase(kept, self.draw(len(fake))),
            self.generator_phase(generator, self.draw(len(generator))),
        )
        beta = ema_beta(len(fake), self.images_seen, 50_000.0, 0.05)
        self.update_ema(beta)
        self.images_seen += len(fake)
        if self.collect:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return losses

    def draw(self, size: int) -> Noise:
        """Draw a phase's random numbers."""
        shape, device = (size, *self.latent_shape), self.device
        z, eps = torch.randn(shape, device=device), torch.randn(shape, device=device)
        return Noise(z, eps, torch.randint(self.tmin, self.tmax, (size,), device=device))

    # ------------------------------------------------------------------ the two phases

    def fake_score_phase(self, prompts: Sequence[str], noise: Noise) -> float:
        """Run phase 1 and its optimizer step; return the loss."""
        self.fake_score.requires_grad_(True)
        total = 0.0
        for part, (z, eps, t) in self._micro_batches(prompts, noise):
            with torch.no_grad():
                x_g = self.sample(part, z)
            x_t = self.scheduler.add_noise(x_g, eps, t)
            prediction = self.predict(self.fake_score, x_t, t, part, self.kappas.train_fake)
            if self.scheduler.config.prediction_type == "v_prediction":
                target = self.scheduler.get_velocity(x_g, eps, t)
                weight = self.scheduler.alphas_cumprod.to(self.device)[t].view(-1, 1, 1, 1)
            else:
                target, weight = eps, torch.ones_like(eps[:, :1, :1, :1])
            bad = torch.isnan(prediction).flatten(1).any(1)
            if bad.any():
                prediction, target, weight = prediction[~bad], target[~bad], weight[~bad]
            loss = (weight * (prediction - target) ** 2).sum() / len(prompts)
            loss.backward()
            total += loss.item()
        self._step(self.fake_score)
        self.fake_score.requires_grad_(False)
        return total

    def generator_phase(self, prompts: Sequence[str], noise: Noise) -> float:
        """Run phase 2 and its optimizer step; return the loss."""
        self.generator.requires_grad_(True)
        total = 0.0
        for part, (z, eps, t) in self._micro_batches(prompts, noise):
            x_g = self.sample(part, z)
            x_t = self.scheduler.add_noise(x_g, eps, t)
            y_fake = self.x0(
                self.predict(self.fake_score, x_t, t, part, self.kappas.eval_fake_2), x_t, t
            )
            y_real = self.x0(
                self.predict(self.teacher, x_t, t, part, self.kappas.eval_real), x_t, t
            )
            bad = torch.isnan(y_real + y_fake + x_g).flatten(1).any(1)
            if bad.any():
                y_real, y_fake, x_g = y_real[~bad], y_fake[~bad], x_g[~bad]
            with torch.no_grad():
                weight = (x_g - y_real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
            toward = y_real - y_fake
            loss = toward * ((y_real - x_g) - self.alpha * toward) / weight
            loss = loss.sum() / len(prompts)
            loss.backward()
            total += loss.item()
        self._step(self.generator)
        self.generator.requires_grad_(False)
        return total

    def _micro_batches(
        self, prompts: Sequence[str], noise: Noise
    ) -> list[tuple[Sequence[str], Noise]]:
        size = self.micro_batch_size or len(prompts)
        return [
            (prompts[first : first + size], Noise(*(n[first : first + size] for n in noise)))
            for first in range(0, len(prompts), size)
        ]

    def _step(self, network: nn.Module) -> None:
        """Replace non-finite gradients, one parameter at a time, and step the optimizer."""
        for p in network.parameters():
            if p.grad is not None:
                torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
        optimizer = self.optimizers[network]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update_ema(self, beta: float) -> None:
        """Update the EMA of the generator, one parameter at a time."""
        for ema, p in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            ema.copy_(p.detach().lerp(ema, beta))

    # ------------------------------------------------------------------ networks and text

    def sample(self, prompts: Sequence[str], z: Tensor) -> Tensor:
        """Sample the generator in one step."""
        t = torch.full((len(z),), self.t_init, dtype=torch.int64, device=self.device)
        x_t = self.scheduler.add_noise(torch.zeros_like(z), z, t)
        prediction = self.evaluate(self.generator, x_t, t, self.encode(prompts))
        # All samples have the same timestep, so one call is enough.
        return self.scheduler.step(prediction, self.t_init, x_t).pred_original_sample

    def predict(
        self, network: nn.Module, x_t: Tensor, t: Tensor, prompts: Sequence[str], kappa: float
    ) -> Tensor:
        """Predict with guidance: prompts and empty prompts in one doubled batch."""
        condition: Conditioning = self.encode(prompts)
        if kappa == 1:
            return self.evaluate(network, x_t, t, condition)
        both = concatenate(self.encode([""] * len(prompts)), condition)
        doubled = self.evaluate(network, torch.cat([x_t] * 2), torch.cat([t] * 2), both)
        uncond, cond = doubled.chunk(2)
        return uncond + kappa * (cond - uncond)

    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Estimate x_0 one sample at a time, since `scheduler.step` takes a single timestep."""
        return torch.cat(
            [
                self.scheduler.step(
                    prediction[i : i + 1], t[i], x_t[i : i + 1]
                ).pred_original_sample
                for i in range(len(t))
            ]
        )
