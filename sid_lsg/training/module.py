"""SiD-LSG as a LightningModule.

One iteration processes one batch. The fake score takes an optimizer step on the generator's samples
(phase 1), the generator takes one on the score-identity loss (phase 2), and the generator's EMA is
updated.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from sid_lsg.data.prompts import PromptBatch
from sid_lsg.method.adversarial import RealSamples
from sid_lsg.method.choices import Noise, Objective, StepTraining, Weighting
from sid_lsg.method.conditioning import Conditioning, Predict, drop_prompts
from sid_lsg.method.draws import REAL_IMAGES, Draws, Phase, draw, draw_steps
from sid_lsg.method.ema import ema_beta
from sid_lsg.method.guidance import Guiding
from sid_lsg.method.phases import (
    FakeScoreOutput,
    GeneratorOutput,
    Networks,
    PhaseInputs,
    fake_score_phase,
    generator_phase,
)
from sid_lsg.method.post_hoc_ema import WIDTHS, power_beta
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.buffers import share_buffers
from sid_lsg.networks.compilation import as_written, compile_blocks
from sid_lsg.networks.initial import start
from sid_lsg.networks.lora import copy_trainable
from sid_lsg.networks.memory import (
    borrowed,
    check_ema_device,
    checkpoint_gradients,
    loaded_dtypes,
    recompute,
    set_frozen_precision,
    set_text,
)
from sid_lsg.networks.precision import allow_tf32
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.options.flow import Flow, flow_times
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.method import Method
from sid_lsg.options.real_data import RealData, check_objective
from sid_lsg.options.text import Text
from sid_lsg.options.training import (
    EMA,
    Adapters,
    Compute,
    Gradients,
    InitialWeights,
    Loading,
    Memory,
)
from sid_lsg.teachers.base import Teacher, Tokens
from sid_lsg.teachers.distilled import check_not_distilled
from sid_lsg.teachers.families import load
from sid_lsg.teachers.precision import backbone
from sid_lsg.training.alternating import AlternatingModule, frozen, trained_by
from sid_lsg.training.callback import all_prompts
from sid_lsg.training.discriminator import Discriminator, required
from sid_lsg.training.ema import update_ema
from sid_lsg.training.log import IterationLog
from sid_lsg.training.optimizer_options import make_optimizer
from sid_lsg.training.schedules import continue_schedule, make_schedule
from sid_lsg.training.update import together


class SiDLSG(AlternatingModule):
    """Guided Score identity Distillation of a text-to-image diffusion model (arXiv 2406.01561)."""

    frozen = ("teacher.", "bases.")

    def __init__(
        self,
        teacher: str,
        loading: Loading = Loading(),  # noqa: B008 (frozen; a default that --help can show)
        resolution: int | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008
        alpha: float = Method.alpha,
        objective: Objective = Method.objective,
        weighting: Weighting | None = None,
        t_init: int | None = None,
        tmin: int = Method.tmin,
        tmax: int = Method.tmax,
        flow: Flow = Flow(),  # noqa: B008
        num_steps: int = Method.num_steps,
        step_training: StepTraining | None = None,
        noise: Noise = Method.noise,
        fake_steps: int = Method.fake_steps,
        prompt_dropout: float | None = None,
        real_data: RealData | None = None,
        init: InitialWeights = InitialWeights(),  # noqa: B008
        lora: Adapters = Adapters(),  # noqa: B008
        micro_batch_size: int | None = None,
        optimizer_fake: OptimizerCallable = AdamWithoutMomentum,
        optimizer_generator: OptimizerCallable = AdamWithoutMomentum,
        lr_scheduler_fake: LRSchedulerCallable | None = None,
        lr_scheduler_generator: LRSchedulerCallable | None = None,
        ema: EMA = EMA(),  # noqa: B008
        gradients: Gradients = Gradients(),  # noqa: B008
        memory: Memory = Memory(),  # noqa: B008
        text: Text = Text(),  # noqa: B008
        compute: Compute = Compute(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        """Load the teacher and copy it into the fake score, the generator and its EMA.

        Args:
            teacher: The model to distil: a folder in the diffusers layout of a supported family; a
                Hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5; package:demo/fashion,
                the teacher that comes with this package; or architecture:sd15 (sd21, sd15-small),
                networks with random weights, for measurements.
            loading: How to load the teacher.
            resolution: Side of the images in pixels; by default the teacher's.
            guidance: Guidance scales kappa_1..kappa_4.
            alpha: Weight of the second term of the generator's loss; 1 in the paper's runs.
            objective: The generator's loss. sid: score identity distillation. dmd: the distribution
                matching of DMD without its other terms, for comparison, which has neither alpha nor
                kappa_3.
            weighting: Weighting of the generator's loss. sid divides it by the mean of |x_g -
                y_real|; the others are functions of the time. By default sid, and 1_minus_sigma for
                flow-matching teachers.
            t_init: The first timestep at which the generator is evaluated, 1..999 for 1000
                timesteps. By default 625, and 999 (pure noise) for flow-matching teachers.
            tmin: Smallest timestep at which the losses are evaluated.
            tmax: Largest timestep at which the losses are evaluated, plus one.
            flow: Times of a flow-matching teacher.
            num_steps: Network evaluations (NFE) of the generator per image, in training and in
                sampling.
            step_training: all: gradients flow through all steps of the generator. last: each
                iteration draws how many of the steps are run, 1 to num_steps, and gradients flow
                through the last of them. By default all, and last for flow-matching teachers.
            noise: Noise of the generator's steps after the first. fresh: new. fixed: the noise of
                the first step. ddim: the noise that the step before implies.
            fake_steps: Optimizer steps of the fake score for each one of the generator, with
                prompts and noise of their own.
            prompt_dropout: Probability of replacing a prompt by the empty one when the fake score
                is trained (phase 1), if kappa_1 or kappa_2 is not 1. By default 0.1, and 0 for
                flow-matching teachers.
            real_data: Add an adversarial term on the images of --data.real_images, for example
                {generator_weight: 0.0001}; by default training needs no data.
            init: Initial weights of the trained networks; by default the teacher's.
            lora: Train only LoRA adapters of a network.
            micro_batch_size: Samples that go through the networks at a time; by default each
                process' whole share of the batch. Gradients are accumulated over micro-batches, so
                this changes memory and speed but not the result.
            optimizer_fake: Optimizer of the fake score; by default Adam with beta1 = 0, as in the
                paper's runs, which does not store the first moment. An optimizer of another class
                keeps the options that both classes have, such as betas [0, 0.999] and weight_decay
                0.
            optimizer_generator: Optimizer of the generator.
            lr_scheduler_fake: Learning-rate schedule of the fake score in iterations, for example
                sid_lsg.optimizers.WarmUp with warmup_iterations 500, or one of torch.
            lr_scheduler_generator: Learning-rate schedule of the generator.
            ema: The EMA of the generator.
            gradients: Clip the gradients.
            memory: Save memory.
            text: The teacher's text encoders.
            compute: TF32 and compilation.
            seed: Seed of all noise, timesteps and dropout; follows --seed_everything.

        Raises:
            UsageError: If a value is out of range or the teacher cannot be used.
        """
        super().__init__()
        given = Method(
            alpha,
            t_init,
            tmin,
            tmax,
            num_steps,
            prompt_dropout,
            micro_batch_size,
            step_training,
            noise,
            weighting,
            fake_steps,
            objective,
        )
        self.micro_batch_size = micro_batch_size
        self.optimizer_fake, self.optimizer_generator = optimizer_fake, optimizer_generator
        self.schedules: dict[str, LRSchedulerCallable | None] = {
            "model.lr_scheduler_fake": lr_scheduler_fake,
            "model.lr_scheduler_generator": lr_scheduler_generator,
        }
        self.ema_options, self.clipping, self.compute = ema, gradients, compute
        self.drops_text = text.device == "drop"
        self.recomputed = memory.recomputed
        check_objective(real_data, objective)
        self.real_data, self.seed = real_data, seed
        self.log_of_iterations = IterationLog()

        check_not_distilled(teacher, loading.revision, loading.subfolders)
        where = loading.revision, loading.variant, loading.subfolders
        dtypes = loaded_dtypes(memory.frozen_precision, lora, text.precision)
        self.teacher: Teacher = load(teacher, *where, resolution, dtypes=dtypes)
        flow.set_times(self.teacher.schedule)
        guidance.check_teacher(self.teacher.embeds_guidance)
        self.guiding = Guiding(guidance.true_cfg, guidance.embedded, self.teacher.rescale)
        self.method = given.of_teacher(self.teacher.schedule)
        self.recipe = self.method.recipe(guidance.kappas, gradients.generator_scale)
        self.kappas, self.alpha, self.t_init = self.recipe.kappas, alpha, self.recipe.t_init
        self.num_steps, self.noise, self.fake_steps = num_steps, noise, fake_steps
        set_text(text, self.teacher)
        self.teacher.use_channels_last()
        self.fake_score = start(self.teacher, "fake_score", init.fake_score, lora.fake_score, seed)
        self.generator = start(self.teacher, "generator", init.generator, lora.generator, seed)
        self.ema = copy_trainable(self.generator)
        self.widths = WIDTHS if ema.snapshot_images else ()
        self.averages = nn.ModuleList(copy_trainable(self.generator) for _ in self.widths)
        check_ema_device(ema.device, self.ema)
        networks = {"fake_score": self.fake_score, "generator": self.generator}
        checkpointed = networks | {"teacher": self.teacher.network}
        checkpoint_gradients(checkpointed, memory.checkpointing or [])
        self.discriminator = (
            Discriminator(real_data, self.teacher, self.fake_score) if real_data else None
        )
        set_frozen_precision(memory.frozen_precision, self.teacher, *networks.values())
        # Bases of adapters that are not the teacher's network, which the teacher holds.
        bases = [backbone(network) for network in networks.values() if adapters(network)]
        self.bases = nn.ModuleList(base for base in bases if base is not self.teacher.network)

    def chosen(self) -> dict[str, Any]:
        """Return the options that were left out and are the teacher's, by their dotted names."""
        names = self.teacher.schedule.defaults._fields
        times = {f"flow.{name}": value for name, value in flow_times(self.teacher.schedule).items()}
        return {name: getattr(self.method, name) for name in names} | times

    def configure_model(self) -> None:
        """Shard the networks with fsdp2, and compile them if that is configured."""
        networks = self.teacher.network, self.fake_score, self.generator
        self.shard(*networks, self.ema, *self.averages)
        if self.compute.compile:
            compile_blocks(*dict.fromkeys(map(backbone, networks)))
        check_ema_device(self.ema_options.device, self.ema)

    def on_fit_start(self) -> None:
        """Enable TF32 if configured, share buffers, move the EMA to its device, drop text encoders.

        Lightning has moved all networks to the accelerator before.

        Raises:
            UsageError: If there are too many prompts to encode them once.
        """
        allow_tf32(self.compute.tf32)
        averages = self.ema, *self.averages
        share_buffers(self.teacher.network, self.fake_score, self.generator, *averages)
        if self.ema_options.device:
            for network in averages:
                network.to(self.ema_options.device)
        if self.drops_text and self.teacher.remembered is None:
            self.teacher.encode_once(all_prompts(self.trainer))

    # ------------------------------------------------------------------ one iteration

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Update the fake score, the generator, and the generator's EMA."""
        optimizer_fake, optimizer_generator = self.optimizers()
        self.count_steps_of(optimizer_generator)
        every = self.trainer.log_every_n_steps
        logged = bool(every) and (self.trainer.global_step + 1) % every == 0
        updates = [
            self.update(
                self.phase_inputs(Phase.FAKE_SCORE, batch.of_fake_step(step)),
                self.fake_score_phase,
                self.fake_score,
                optimizer_fake,
                logged and step == self.fake_steps - 1,
            )
            for step in range(self.fake_steps)
        ]
        with frozen(trained_by(optimizer_fake)):
            generator = self.update(
                self.phase_inputs(Phase.GENERATOR, batch),
                self.generator_phase,
                self.generator,
                optimizer_generator,
                logged,
            )
        fake = together(updates, len(batch.generator))
        images, seen = len(batch.generator) * self.trainer.world_size, self.images_seen(batch)
        halflife, ratio = self.ema_options.halflife_images, self.ema_options.rampup_ratio
        betas = [ema_beta(images, seen, halflife, ratio)]
        betas += [power_beta(images, seen, width) for width in self.widths]
        for average, beta in zip(self._averages, betas, strict=True):
            update_ema(average, trained_by(optimizer_generator), beta)
        self.log_of_iterations.count(batch, fake, generator)
        if logged:
            self.log_of_iterations.write(self, fake, generator, seen + images)
        for schedule in self.lr_schedulers() or ():
            schedule.step()

    def images_seen(self, batch: PromptBatch) -> int:
        """Return the number of images that all processes have seen before this iteration."""
        return batch.iteration * len(batch.generator) * self.trainer.world_size

    def phase_inputs(self, phase: Phase, batch: PromptBatch) -> PhaseInputs:
        """Encode a phase's prompts and draw its random numbers.

        Only phase 1 drops prompts and uses real images.
        """
        run, size = self.num_steps, len(batch.generator)
        if self.recipe.step_training == "last":
            run = draw_steps(batch.iteration, run, self.seed)
        draws = self._draw(phase, batch, run)
        if phase is Phase.GENERATOR:
            condition = self._encode(batch.generator, batch.generator_tokens)
            return PhaseInputs(condition, draws, size)
        condition = self._drop(self._encode(batch.fake, batch.fake_tokens), draws)
        real = None
        if self.discriminator:
            images, captions, tokens = required(batch.real)
            numbers = self._draw(REAL_IMAGES, batch, num_steps=0)
            real = RealSamples(images, self._drop(self._encode(captions, tokens), numbers), numbers)
        return PhaseInputs(condition, draws, size, real)

    def _draw(self, phase: int, batch: PromptBatch, num_steps: int) -> Draws:
        first = batch.position
        return draw(
            phase,
            batch.iteration,
            torch.arange(first, first + len(batch.generator), device=self.device),
            schedule=self.teacher.schedule,
            latent_shape=self.teacher.latent_shape,
            num_steps=num_steps,
            tmin=self.method.tmin,
            tmax=self.method.tmax,
            seed=self.seed,
            repeat=batch.fake_step,
        )

    def _encode(self, prompts: Sequence[str], tokens: Tokens) -> Conditioning:
        teacher = self.teacher
        return teacher.condition_on(tokens) if tokens else teacher.encode_prompts(prompts)

    def _drop(self, condition: Conditioning, draws: Draws) -> Conditioning:
        if not (self.kappas.drops_prompts and self.method.prompt_dropout):
            return condition
        null = self.teacher.null_condition()
        return drop_prompts(condition, null, draws.u, self.method.prompt_dropout)

    def fake_score_phase(self, inputs: PhaseInputs) -> FakeScoreOutput:
        """Run the forward pass of phase 1."""
        return fake_score_phase(self.networks(), inputs, self.recipe)

    def generator_phase(self, inputs: PhaseInputs) -> GeneratorOutput:
        """Run the forward pass of phase 2."""
        return generator_phase(self.networks(self.recomputed), inputs, self.recipe)

    def networks(self, recomputed: Sequence[str] = ()) -> Networks:
        """Return the networks as functions.

        Args:
            recomputed: Names of the networks that recompute their activations in the backward pass.
        """

        def predict(name: str, network: nn.Module) -> Predict:
            evaluate = partial(self.teacher.predict, network)
            return recompute(evaluate) if name in recomputed else evaluate

        return Networks(
            generator=predict("generator", self.generator),
            fake_score=predict("fake_score", self.fake_score),
            teacher=predict("teacher", self.teacher.network),
            schedule=self.teacher.schedule,
            null=self.teacher.null_condition() if self.kappas.guided else None,
            adversary=self.discriminator,
            guiding=self.guiding,
        )

    # ------------------------------------------------------------------ sampling

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
            seeds: B seeds; an image depends only on its prompt and seed.
            num_steps: K; by default the number of the training.
            network: The network to sample; by default the generator's EMA.

        Returns:
            [B, C, H, W] float32 latents, for `teacher.decode`.
        """
        with borrowed(network or self.ema, self.device) as chosen, as_written(self.compute.compile):
            return self.teacher.generate(
                chosen, prompts, seeds, self.t_init, num_steps or self.num_steps, self.noise
            )

    def sample_generator(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int | None = None
    ) -> Tensor:
        """Sample the generator's EMA: images [B, 3, H, W] in [-1, 1], one per prompt and seed.

        The arguments are those of `generate`.
        """
        return self.teacher.decode(self.generate(prompts, seeds, num_steps))

    def sample_untrained(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Sample the teacher's network as a generator, the baseline of the training."""
        return self.teacher.decode(self.generate(prompts, seeds, None, self.teacher.network))

    def ema_on_device(self) -> AbstractContextManager[nn.Module]:
        """Return a context that keeps the EMA on the device, to sample several batches from it."""
        return borrowed(self.ema, self.device)

    def averaged(self) -> AbstractContextManager[nn.Module]:
        """Return a context that yields the EMA with full weights on the first rank. Collective."""
        return self.full_parameters(self.ema)

    @contextmanager
    def snapshot(self) -> Iterator[dict[float, nn.Module]]:
        """Yield the averages of each width with full weights on the first rank. Collective."""
        with ExitStack() as stack:
            full = [stack.enter_context(self.full_parameters(one)) for one in self.averages]
            yield dict(zip(self.widths, full, strict=True))

    def sample_teacher(
        self, prompts: Sequence[str], seeds: Sequence[int], num_steps: int, guidance: float
    ) -> Tensor:
        """Sample the teacher in `num_steps` steps; return images as `Teacher.sample_reference`."""
        with as_written(self.compute.compile):
            return self.teacher.sample_reference(prompts, seeds, num_steps, guidance)

    # ------------------------------------------------------------------ optimization

    def new_optimizers(self) -> list[torch.optim.Optimizer]:
        """Create the two optimizers.

        Raises:
            UsageError: If an optimizer cannot be created.
        """
        return [
            make_optimizer(make, [*network.parameters()], f"model.optimizer_{name}")
            for name, make, network in (
                ("fake", self.optimizer_fake, self.fake_score),
                ("generator", self.optimizer_generator, self.generator),
            )
        ]

    def configure_optimizers(self) -> Any:
        """Create the two optimizers with their schedules, and collect the EMA's parameters once.

        Raises:
            UsageError: If an optimizer or a schedule cannot be created.
        """
        self._averages = [[*network.parameters()] for network in (self.ema, *self.averages)]
        optimizers = self.new_optimizers()
        self.remember_options(optimizers)
        if not any(self.schedules.values()):
            return optimizers
        made = zip(self.schedules.items(), optimizers, strict=True)
        return optimizers, [make_schedule(make, own, name) for (name, make), own in made]

    def on_train_start(self) -> None:
        """Set the schedules to the finished iterations."""
        super().on_train_start()
        makes = self.optimizer_fake, self.optimizer_generator
        if own := self.lr_schedulers():
            for schedule, (name, make), optimizer in zip(
                own, self.schedules.items(), makes, strict=True
            ):
                continue_schedule(schedule, make, optimizer, self.trainer.global_step, name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the skipped samples since the last row of the log."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped_samples"] = self.log_of_iterations.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the skipped samples since the last row of the log."""
        super().on_load_checkpoint(checkpoint)
        self.log_of_iterations.skipped = checkpoint.get("skipped_samples", 0)
