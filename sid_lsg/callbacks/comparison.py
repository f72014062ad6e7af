"""Compare the teacher, the untrained and the distilled generator."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from sid_lsg.images.pixels import comparison, save_png, to_pil
from sid_lsg.loggers import log_images, log_table, warning_if_unwritten
from sid_lsg.messages.words import steps
from sid_lsg.metrics.evaluator import Sampler

_SHOWN = {"fid": "FID", "clip_score": "CLIP", "precision": "precision", "recall": "recall"}


class Contestant(NamedTuple):
    """A model to compare, its network evaluations per image, and how its scores are named."""

    name: str
    sampler: Sampler
    evaluations: int
    prefix: str = ""
    suffix: str = ""

    def images(self, prompts: Sequence[str], batch_size: int) -> Tensor:
        """Return an image of each prompt, with seeds 0, 1, ..., sampled in batches."""
        seeds = range(len(prompts))
        parts = [slice(start, start + batch_size) for start in seeds[::batch_size]]
        return torch.cat([self.sampler(prompts[part], seeds[part]) for part in parts])

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return its scores by their names in summary.json."""
        return {f"{self.prefix}{name}{self.suffix}": value for name, value in values.items()}


class Row(NamedTuple):
    """The scores, the sampling time and sample images of a contestant."""

    name: str
    scores: Mapping[str, float]
    seconds_per_image: float
    evaluations: int
    images: Tensor


def generators(module: Any, num_steps: Sequence[int] = ()) -> list[Contestant]:
    """Return the generator at other numbers of steps, and last as it was trained."""
    own = module.num_steps
    others = [
        Contestant(
            f"SiD-LSG, {steps(count)}",
            partial(module.sample_generator, num_steps=count),
            count,
            suffix=f"_{steps(count).replace(' ', '_')}",
        )
        for count in sorted({*num_steps} - {own})
    ]
    return [*others, Contestant(f"SiD-LSG, {steps(own)}", module.sample_generator, own)]


def references(module: Any, teacher_steps: int, guidance: float) -> list[Contestant]:
    """Return what the generator is compared with: its teacher, and itself before the training."""

    def teacher(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return module.sample_teacher(prompts, seeds, teacher_steps, guidance)

    own = module.num_steps
    evaluations = module.teacher.sampling_evaluations(teacher_steps, guidance)
    return [
        Contestant(f"teacher, {steps(teacher_steps)}", teacher, evaluations, "teacher_"),
        Contestant(f"untrained, {steps(own)}", module.sample_untrained, own, "initial_"),
    ]


def save_and_log(
    rows: Sequence[Row],
    prompts: Sequence[str],
    clip_scores: Sequence[float | None],
    trainer: L.Trainer,
) -> None:
    """Write comparison.png; log it, and a table of prompts, images and the last row's scores."""
    picture = comparison({row.name.replace(", ", "\n"): row.images for row in rows}, prompts)
    with warning_if_unwritten("The comparison's images"):
        save_png(picture, Path(trainer.default_root_dir) / "comparison.png")
        log_images(trainer.loggers, "comparison", [picture], None, trainer.global_step)
        teacher, own = to_pil(rows[0].images), to_pil(rows[-1].images)
        log_table(
            trainer.loggers,
            "samples",
            ["prompt", "teacher", "generator", "clip_score"],
            list(zip(prompts, teacher, own, clip_scores, strict=True)),
            trainer.global_step,
        )


def table(
    rows: Sequence[Row],
    num_images: int,
    protocol: str,
    guidance: float,
    published: Sequence[str] = (),
) -> str:
    """Format the scores as a table, with published scores by name."""
    titles = _SHOWN | {name: name for name in published}
    known = [name for name in titles if name in rows[0].scores]
    shown = {name: max(10, len(titles[name]) + 2) for name in known}  # with their widths
    head = " " * 22 + "".join(f"{titles[name]:>{width}}" for name, width in shown.items())
    body = [
        f"{row.name:<22}"
        + "".join(f"{row.scores[name]:>{width}.3f}" for name, width in shown.items())
        + f"{row.seconds_per_image:>10.4f}{row.evaluations:>6}"
        for row in rows
    ]
    note = (
        f"{num_images} images of the same prompts and seeds, protocol `{protocol}`; the teacher at "
        f"guidance {guidance:g}"
    )
    return "\n".join(["", f"{head}{'s/image':>10}{'NFE':>6}", *body, note])
