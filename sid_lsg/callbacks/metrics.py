"""Score the generator during the training, and compare it with the teacher at the end."""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L

from sid_lsg.callbacks.comparison import (
    Contestant,
    Row,
    generators,
    references,
    save_and_log,
    table,
)
from sid_lsg.callbacks.known_teacher import sampled_by_teacher
from sid_lsg.callbacks.prompts import spread
from sid_lsg.callbacks.schedule import due, images_seen, log_now
from sid_lsg.distributed.processes import check_enough
from sid_lsg.files.replacing import replacing
from sid_lsg.files.sources import locate
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.checks import check_teacher_guidance, refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.evaluator import Evaluator
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.kept_scores import SECONDS, Numbers, kept, scored
from sid_lsg.metrics.loaded import Loaded, check_inputs, load_scores
from sid_lsg.metrics.protocol import EvaluationProtocol, load_protocol
from sid_lsg.metrics.reference import load_reference, load_references
from sid_lsg.metrics.statistics import Statistics
from sid_lsg.options.choices import PAPER_PREFIX, ProtocolName, Scores
from sid_lsg.teachers.checks import check_steps
from sid_lsg.training.callback import Scorer, leaving, run_callbacks


class Metrics(Scorer):
    """Score the generator's EMA, and compare it with its teacher at the end.

    The scores are FID, KID, precision, recall, density, coverage, the CLIP score and published
    scores; their names contain the protocol and the number of images. The comparison shows the
    teacher at many steps, the untrained and the distilled generator for the same prompts and seeds.
    It is printed, and written to `summary.json` and `comparison.png` in the run directory. Each
    process samples and scores its share of the images. Evaluation has its own seeds, so it never
    changes the training.

    Attributes:
        latest: The newest scores, by the names under which they are logged.
    """

    def __init__(
        self,
        clip: str | None = None,
        clip_prefix: str = PAPER_PREFIX,
        protocol: ProtocolName = "fast",
        inception: str | None = None,
        reference: str | None = None,
        scores: Scores | None = None,
        every_n_images: int = 0,
        num_images: int = 1000,
        batch_size: int = 50,
        num_steps: list[int] | None = None,
        teacher_steps: int = 25,
        teacher_guidance: float | None = None,
        reuse_teacher: bool = True,
        num_pictured: int = 8,
    ) -> None:
        """Set what to compute and when.

        Args:
            clip: CLIP model of the CLIP score and of the protocols `clip` and `fast`: a folder, a
                Hub id or package:demo/fashion/clip. By default nothing is scored.
            clip_prefix: Text before each prompt in the CLIP score.
            protocol: Features for FID, KID, precision, recall, density and coverage. `fast` and
                `clip` use the CLIP model, with images resized on the device or by Pillow.
                `clean256` is the paper's protocol, with Inception.
            inception: TorchScript file of Inception for clean256; by default downloaded once.
            reference: Reference images for these scores: a folder of images, or a file of
                statistics from `evaluate` or `prepare-coco` with the same protocol. By default the
                scores that need a reference are left out.
            scores: Published scores, as for `evaluate`; they cost time and memory. By default none.
            every_n_images: Score every time the training has seen so many images; 0 to score only
                at the end.
            num_images: Images to score. FID depends on their number: compare at equal numbers.
            batch_size: Batch size of sampling and scoring.
            num_steps: Also score and show the generator at these numbers of steps, for example
                [1, 2, 4]; by default only at that of the training.
            teacher_steps: Steps of the teacher in the final comparison.
            teacher_guidance: Guidance scale of the teacher in the final comparison, at least 1; by
                default kappa_4, or 1 if kappa_4 is less.
            reuse_teacher: Read the teacher's scores, instead of computing them, if a run on this
                machine has scored the same teacher with the same prompts and options.
            num_pictured: Number of prompts in comparison.png.
        """
        for name, value, least in (
            ("every_n_images", every_n_images, 0),
            ("num_images", num_images, 2),
            ("batch_size", batch_size, 1),
            ("teacher_steps", teacher_steps, 1),
            ("num_pictured", num_pictured, 1),
            ("num_steps", min(num_steps or [1]), 1),
        ):
            if value < least:
                refuse(f"metrics.{name}", value, f"at least {least}")
        if teacher_guidance is not None:
            check_teacher_guidance("metrics.teacher_guidance", teacher_guidance)
        if reference and not clip and protocol != "clean256":
            raise UsageError(
                "--metrics.reference needs --metrics.clip: give the CLIP model that computed the "
                f"features of {reference!r}."
            )
        self.clip = CLIPFeatures.from_pretrained(clip, "metrics.clip") if clip else None
        self.protocol: EvaluationProtocol | None = None
        if self.clip is not None or protocol == "clean256":
            self.protocol = load_protocol(protocol, self.clip, inception, "metrics.inception")
        self.asked = scores
        self.scores: list[Loaded] = []
        if scores and self.protocol is None:
            raise UsageError(
                "--metrics.scores needs --metrics.clip, or --metrics.protocol clean256: without "
                "them nothing is scored."
            )
        if self.protocol is not None:
            self.scores = load_scores(scores, self.protocol, "metrics.scores", inception)
        self.reference_source = reference
        self.clip_prefix = clip_prefix
        self.reference: Statistics | None = None
        self.reference_folder: str | None = None
        if reference and self.protocol:
            if locate(reference).kind == "folder":
                self.reference_folder = reference  # its statistics are computed on the device
            else:
                self.reference = load_reference(reference, self.protocol, "metrics.reference")
        self.every_n_images = every_n_images
        self.num_images, self.batch_size = num_images, batch_size
        self.num_steps = num_steps or []
        self.teacher_steps, self.teacher_guidance = teacher_steps, teacher_guidance
        self.reuse_teacher = reuse_teacher
        self.num_pictured = num_pictured
        self.evaluator: Evaluator | None = None
        self.latest: dict[str, float] = {}
        self._earlier_seconds = 0.0  # of the run that this one continues
        self._begun: float | None = None  # when the clock was started

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Load the reference and create the evaluator."""
        if self.protocol is None:
            return
        check_enough(self.num_images, "metrics.num_images")
        check_steps(pl_module.teacher.scheduler_config, self.teacher_steps, "metrics.teacher_steps")
        if self.scores:
            prompts = trainer.datamodule.heldout_prompts
            texts = [prompts[i % len(prompts)] for i in range(self.num_images)]
            check_inputs(self.asked, texts, "metrics.scores")
        device = trainer.strategy.root_device
        if self.reference_folder:
            self.reference = load_reference(
                self.reference_folder,
                self.protocol,
                "metrics.reference",
                self.batch_size,
                device,
                "reference" if trainer.is_global_zero else None,
            )
        load_references(
            self.scores, self.reference_source, "metrics.reference", "metrics.scores",
            self.batch_size, device,
        )  # fmt: skip
        self.evaluator = Evaluator(
            self.protocol, self.clip, self.clip_prefix, self.reference, self.scores
        )

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Score on schedule. The comparison scores the last iteration."""
        if self.evaluator is None or trainer.global_step == trainer.max_steps:
            return
        if due(trainer, self.every_n_images):
            self.latest = {}
            with pl_module.ema_on_device():
                for model in generators(pl_module, self.num_steps):
                    scores, _ = self._score(trainer, pl_module, model)
                    self.latest |= model.named(self._named(scores))
            log_now(trainer, self.latest)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._earlier_seconds, self._begun = self._seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of training so far."""
        return {"fit_seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds of training."""
        self._earlier_seconds = state_dict["fit_seconds"]

    def on_trained(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compare with the teacher, and write the summary."""
        root = Path(trainer.default_root_dir)
        summary: dict[str, Any] = {
            "fit_seconds": round(self._seconds, 1),
            "images_seen": images_seen(trainer),
            "iterations": trainer.global_step,
            "export": None,
        }
        for callback in run_callbacks(trainer):
            summary |= callback.summary()
        if self.evaluator is not None:
            summary = self._compare(trainer, pl_module, root) | summary
        if trainer.is_global_zero:
            with replacing(root / "summary.json") as temporary:
                temporary.write_text(json.dumps(summary, indent=2) + "\n")

    @property
    def measures(self) -> bool:
        """Return True if there is a protocol to score by."""
        return self.protocol is not None

    @property
    def _seconds(self) -> float:
        """The seconds of training, including those of the run that this one continues."""
        running = 0.0 if self._begun is None else time.perf_counter() - self._begun
        return self._earlier_seconds + running

    def _compare(self, trainer: L.Trainer, module: Any, root: Path) -> dict[str, Any]:
        """Score the teacher, the untrained and the distilled generator, and show their images."""
        assert self.protocol is not None
        guidance = self.teacher_guidance or module.kappas.sampling
        prompts = spread(trainer.datamodule.heldout_prompts, self.num_pictured)
        summary: dict[str, Any] = {}
        rows: list[Row] = []
        compared = references(module, self.teacher_steps, guidance)
        own = generators(module, self.num_steps)
        self.latest = {}
        for model in (*compared, *own):
            with module.ema_on_device() if model in own else nullcontext():
                if model is compared[0]:
                    scores, seconds = self._score_teacher(trainer, module, model, guidance)
                else:
                    scores, seconds = self._score(trainer, module, model)
                images = model.images(prompts, self.batch_size)
            rows.append(Row(model.name, scores, seconds, model.evaluations, images))
            found = self._named(scores)
            if model in own:
                self.latest |= model.named(found)
            summary |= model.named(
                found
                | {
                    "seconds_per_image": seconds,
                    "evaluations_per_image": model.evaluations,
                }
            )
        teacher = {name: value for name, value in summary.items() if name.startswith("teacher_")}
        log_now(trainer, self.latest | teacher)
        summary |= {"num_images": self.num_images, "teacher_steps": self.teacher_steps}
        summary["teacher_guidance"] = guidance
        if trainer.is_global_zero:
            save_and_log(rows, prompts, self._clip_scores(rows[-1], prompts), trainer)
            published = [score.name for score in self.scores]
            print(table(rows, self.num_images, self.protocol.name, guidance, published))
            print(f"Images, scores, checkpoint and the exported generator: {root}")
        return summary

    def _clip_scores(self, row: Row, prompts: list[str]) -> list[float | None]:
        if self.clip is None:
            return [None] * len(prompts)
        texts = [self.clip_prefix + prompt for prompt in prompts]
        return [*self.clip.scores(to_uint8(row.images), texts)]

    def _score_teacher(
        self, trainer: L.Trainer, module: Any, model: Contestant, guidance: float
    ) -> tuple[Numbers, float]:
        """Return the teacher's scores and seconds per image, of an earlier run if there are any."""
        assert self.evaluator is not None
        prompts = trainer.datamodule.heldout_prompts
        texts = [prompts[i % len(prompts)] for i in range(self.num_images)]
        images = sampled_by_teacher(trainer, module, texts, self.teacher_steps, guidance)
        if not self.reuse_teacher or images is None:
            return self._score(trainer, module, model)

        def compute() -> Numbers:
            scores, seconds = self._score(trainer, module, model)
            return scores | {SECONDS: seconds}

        numbers = dict(kept(scored(images, self.evaluator), compute, "The teacher's scores"))
        seconds = numbers.pop(SECONDS)
        return numbers, seconds

    def _score(self, trainer: L.Trainer, module: Any, model: Contestant) -> tuple[Numbers, float]:
        """Return a contestant's scores and seconds per image."""
        assert self.evaluator is not None
        bar = trainer.progress_bar_callback
        show = bar is not None and bar.is_enabled and trainer.is_global_zero
        scores = self.evaluator.of_sampler(
            leaving(trainer, model.sampler),
            trainer.datamodule.heldout_prompts,
            self.num_images,
            self.batch_size,
            module.device,
            model.name if show else None,
        )
        return scores.values, scores.seconds_per_image

    def _named(self, scores: Numbers) -> dict[str, float]:
        """Add the protocol and the number of images to the scores' names."""
        assert self.evaluator is not None
        return {self.evaluator.key(n, self.num_images): value for n, value in scores.items()}
