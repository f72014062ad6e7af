"""SiD-LSG as a LightningModule: who is trained when.

One iteration is one batch: the fake score takes an optimizer step on the generator's samples
(phase 1), then the generator takes one through the score-identity loss (phase 2), and the
generator's average (EMA) follows.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sid_lsg.checks import check_method, check_timesteps
from sid_lsg.data import PromptBatch
from sid_lsg.draws import Draws, Phase, draw
from sid_lsg.ema import ema_beta, update_ema
from sid_lsg.errors import UsageError
from sid_lsg.generator import sample, seeded_noises
from sid_lsg.gradients import (
    ClipAlgorithm,
    all_reduce_mean,
    clip_gradients,
    gradient_norm,
    repair_gradients,
)
from sid_lsg.guidance import Guidance
from sid_lsg.networks import StableDiffusion
from sid_lsg.objective import fake_score_loss, generator_loss, generator_weight
from sid_lsg.teacher import Conditioning, Teacher, replace_where, select


class PhaseInputs(NamedTuple):
    """What one phase works on: B samples' conditioning and random numbers."""

    condition: Conditioning
    draws: Draws

    @property
    def size(self) -> int:
        """B."""
        return len(self.draws.t)

    def select(self, index: Tensor | slice) -> "PhaseInputs":
        """Take some of the samples."""
        noises, *others = self.draws
        chosen = Draws([z[index] for z in noises], *(tensor[index] for tensor in others))
        return PhaseInputs(select(self.condition, index), chosen)


class FakeScoreOutput(NamedTuple):
    """Phase 1: the loss [B], its weight, the generator's sample, the guided prediction at it."""

    loss: Tensor
    weight: Tensor
    x_g: Tensor
    prediction: Tensor


class GeneratorOutput(NamedTuple):
    """Phase 2: the loss [B], w, the sample, and both networks' guided x_0-estimates."""

    loss: Tensor
    weight: Tensor
    x_g: Tensor
    y_fake_2: Tensor
    y_fake_3: Tensor
    y_real: Tensor


class Update(NamedTuple):
    """What one optimizer step reports: scalars on the device."""

    loss: Tensor
    weight: Tensor
    gradient_norm: Tensor
    skipped_samples: Tensor


Evaluate = Callable[[PhaseInputs], FakeScoreOutput | GeneratorOutput]


