"""From a study's options to its runs: one for each point and seed, and each only once."""

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
"""The arguments of a fit -> its options, checked, with all defaults."""

# Options that the study sets, and its own that decide them.
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
        name: Of its folder.
        labels: The (series, point) that it is; several, if they are of the same options.
        seed: Its seed.
        options: What is said after the base configs, but for the folder.
        explicit: All that is said, the base configs included.
        config: All options.
        images: Images that it sees.
        scored_prompts: The prompts of its scores, as the options name them.
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
        """Return how many iterations make its images."""
        return int(self.images // self.config.data.batch_size)

    @property
    def evaluations(self) -> int:
        """Return how many evaluations of a network the fit takes."""
        model = self.config.model
        real_data = model.real_data is not None
        return self.images * evaluations_per_image(self.kappas, model.num_steps, real_data)

    @property
    def title(self) -> str:
        """Name it for people."""
        (series, point), *_ = self.labels
        return f"{series}, {point}, seed {self.seed}"


def evaluations_per_image(kappas: Kappas, num_steps: int = 1, real_data: bool = False) -> int:
    """Count an iteration's evaluations per image, in units of one forward pass.

    A pass back to the inputs costs as much as one forward, and to the weights once more. Of a real
    image it takes a forward pass, and those back through the encoder, less than half of a network.
    """
    fake_1, fake_23, real = kappas.evaluations
    return num_steps + 3 * fake_1 + 3 * num_steps + 2 * fake_23 + 2 * real + 2 * real_data


def plan(study: Study, read: Read, prompt_files: set[str]) -> list[Run]:
    """List a study's runs: the seeds of a point one after the other.

    Points that say the same options are one run.

    Args:
        study: The study.
        read: Reads the options of `fit`.
        prompt_files: The names of the files that the study makes.

    Raises:
        UsageError: If a run's options are wrong, or would not be scored like the others'.
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
            said.pop("trainer.default_root_dir", None)  # the study's own decides
            labels = (*(runs[key].labels if key in runs else ()), (label, point))
            name = runs[key].name if key in runs else f"{slug}-seed{seed}"
            prompts = where if isinstance(where, str) else ", ".join(where or ())
            runs[key] = Run(name, labels, seed, own, said, config, images, prompts)
    return [*runs.values()]


def _points(study: Study) -> Iterator[tuple[str, str, Options, int]]:
    """Go through the points with all their options."""
    for label, series in study.series.items():
        for point, own in series.points.items():
            options = merge(study.options, series.options, own)
            for name in options:
                for reserved, instead in _RESERVED.items():
                    if name == reserved or reserved.startswith(f"{name}."):
                        raise UsageError(
                            f"--series: {label!r}, {point!r} sets {name}, which the study decides. "
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
    """Refuse a point that cannot be run as it is asked for, or compared with the others."""
    where = f"{label!r}, {point!r}"
    if images % config.data.batch_size:
        raise UsageError(
            f"--images: {images} are no whole number of iterations of {config.data.batch_size} "
            f"({where}). Give a multiple of every batch size."
        )
    metrics = config.metrics
    if not metrics.clip and metrics.protocol != "clean256":
        raise UsageError(
            f"--base: metrics.clip is not set ({where}), so nothing would be scored. Name a CLIP "
            "model in a config, or in --options."
        )
    if config.data.num_heldout and (study.teacher or study.generator_steps):
        option = "teacher" if study.teacher else "generator_steps"
        raise UsageError(
            f"--{option}: data.num_heldout is {config.data.num_heldout} ({where}); what is scored "
            "beside the runs is scored on prompts in files alone. Give data.heldout in its place."
        )
    scored.setdefault((metrics.protocol, metrics.num_images), where)
    if len(scored) > 1:
        raise UsageError(
            f"--series: {where} is scored with {metrics.num_images} images, protocol "
            f"{metrics.protocol}, unlike {next(iter(scored.values()))}: such scores do not "
            "compare. Set metrics.num_images and metrics.protocol in --options."
        )


def slugify(*parts: str) -> str:
    """Make a file's name of labels."""
    words = (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.") for part in parts)
    return "-".join(word or "x" for word in words)
