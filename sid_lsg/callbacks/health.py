"""Watch a run for collapse, misalignment and instability."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sid_lsg.callbacks.instability import BASELINE, Instability
from sid_lsg.callbacks.known_teacher import sampled_by_teacher
from sid_lsg.callbacks.schedule import due, images_seen, log_now
from sid_lsg.files.replacing import text_hash
from sid_lsg.messages.checks import check_teacher_guidance, refuse
from sid_lsg.messages.errors import TrainingStopped, UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.kept_scores import Numbers, kept
from sid_lsg.metrics.probe import Probe, below, choose_prompts, probe
from sid_lsg.teachers.checks import check_steps
from sid_lsg.training.agreement import weights_digest
from sid_lsg.training.callback import RunCallback, Saver, find, leaving

Action = Literal["warn", "stop", "keep_good"]

_REPEAT = 10  # one warning per so many checks in a row that find the same failure

_ADVICE = {
    "collapse": "What usually helps: a smaller guidance scale (--model.guidance.scale), a smaller "
    "learning rate of the generator or a larger one of the fake score, a larger --data.batch_size",
    "misalignment": "What usually helps: a smaller learning rate, a larger guidance scale "
    "(--model.guidance.scale), and prompts like those the teacher was trained on",
    "instability": "What usually helps: a smaller learning rate "
    "(--model.optimizer_generator.init_args.lr and that of the fake score), "
    "--model.gradients.clip_val, a larger --data.batch_size, a smaller guidance scale, "
    "--trainer.precision bf16-mixed or 32-true instead of 16-mixed",
}  # fmt: skip


class Health(RunCallback):
    """Watch for collapse, misalignment and instability; warn, or end the run.

    Diversity and alignment are measured on the generator's EMA and divided by those of the teacher
    on the same prompts and seeds, so one threshold serves every teacher. The probe has its own
    seeds, so it never changes the training. Instability is checked in every logged iteration.

    Values of the healthy demo (kappa 1, 240 iterations; kappa 1.2, 60; logged every 2nd and 10th
    iteration), and the default limits:

    - Diversity within prompts: 0.61 to 0.96 of the teacher's, lowest at the first probe. The choice
      of the 32 prompts and 4 seeds changes it by 0.07 to 0.12 (0.17 to 0.29 with 8 prompts). Limit
      0.25. Across prompts: 1.00. Limit 0.25.
    - CLIP score and retrieval: 0.99 to 1.01 of the teacher's. Limit 0.75. The untrained generator,
      which is blurred, has 0.89 and 0.85.
    - Sizes: up to 4.6 times the usual for the generator's loss, which grows from zero at the start;
      up to 2.0 for the others. Limit 20.
    - Update-to-weight ratios: up to 0.0021. Limit 0.02. A learning rate 1000 times as large has
      0.71.
    """

    def __init__(
        self,
        clip: str | None = None,
        every_n_images: int = 50_000,
        num_prompts: int = 32,
        num_seeds: int = 4,
        batch_size: int = 16,
        teacher_steps: int = 25,
        teacher_guidance: float | None = None,
        reuse_teacher: bool = True,
        collapse: float = 0.25,
        collapse_action: Action = "warn",
        misalignment: float = 0.75,
        misalignment_action: Action = "warn",
        spike: float = 20.0,
        update_ratio: float = 0.02,
        nonfinite: float = 0.01,
        window: int = 50,
        instability_action: Action = "warn",
    ) -> None:
        """Set the limits of a healthy run, and the actions beyond them.

        The actions: `warn` prints a warning. `stop` saves the current state and ends the run.
        `keep_good` ends the run without saving, and makes checkpoints/last.ckpt the checkpoint that
        was the newest when the run was last found healthy (good.ckpt). A checkpoint that is due at
        the same iteration is saved before the check. A run that is ended exports nothing.

        Args:
            clip: CLIP model that measures diversity and alignment: a folder, a Hub id or
                package:demo/fashion/clip. By default only instability is checked.
            every_n_images: Probe the generator every time the training has seen so many images; 0
                for never.
            num_prompts: Distinct held-out prompts in a probe. Diversity varies much between
                prompts, so many prompts are better than many seeds.
            num_seeds: Images of each prompt.
            batch_size: Batch size of the probe.
            teacher_steps: DDIM steps of the teacher.
            teacher_guidance: Guidance scale of the teacher, at least 1; by default kappa_4, or 1 if
                kappa_4 is less.
            reuse_teacher: Read the teacher's values, instead of computing them, if a run on this
                machine has measured the same teacher with the same prompts and options.
            collapse: Smallest healthy diversity, within the prompts and across them, as a share of
                the teacher's.
            collapse_action: Action for smaller diversity: warn, stop or keep_good.
            misalignment: Smallest healthy CLIP score and retrieval accuracy, as a share of the
                teacher's.
            misalignment_action: Action for smaller values: warn, stop or keep_good.
            spike: Largest healthy loss, gradient norm and update-to-weight ratio, as a multiple of
                its usual size; judged by the median of the last three logged values.
            update_ratio: Largest healthy update-to-weight ratio of one step, for both networks.
            nonfinite: Largest healthy share of samples, or of gradient entries, that are not
                finite; judged by the median of the last three logged values.
            window: The usual size is the median of so many earlier logged values.
            instability_action: Action if spike, update_ratio or nonfinite is exceeded: warn, stop
                or keep_good.

        Raises:
            UsageError: If a value is out of range or the CLIP model cannot be loaded.
        """
        for name, number, least in (
            ("every_n_images", every_n_images, 0),
            ("num_prompts", num_prompts, 2),
            ("num_seeds", num_seeds, 2),
            ("batch_size", batch_size, 1),
            ("teacher_steps", teacher_steps, 1),
            ("window", window, BASELINE),
        ):
            if number < least:
                refuse(f"health.{name}", number, f"at least {least}")
        for name, share in (
            ("collapse", collapse), ("misalignment", misalignment), ("nonfinite", nonfinite)
        ):  # fmt: skip
            if not 0 <= share <= 1:
                refuse(f"health.{name}", share, "a share, 0 to 1")
        if not 1 < spike < math.inf:
            refuse("health.spike", spike, "a finite number above 1")
        if not 0 < update_ratio < math.inf:
            refuse("health.update_ratio", update_ratio, "a positive number")
        if teacher_guidance is not None:
            check_teacher_guidance("health.teacher_guidance", teacher_guidance)
        self.actions: dict[str, Action] = {
            "collapse": collapse_action,
            "misalignment": misalignment_action,
            "instability": instability_action,
        }
        for name, action in self.actions.items():
            if action not in get_args(Action):
                refuse(f"health.{name}_action", action, "warn, stop or keep_good")
        self.every_n_images = every_n_images
        self.features: CLIPFeatures | None = None
        self.clip = clip
        if clip and every_n_images:
            self.features = CLIPFeatures.from_pretrained(clip, "health.clip")
        self.num_prompts, self.num_seeds, self.batch_size = num_prompts, num_seeds, batch_size
        self.teacher_steps, self.teacher_guidance = teacher_steps, teacher_guidance
        self.reuse_teacher = reuse_teacher
        self.collapse, self.misalignment = collapse, misalignment
        self.instability = Instability(spike, update_ratio, nonfinite, window)
        self._failed = dict.fromkeys(self.actions, 0)  # checks in a row that found it
        self._found: dict[str, str] = {}  # of an iteration whose probe is due
        self._teacher: tuple[str, Probe] | None = None  # a digest of its settings, and its probe
        self._prompts: Sequence[str] = ()
        self._losses = ""  # the options that the usual sizes depend on

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Find the callback that saves checkpoints, which stopping needs.

        Raises:
            UsageError: If there is none, or the teacher cannot be sampled in `teacher_steps`.
        """
        self._losses = repr((pl_module.recipe, pl_module.real_data))
        if self.features is not None:
            config = pl_module.teacher.scheduler_config
            check_steps(config, self.teacher_steps, "health.teacher_steps")
        self._checkpoint = find(trainer, Saver)
        for kind, action in self.actions.items():
            if action != "warn" and self._checkpoint is None:
                raise UsageError(f"--health.{kind}_action: {action!r} needs checkpoints.")

    def state_dict(self) -> dict[str, Any]:
        """Return the failures and earlier values, and the teacher's probe.

        Without the failures and values, a failing run would look usual when it is continued.
        """
        return {
            "failed": dict(self._failed),
            "past": self.instability.past(),
            "losses": self._losses,
            "found": self._found,
            "teacher": self._teacher and [self._teacher[0], [*self._teacher[1]]],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the failures, the earlier values and the teacher's probe.

        The values are left out if the losses have changed, for example by an adversarial term: the
        usual sizes are others then.
        """
        self._failed |= state_dict["failed"]
        if teacher := state_dict.get("teacher"):
            self._teacher = teacher[0], Probe(*teacher[1])
        self._found = state_dict.get("found", {})
        if state_dict.get("losses", self._losses) == self._losses:
            self.instability.recall(state_dict["past"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the prompts.

        Raises:
            UsageError: If they are all the same.
        """
        self._prompts = choose_prompts(trainer.datamodule.heldout_prompts, self.num_prompts)
        if self.features is not None and len(self._prompts) < 2:
            raise UsageError("--health.clip needs two distinct prompts. Give more, or no CLIP.")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the logged values, if the iteration is logged."""
        every = trainer.log_every_n_steps
        if every and trainer.global_step % every == 0:
            # Skipped samples are those of all iterations since the last row.
            metrics, samples = trainer.callback_metrics, every * trainer.datamodule.batch_size
            phases = 1 + pl_module.fake_steps
            found = {"instability": self.instability.judge(metrics, samples, phases)}
            if self.features is not None and due(trainer, self.every_n_images):
                self._found = found  # to decide together with the probe
            else:
                self._conclude(trainer, found, whole=self.features is None)

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Probe the generator on schedule."""
        if self.features is not None and due(trainer, self.every_n_images):
            if not self._prompts:  # the run was complete when it began
                self.on_train_start(trainer, pl_module)
            found = self._found | self._probe(trainer, pl_module)
            self._found = {}
            self._conclude(trainer, found, whole=True)

    def _conclude(self, trainer: L.Trainer, found: dict[str, str], whole: bool) -> None:
        """Act on what was found; mark the checkpoint if everything is checked and healthy.

        Args:
            trainer: The Trainer.
            found: What was seen by kind of failure, "" for nothing.
            whole: Whether no further check of this iteration follows.
        """
        # Values may differ by rounding between ranks, which must take the same decision.
        self._act(trainer, trainer.strategy.broadcast(found))
        if whole and not any(self._failed.values()) and self._checkpoint is not None:
            self._checkpoint.mark_good(trainer)

    def _probe(self, trainer: L.Trainer, module: Any) -> dict[str, str]:
        """Compare the generator with its teacher, log the ratios, and return what is wrong.

        Both are sampled in the precision of bf16-mixed if the training is. The teacher is sampled
        once in a run, also if it is continued.
        """
        assert self.features is not None
        guidance = self.teacher_guidance or module.kappas.sampling

        options = (self.features.to(module.device), self._prompts, self.num_seeds, self.batch_size)
        half = trainer.precision == "bf16-mixed"
        settings = [str(self.clip), f"{self.num_seeds} {self.teacher_steps} {guidance} {half}"]
        settings += [weights_digest(module.teacher.network), *self._prompts]
        digest = trainer.strategy.broadcast(text_hash(settings))
        with trainer.precision_plugin.forward_context() if half else nullcontext():
            if self._teacher is None or self._teacher[0] != digest:
                self._teacher = digest, self._probe_teacher(trainer, module, guidance)
            with module.ema_on_device():
                own = probe(leaving(trainer, module.sample_generator), *options)
        self.features.cpu()  # free the memory of the device
        ratio = own.relative_to(self._teacher[1])
        values = {
            "health/diversity_within": ratio.within,
            "health/diversity_across": ratio.across,
            "health/clip_ratio": ratio.clip,
            "health/retrieval": own.retrieval,
        }
        log_now(trainer, values)
        diversity = {"diversity within prompts": ratio.within, "across prompts": ratio.across}
        alignment = {"CLIP score": ratio.clip, "retrieval accuracy": ratio.retrieval}
        return {
            "collapse": below(self.collapse, diversity),
            "misalignment": below(self.misalignment, alignment),
        }

    def _probe_teacher(self, trainer: L.Trainer, module: Any, guidance: float) -> Probe:
        """Measure the teacher, or return what another run measured."""
        assert self.features is not None
        features, steps = self.features, self.teacher_steps

        def teacher(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            return module.sample_teacher(prompts, seeds, steps, guidance)

        def compute() -> Numbers:
            options = (features, self._prompts, self.num_seeds, self.batch_size)
            return probe(leaving(trainer, teacher), *options)._asdict()

        texts = [prompt for prompt in self._prompts for _ in range(self.num_seeds)]
        images = sampled_by_teacher(trainer, module, texts, steps, guidance)
        if not self.reuse_teacher or images is None:
            return Probe(**compute())
        about = {**images, "num_seeds": self.num_seeds, "clip": features.identity}
        return Probe(**kept(about, compute, "The teacher's diversity and alignment"))

    def _act(self, trainer: L.Trainer, found: dict[str, str]) -> None:
        """Warn about new failures, or end the run."""
        fatal: dict[Action, str] = {}
        for kind, what in found.items():
            self._failed[kind] = self._failed[kind] + 1 if what else 0
            when = f"iteration {trainer.global_step}, {images_seen(trainer):,} images seen"
            message = f"{kind} at {when}: {what}. {_ADVICE[kind]}."
            if what and (action := self.actions[kind]) != "warn":
                fatal[action] = f"{fatal.get(action, '')}{message} "
            elif what and self._failed[kind] % _REPEAT == 1:
                rank_zero_warn(message)
        if not fatal:
            return
        assert self._checkpoint is not None
        if "keep_good" in fatal:  # has priority: no bad state is saved
            good = self._checkpoint.return_to_good(trainer)
            end = f"checkpoints/last.ckpt is the last good checkpoint, {good}"
            end = end if good else "there is no earlier checkpoint that was found good"
        else:
            end = f"the current state is {self._checkpoint.save(trainer)}"
        if "instability" in found:  # the Trainer logs an iteration when its callbacks are done
            values = {n: float(v) for n, v in trainer.callback_metrics.items() if n != "step"}
            log_now(trainer, values)
        raise TrainingStopped(f"{''.join(fatal.values())}The run ends; {end}.")