class SiDLSG(L.LightningModule):
    """Guided Score identity Distillation of a text-to-image diffusion model (arXiv 2406.01561)."""

    def __init__(
        self,
        teacher: str,
        revision: str | None = None,
        variant: str | None = None,
        subfolders: dict[str, str] | None = None,
        resolution: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008 (frozen; a default that --help can show)
        alpha: float = 1.0,
        t_init: int = 625,
        tmin: int = 20,
        tmax: int = 980,
        num_steps: int = 1,
        prompt_dropout: float = 0.1,
        micro_batch_size: int | None = None,
        optimizer_fake: OptimizerCallable = lambda p: torch.optim.Adam(
            p, lr=1e-6, betas=(0.0, 0.999)
        ),
        optimizer_generator: OptimizerCallable = lambda p: torch.optim.Adam(
            p, lr=1e-6, betas=(0.0, 0.999)
        ),
        ema_halflife_images: float = 50_000.0,
        ema_rampup_ratio: float = 0.05,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        seed: int = 0,
    ) -> None:
        """Load the teacher and copy it into the fake score, the generator and its average.

        Args:
            teacher: The model to distil: a folder in Stable Diffusion's diffusers layout, a Hub id
                such as stable-diffusion-v1-5/stable-diffusion-v1-5, or package:demo/fashion, the
                teacher that comes with this package.
            revision: Branch, tag or commit of the teacher on the Hub.
            variant: Which of the teacher's weight files to load, for example fp16.
            subfolders: Where a part of the teacher does not lie in the folder of its own name, for
                example {unet: unet_ema}.
            resolution: Side of the images in pixels; by default what the teacher was trained for.
            guidance: Guidance scales kappa_1..kappa_4.
            alpha: Weight of the second term of the generator's loss; 1 in the paper's runs.
            t_init: The timestep at which the generator is evaluated, 1..999 for 1000 timesteps.
            tmin: Smallest timestep at which the losses are evaluated.
            tmax: Largest timestep at which the losses are evaluated, plus one.
            num_steps: Evaluations of the generator per image, in training and in sampling.
            prompt_dropout: Probability of replacing a prompt by the empty one in the fake score's
                phase, if that network is guided.
            micro_batch_size: Samples that go through the networks at a time; each process' share of
                the batch is accumulated in micro-batches of this size. By default all at once.
                Changes memory and speed, not the result.
            optimizer_fake: Optimizer of the fake score.
            optimizer_generator: Optimizer of the generator.
            ema_halflife_images: Half-life of the generator's average, in images.
            ema_rampup_ratio: The half-life is at most this share of the images seen so far.
            gradient_clip_val: Limit for the gradients of each network; by default none.
            gradient_clip_algorithm: Limit their total norm, or each entry's value.
            seed: Seed of all noise, timesteps and dropout; follows --seed_everything.

        Raises:
            UsageError: If a value is out of range or the teacher cannot be used.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # load_state_dict below is strict about what matters
        self.kappas = guidance.kappas
        self.alpha = alpha
        self.t_init, self.tmin, self.tmax = t_init, tmin, tmax
        self.num_steps = num_steps
        self.prompt_dropout = prompt_dropout
        self.micro_batch_size = micro_batch_size
        self.optimizer_fake, self.optimizer_generator = optimizer_fake, optimizer_generator
        self.ema_halflife_images, self.ema_rampup_ratio = ema_halflife_images, ema_rampup_ratio
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm: ClipAlgorithm = gradient_clip_algorithm
        self.seed = seed
        check_method(self)

        self.teacher: Teacher = StableDiffusion.from_pretrained(
            teacher, revision, variant, subfolders, resolution
        )
        check_timesteps(self, len(self.teacher.schedule))
        # Convolutions are fastest with the channels last, on CPUs and on tensor cores.
        self.teacher.network.to(memory_format=torch.channels_last)
        self.fake_score = copy.deepcopy(self.teacher.network).requires_grad_(True)
        self.generator = copy.deepcopy(self.teacher.network).requires_grad_(True)
        self.ema = copy.deepcopy(self.teacher.network)
        self.register_state_dict_post_hook(_drop_teacher)

    # ------------------------------------------------------------------ one iteration

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Update the fake score, then the generator, then the generator's average."""
        optimizer_fake, optimizer_generator = self.optimizers()  # type: ignore[misc]
        # Only the generator's step counts: global_step, max_steps, checkpoints and the loggers'
        # x axis then mean iterations.
        optimizer_fake._on_before_step = optimizer_fake._on_after_step = _nothing

        fake = self._update(
            self.phase_inputs(Phase.FAKE_SCORE, batch),
            self.fake_score_phase,
            self.fake_score,
            optimizer_fake,
        )
        with _constant(self.fake_score):
            generator = self._update(
                self.phase_inputs(Phase.GENERATOR, batch),
                self.generator_phase,
                self.generator,
                optimizer_generator,
            )
        images = len(batch.fake) * self.trainer.world_size
        seen = batch.iteration * images
        beta = ema_beta(images, seen, self.ema_halflife_images, self.ema_rampup_ratio)
        update_ema(self.ema, self.generator, beta)
        every = self.trainer.log_every_n_steps
        if every and self.trainer.global_step % every == 0:
            self._log_iteration(fake, generator, seen + images)

    def phase_inputs(self, phase: Phase, batch: PromptBatch) -> PhaseInputs:
        """Encode a phase's prompts, once, and draw its random numbers.

        Prompts are dropped in phase 1 alone, where kappa_1 or kappa_2 guides the fake score; the
        generator sees the dropped prompt too.
        """
        prompts = batch.fake if phase is Phase.FAKE_SCORE else batch.generator
        first = batch.position
        positions = torch.arange(first, first + len(prompts), device=self.device)
        draws = draw(
            phase,
            batch.iteration,
            positions,
            latent_shape=self.teacher.latent_shape,
            num_steps=self.num_steps,
            tmin=self.tmin,
            tmax=self.tmax,
            seed=self.seed,
        )
        condition = self.teacher.encode_prompts(prompts)
        guided = self.kappas.train_fake != 1 or self.kappas.eval_fake_2 != 1
        if phase is Phase.FAKE_SCORE and guided:
            dropped = draws.u < self.prompt_dropout
            condition = replace_where(dropped, condition, self.teacher.null_condition())
        return PhaseInputs(condition, draws)

    def fake_score_phase(self, inputs: PhaseInputs) -> FakeScoreOutput:
        """Evaluate phase 1: the fake score denoises the generator's samples, guided by kappa_1."""
        schedule, (condition, draws) = self.teacher.schedule, inputs
        eps, t = draws.eps, draws.t
        with torch.no_grad():
            x_g = self.sample(self.generator, condition, draws.noises)
        x_t = schedule.add_noise(x_g, eps, t)
        (prediction,) = self.teacher.predict_guided(
            self.fake_score, x_t, t, condition, [self.kappas.train_fake]
        )
        target, weight = schedule.target(x_g, eps, t), schedule.eps_weight(t)
        loss = fake_score_loss(prediction, target, weight)
        return FakeScoreOutput(loss, weight, x_g, prediction)

    def generator_phase(self, inputs: PhaseInputs) -> GeneratorOutput:
        """Evaluate phase 2: the score-identity loss; gradients reach x_g through both networks."""
        schedule, (condition, draws) = self.teacher.schedule, inputs
        eps, t = draws.eps, draws.t
        x_g = self.sample(self.generator, condition, draws.noises)
        x_t = schedule.add_noise(x_g, eps, t)

        def guided_x0(network: nn.Module, *kappas: float) -> list[Tensor]:
            predictions = self.teacher.predict_guided(network, x_t, t, condition, kappas)
            return [schedule.x0(prediction, x_t, t) for prediction in predictions]

        y_fake_2, y_fake_3 = guided_x0(
            self.fake_score, self.kappas.eval_fake_2, self.kappas.eval_fake_3
        )
        (y_real,) = guided_x0(self.teacher.network, self.kappas.eval_real)
        weight = generator_weight(x_g, y_real)
        loss = generator_loss(x_g, y_real, y_fake_2, y_fake_3, weight, self.alpha)
        return GeneratorOutput(loss, weight, x_g, y_fake_2, y_fake_3, y_real)

    # ------------------------------------------------------------------ sampling

    def sample(
        self, network: nn.Module, condition: Conditioning, noises: Sequence[Tensor]
    ) -> Tensor:
        """Generate latents with a network of the generator's kind, one evaluation per noise."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            prediction = self.teacher.predict(network, x_t, t, condition)
            return self.teacher.schedule.x0(prediction, x_t, t)

        return sample(denoise, self.teacher.schedule, noises, self.t_init)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        num_steps: int | None = None,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Generate one latent per prompt and seed, without touching any random state.

        Args:
            prompts: B prompts.
            seeds: B seeds; an image depends on its own prompt and seed alone.
            num_steps: K; by default that of training.
            network: By default the generator's average.

        Returns:
            [B, C, H, W] float32 latents, for `teacher.decode`.
        """
        noises = seeded_noises(
            seeds, self.teacher.latent_shape, num_steps or self.num_steps, self.device
        )
        return self.sample(network or self.ema, self.teacher.encode_prompts(prompts), noises)

    # ------------------------------------------------------------------ optimization

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make the two optimizers."""
        return [
            self.optimizer_fake(self.fake_score.parameters()),
            self.optimizer_generator(self.generator.parameters()),
        ]

    def _update(
        self, inputs: PhaseInputs, evaluate: Evaluate, network: nn.Module, optimizer: Any
    ) -> Update:
        """Accumulate a phase's gradients over its micro-batches and take one optimizer step.

        A sample whose loss is not finite has no part in the step. Masking its loss would not do:
        0 * NaN is NaN in the backward pass and would spoil the whole micro-batch. So the phase is
        evaluated again without that sample, and the others' gradients are exact; the loss stays
        divided by the whole batch.
        """
        batch_size = inputs.size
        optimizer.zero_grad()
        losses, weights = self._accumulate(inputs, evaluate, batch_size)
        finite = losses.isfinite()
        # The one read from the device in a phase: it decides what is computed next.
        if not bool(finite.all()):
            optimizer.zero_grad()
            kept = inputs.select(finite.nonzero()[:, 0])
            losses, weights = self._accumulate(kept, evaluate, batch_size)
        all_reduce_mean(list(network.parameters()))
        optimizer.step()
        return Update(losses.sum() / batch_size, weights.mean(), self._norm, (~finite).sum())

    def _accumulate(
        self, inputs: PhaseInputs, evaluate: Evaluate, divisor: int
    ) -> tuple[Tensor, Tensor]:
        """Backpropagate sum(loss) / divisor; return every sample's loss [B] and weight [B]."""
        losses, weights = inputs.draws.u.new_zeros(2, inputs.size)
        size = self.micro_batch_size or inputs.size
        for start in range(0, inputs.size, size):
            part = slice(start, start + size)
            output = evaluate(inputs.select(part))
            with self._without_reduction():
                self.manual_backward(output.loss.sum() / divisor)
            losses[part], weights[part] = output.loss.detach(), output.weight.flatten()
        return losses, weights

    def _without_reduction(self) -> AbstractContextManager[None]:
        """Keep DistributedDataParallel from reducing: it would reduce both networks each time."""
        wrapper = self.trainer.strategy.model
        return wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Repair, measure and clip the gradients, after a precision plugin has unscaled them."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        repair_gradients(parameters)
        self._norm = gradient_norm(parameters)
        if self.gradient_clip_val is not None:
            clip_gradients(parameters, self.gradient_clip_val, self.gradient_clip_algorithm)

    def _log_iteration(self, fake: Update, generator: Update, images_seen: int) -> None:
        """Log the whole batch's losses and what goes with them."""
        optimizers = self.trainer.optimizers
        losses = {"loss_fake": fake.loss, "loss_generator": generator.loss}
        others = {
            "grad_norm_fake": fake.gradient_norm,
            "grad_norm_generator": generator.gradient_norm,
            "weight": generator.weight,
            "images_seen": float(images_seen),
            "lr_fake": optimizers[0].param_groups[0]["lr"],
            "lr_generator": optimizers[1].param_groups[0]["lr"],
            # Lightning takes the loggers' x axis from this name; its own would be one behind.
            "step": float(self.trainer.global_step),
        }
        # Each rank's loss is divided by its share of the batch: their mean is the whole batch's.
        self.log_dict(losses, prog_bar=True, sync_dist=True)
        self.log_dict(others, sync_dist=True)
        skipped = (fake.skipped_samples + generator.skipped_samples).float()
        self.log("skipped_samples", skipped, sync_dist=True, reduce_fx="sum")

    # ------------------------------------------------------------------ checkpoints

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint's three networks; anything missing, left over or misshapen is refused."""
        own = self.state_dict()
        for name in sorted(own.keys() ^ state_dict.keys()):
            where = "lacks" if name in own else "holds, and this teacher has not,"
            raise UsageError(
                f"--ckpt_path: the checkpoint {where} {name!r}: it is of another model."
            )
        for name, value in own.items():
            if value.shape != state_dict[name].shape:
                raise UsageError(
                    f"--ckpt_path: {name!r} is {list(state_dict[name].shape)} in the checkpoint and "
                    f"{list(value.shape)} in this teacher: it is of another model."
                )
        return super().load_state_dict(state_dict, strict=False)


def _drop_teacher(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the frozen networks out of checkpoints: they come from the teacher's own files."""
    for name in [name for name in state_dict if name.startswith(prefix + "teacher.")]:
        del state_dict[name]


@contextmanager
def _constant(network: nn.Module) -> Iterator[None]:
    """Stop gradients to a network's weights, not through it to its inputs."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _nothing() -> None:
    """Count nothing."""
