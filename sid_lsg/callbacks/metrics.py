"""Scores while training, and the final comparison with the teacher."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sid_lsg.callbacks.export import EXPORT_FOLDER, Export
from sid_lsg.callbacks.image_grid import spread
from sid_lsg.checks import refuse
from sid_lsg.errors import UsageError
from sid_lsg.images import comparison, save_png
from sid_lsg.metrics.evaluator import Evaluator, Sampler, Scores


class Metrics(L.Callback):
    """Score the averaged generator by FID and CLIP score; compare it with its teacher at the end.

    The comparison (teacher at many steps, untrained generator, distilled generator; same prompts
    and seeds) is printed and written to the run directory: `summary.json` and `comparison.png`.
    Evaluation has its own seeds: it never changes the training.
    """

    def __init__(
        self,
        clip: str | None = None,
        reference: str | None = None,
        every_n_steps: int = 0,
        num_images: int = 1000,
        batch_size: int = 50,
        teacher_steps: int = 25,
        teacher_guidance: float | None = None,
        num_pictured: int = 8,
    ) -> None:
        """Choose what to compute and when.

        Args:
            clip: CLIP model for the CLIP score and for FID's image features: a folder, a Hub id or
                package:demo/fashion/clip. By default nothing is scored.
            reference: File of reference images' feature statistics (.safetensors), from the same
                CLIP model. By default FID is left out.
            every_n_steps: Score after every so many iterations; 0 for the end alone.
            num_images: Images to score; FID depends on it, so compare at equal numbers.
            batch_size: Images at a time.
            teacher_steps: The teacher's DDIM steps in the final comparison.
            teacher_guidance: The teacher's guidance scale there; by default kappa_4.
            num_pictured: Prompts in the final picture.
        """
        for name, value, least in (
            ("every_n_steps", every_n_steps, 0),
            ("num_images", num_images, 2),
            ("batch_size", batch_size, 1),
            ("teacher_steps", teacher_steps, 1),
            ("num_pictured", num_pictured, 1),
        ):
            if value < least:
                refuse(f"metrics.{name}", value, f"at least {least}")
        if reference and not clip:
            raise UsageError(
                "--metrics.reference needs --metrics.clip: name the CLIP model whose features "
                f"{reference!r} holds."
            )
        self.evaluator = Evaluator(clip, reference, num_images, batch_size) if clip else None
        self.every_n_steps = every_n_steps
        self.teacher_steps, self.teacher_guidance = teacher_steps, teacher_guidance
        self.num_pictured = num_pictured
        self._fit_seconds = 0.0

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score on schedule, except after the last iteration, which the comparison scores."""
        step = trainer.global_step
        due = self.every_n_steps and step % self.every_n_steps == 0 and step != trainer.max_steps
        if due and self.evaluator is not None:
            scores = self._score(trainer, pl_module, _generator(pl_module, pl_module.ema))
            _log(trainer, scores)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._fit_seconds = time.perf_counter() - self._start

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compare with the teacher, and write the summary."""
        batch_size = trainer.datamodule.batch_size
        exports = any(isinstance(c, Export) for c in trainer.callbacks)
        summary: dict[str, Any] = {
            "fit_seconds": round(self._fit_seconds, 1),
            "images_seen": trainer.global_step * batch_size,
            "iterations": trainer.global_step,
            "export": EXPORT_FOLDER if exports else None,
        }
        root = Path(trainer.default_root_dir)
        if self.evaluator is not None:
            summary = self._compare(trainer, pl_module, root) | summary
        temporary = root / "summary.json.tmp"
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
        temporary.replace(root / "summary.json")

    def _compare(self, trainer: L.Trainer, module: Any, root: Path) -> dict[str, Any]:
        """Score the three samplers, print the table, draw the picture."""
        guidance = (
            module.kappas.eval_real if self.teacher_guidance is None else self.teacher_guidance
        )
        steps = self.teacher_steps

        def teacher(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
            return module.teacher.sample_reference(prompts, seeds, steps, guidance)

        own = _steps(module.num_steps)
        evaluations = steps * (1 if guidance == 1 else 2)
        samplers: dict[str, tuple[str, Sampler, int]] = {
            "teacher": (f"teacher, {_steps(steps)}", teacher, evaluations),
            "initial": (
                f"untrained, {own}", _generator(module, module.teacher.network), module.num_steps
            ),
            "": (f"SiD-LSG, {own}", _generator(module, module.ema), module.num_steps),
        }  # fmt: skip
        summary: dict[str, Any] = {}
        lines, rows = [], {}
        prompts = spread(trainer.datamodule.heldout_prompts, self.num_pictured)
        for key, (name, sampler, count) in samplers.items():
            scores = self._score(trainer, module, sampler, name)
            prefix = f"{key}_" if key else ""
            summary |= {
                f"{prefix}fid": scores.fid,
                f"{prefix}clip": scores.clip,
                f"{prefix}seconds_per_image": scores.seconds_per_image,
                f"{prefix}evaluations_per_image": count,
            }
            lines.append((name, scores, count))
            rows[name.replace(", ", "\n")] = sampler(prompts, range(len(prompts)))
        assert self.evaluator is not None
        num_images = self.evaluator.num_images
        summary |= {"num_images": num_images, "teacher_steps": steps, "teacher_guidance": guidance}
        picture = comparison(rows, prompts)
        save_png(picture, root / "comparison.png")
        _log(trainer, scores)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("comparison", [picture])
        print(_table(lines, num_images, guidance))
        print(f"Pictures, scores, checkpoint and the exported generator: {root}")
        return summary

    def _score(
        self, trainer: L.Trainer, module: Any, sampler: Sampler, name: str = "evaluation"
    ) -> Scores:
        assert self.evaluator is not None
        prompts = trainer.datamodule.heldout_prompts
        bar = trainer.progress_bar_callback
        show = bar is not None and bar.is_enabled
        return self.evaluator.evaluate(sampler, prompts, module.device, name if show else None)


def _steps(count: int) -> str:
    """Say how many steps."""
    return "1 step" if count == 1 else f"{count} steps"


def _generator(module: Any, network: nn.Module) -> Sampler:
    """Sample a network of the generator's kind as the run does."""
    return lambda prompts, seeds: module.teacher.decode(
        module.generate(prompts, seeds, network=network)
    )


def _log(trainer: L.Trainer, scores: Scores) -> None:
    """Log scores at the current iteration to every logger."""
    values = {"clip_score": scores.clip} | ({} if scores.fid is None else {"fid": scores.fid})
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


def _table(lines: list[tuple[str, Scores, int]], num_images: int, guidance: float) -> str:
    """Lay out the comparison."""
    head = f"{'':<22}{'FID':>8}{'CLIP':>8}{'s/image':>10}{'evaluations/image':>19}"
    body = [
        f"{name:<22}{'-' if s.fid is None else f'{s.fid:.3f}':>8}{s.clip:>8.3f}"
        f"{s.seconds_per_image:>10.4f}{count:>19}"
        for name, s, count in lines
    ]
    note = (
        f"{num_images} images of the same prompts and seeds; the teacher at guidance {guidance:g}"
    )
    return "\n".join(["", head, *body, note])
