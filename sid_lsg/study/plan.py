"""Plan a study's runs: one per point and seed, without duplicates."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.guidance import Kappas
from sid_lsg.options.guidance import Guidance
from sid_lsg.study.options import Options, Study, arguments, explicit, merge
from sid_lsg.study.prompts import check_names, located

Read = Callable[[Sequence[str]], Any]
"""Maps the arguments of a fit to its checked options with all defaults."""

# Options of fits that the study sets, and the study's options that decide them.
_RESERVED = {
    "seed_everything": "seeds",
    "trainer.max_steps": "images",
    "trainer.default_root_dir": "output",
    "ckpt_path": "output",
}


@dataclass(frozen=True)
class Run:
    """One fit.

    Attributes:
        name: Name of its folder.
        labels: Its (series, point); several if points have the same options.
        seed: Its seed.
        options: Options after the base configs, without the folder.
        explicit: All explicitly set options, including the base configs'.
        config: All options with defaults.
        images: Images that it trains on.
        scored_prompts: The files of the prompts that it is scored on, as given in the options.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    seed: int
    options: Options
    explicit: Options
    config: Any
    images: int
    scored_prompts: str

    @property
    def kappas(self) -> Kappas:
        """Return kappa_1..kappa_4."""
        return Guidance(**self.config.model.guidance.as_dict()).kappas

    @property
    def iterations(self) -> int:
        """Return the number of iterations."""
        return int(self.images // self.config.data.batch_size)

    @property
    def evaluations(self) -> int:
        """Return the network evaluations of the fit, in units of one forward pass."""
        model = self.config.model
        real_data, last = model.real_data is not None, model.step_training == "last"
        steps = model.num_steps
        through = model.objective == "sid"
        each = evaluations_per_image(self.kappas, steps, real_data, last, model.fake_steps, through)
        return round(self.images * each)

    @property
    def title(self) -> str:
        """Return a title with series, point and seed."""
        (series, point), *_ = self.labels
        return f"{series}, {point}, seed {self.seed}"


def evaluations_per_image(
    kappas: Kappas,
    num_steps: int = 1,
    real_data: bool = False,
    only_last: bool = False,
    fake_steps: int = 1,
    through_networks: bool = True,
) -> float:
    """Count the network evaluations of an iteration per image, in units of one forward pass.

    Gradients for inputs cost as much as a forward pass, and gradients for weights the same again. A
    real image takes a forward pass and a backward pass through the encoder, which is less than half
    of the network.

    Args:
        kappas: The guidance scales.
        num_steps: K.
        real_data: Whether phase 1 also runs the fake score on real images.
        only_last: Whether gradients flow through the generator's last step alone.
        fake_steps: Optimizer steps of the fake score.
        through_networks: Whether phase 2 backpropagates through the fake score and the teacher.
    """
    fake_1, fake_23, real = kappas.evaluations
    run, trained = (((1 + num_steps) / 2), 1) if only_last else (num_steps, num_steps)
    # An evaluation that backpropagates to its input and its weights: 2 more, the first step 1 more.
    phase_1 = run + 3 * fake_1 + 2 * real_data
    return fake_steps * phase_1 + run + 2 * trained + (1 + through_networks) * (fake_23 + real)


def plan(study: Study, read: Read, prompt_files: set[str]) -> list[Run]:
    """List a study's runs, with the seeds of a point one after the other.

    Points with the same options share a run.

    Args:
        study: The study.
        read: Reads the options of `fit`.
        prompt_files: The names of the prompt files that the study creates.

    Raises:
        UsageError: If a run's options are wrong, or its scores would not be comparable.
    """
    runs: dict[str, Run] = {}
    names: dict[str, tuple[str, str]] = {}
    scored: dict[tuple[Any, ...], str] = {}
    for label, point, options, images in _points(study):
        for value in options.values():
            check_names(value, prompt_files)
        said = {name: located(value, study.output) for name, value in options.items()}
        config = read(arguments(study.base, said))
        _check(label, point, config, images, study, scored)
        options |= {"trainer.max_steps": images // config.data.batch_size}
        where = options.get("data.heldout") or explicit(study.base, options).get("data.heldout")
        where = where or explicit(study.base, options).get("data.prompts")
        slug = slugify(label, point)
        if slug in names:
            raise UsageError(
                f"--series: {(label, point)} and {names[slug]} would share the folder {slug!r}. "
                "Give one of them another label."
            )
        names[slug] = (label, point)
        for seed in study.seeds:
            own = options | {"seed_everything": seed}
            key = json.dumps([config.as_dict(), images, seed], sort_keys=True, default=str)
            said = explicit(study.base, own)
            said.pop("trainer.default_root_dir", None)  # the study sets it
            labels = (*(runs[key].labels if key in runs else ()), (label, point))
            name = runs[key].name if key in runs else f"{slug}-seed{seed}"
            prompts = where if isinstance(where, str) else ", ".join(where or ())
            runs[key] = Run(name, labels, seed, own, said, config, images, prompts)
    return [*runs.values()]


def _points(study: Study) -> Iterator[tuple[str, str, Options, int]]:
    """Iterate over the points with all their options."""
    for label, series in study.series.items():
        for point, own in series.points.items():
            options = merge(study.options, series.options, own)
            for name in options:
                for reserved, instead in _RESERVED.items():
                    if name == reserved or reserved.startswith(f"{name}."):
                        raise UsageError(
                            f"--series: {label!r}, {point!r} sets {name}, which the study sets. "
                            f"Use --{instead}."
                        )
            yield str(label), str(point), options, series.images or study.images


def _check(
    label: str,
    point: str,
    config: Any,
    images: int,
    study: Study,
    scored: dict[tuple[Any, ...], str],
) -> None:
    """Reject a point that cannot run as requested, or whose scores would not be comparable."""
    where = f"{label!r}, {point!r}"
    if images % config.data.batch_size:
        raise UsageError(
            f"--images: {images} is not a multiple of the batch size {config.data.batch_size} "
            f"({where}). Give a multiple of every batch size."
        )
    metrics = config.metrics
    if not metrics.clip and metrics.protocol != "clean256":
        raise UsageError(
            f"--base: metrics.clip is not set ({where}), so nothing would be scored. Set it to a "
            "CLIP model in a config or in --options."
        )
    if config.data.num_heldout and (study.teacher or study.generator_steps):
        option = "teacher" if study.teacher else "generator_steps"
        raise UsageError(
            f"--{option}: data.num_heldout is {config.data.num_heldout} ({where}), but "
            "evaluations outside the runs need prompts in files. Give data.heldout instead."
        )
    scored.setdefault((metrics.protocol, metrics.num_images), where)
    if len(scored) > 1:
        raise UsageError(
            f"--series: {where} is scored with {metrics.num_images} images and protocol "
            f"{metrics.protocol}, unlike {next(iter(scored.values()))}; such scores are not "
            "comparable. Set metrics.num_images and metrics.protocol in --options."
        )


def slugify(*parts: str) -> str:
    """Make a file name from labels."""
    words = (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.") for part in parts)
    return "-".join(word or "x" for word in words)
