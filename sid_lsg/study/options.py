"""Options of a study, and options of `fit` by dotted names."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sid_lsg.files.sources import resolve
from sid_lsg.messages.checks import check_teacher_guidance, refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.reading import read_yaml
from sid_lsg.options.renamed import current

ErrorBars = Literal["std", "sem"]
Options = dict[str, Any]


@dataclass
class Series:
    """A series of fits, drawn as one line in the plots.

    Args:
        points: Options of `fit` by dotted names for each fit's label, for example
            {"1.5": {model.guidance.scale: 1.5}}.
        options: Options of all fits of the series.
        images: Images that each fit trains on; by default the study's.
    """

    points: dict[str, dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    images: int | None = None


@dataclass
class Teacher:
    """Settings for scoring the teacher, sampled with DDIM: all pairs of steps and guidance.

    Args:
        num_steps: Numbers of steps.
        guidance: Guidance scales.
    """

    num_steps: list[int] = field(default_factory=lambda: [25])
    guidance: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        """Convert scales to float, so that tables show 1.0 for 1."""
        self.guidance = [float(scale) for scale in self.guidance]


@dataclass
class PromptFile:
    """A prompt file derived from another one; the operations are applied in this order.

    Args:
        source: The prompts, as for --data.prompts.
        having: Keep prompts that contain one of these phrases.
        lacking: Keep prompts that contain none of these phrases.
        share: Keep this fraction of the prompts, chosen at random, in their order.
        rewrite: Regular expressions and their replacements, in the syntax of `re.sub`.
        drop_words: Drop each word with this probability, but never all words of a prompt.
        shuffle_words: Shuffle the words of each prompt.
        seed: Seed of the random choices.
    """

    source: str
    having: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    share: float = 1.0
    rewrite: dict[str, str] = field(default_factory=dict)
    drop_words: float = 0.0
    shuffle_words: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check fractions and regular expressions.

        Raises:
            UsageError: If one is out of range or invalid.
        """
        if not 0 < self.share <= 1:
            refuse("prompt_files: share", self.share, "above 0 and at most 1")
        if not 0 <= self.drop_words < 1:
            refuse("prompt_files: drop_words", self.drop_words, "a probability below 1")
        for pattern, replacement in self.rewrite.items():
            try:
                re.compile(pattern).sub(replacement, "")
            except (re.error, IndexError) as error:
                raise UsageError(f"--prompt_files: rewrite {pattern!r}: {error}.") from None

    def make(self, prompts: Sequence[str]) -> list[str]:
        """Return the derived prompts, which are the same on any machine.

        Raises:
            UsageError: If no prompt is left.
        """
        kept = [
            prompt
            for prompt in prompts
            if (not self.having or any(phrase in prompt for phrase in self.having))
            and not any(phrase in prompt for phrase in self.lacking)
        ]
        draw = random.Random(self.seed)  # use only random(), which Python keeps reproducible
        order = sorted(range(len(kept)), key=lambda _: draw.random())
        kept = [kept[i] for i in sorted(order[: round(self.share * len(kept))])]
        if not kept:
            raise UsageError(
                f"--prompt_files: nothing is left of {self.source!r} with having {self.having}, "
                f"lacking {self.lacking} and share {self.share}. Filter less, or raise share."
            )
        return [self._changed(prompt, draw) for prompt in kept]

    def _changed(self, prompt: str, draw: random.Random) -> str:
        for pattern, replacement in self.rewrite.items():
            prompt = re.sub(pattern, replacement, prompt)
        words = prompt.split()
        if self.drop_words:
            words = [w for w in words if draw.random() >= self.drop_words] or words[-1:]
        if self.shuffle_words:
            words = sorted(words, key=lambda _: draw.random())
        return " ".join(words)


@dataclass
class Study:
    """Options of a study; they are checked without those of its fits.

    The attributes are arguments of `sid_lsg.commands.study.study`.
    """

    output: Path
    base: list[str]
    options: Options
    series: dict[str, Series]
    seeds: list[int]
    images: int
    teacher: Teacher | None = None
    generator_steps: list[int] = field(default_factory=list)
    accelerator: str | None = None

    def __post_init__(self) -> None:
        """Check that options are present and in range.

        Raises:
            UsageError: For the first that is not.
        """
        for name, value in (("base", self.base), ("series", self.series), ("seeds", self.seeds)):
            if not value:
                raise UsageError(f"--{name} is missing. Give it, or a --config of configs/study.")
        self.base = [resolve(path) for path in self.base]
        for path in self.base:
            if not Path(path).is_file():
                raise UsageError(
                    f"--base: there is no file {path!r}. Relative paths start at the working "
                    f"directory, {Path.cwd()}."
                )
        if len(set(self.seeds)) < len(self.seeds):
            refuse("seeds", self.seeds, "different numbers")
        for label, series in self.series.items():
            if not series.points:
                raise UsageError(f"--series: {label!r} has no points. Add some, or remove it.")
            if (series.images or self.images) < 1:
                refuse("images", series.images or self.images, "at least 1")
        for count in [*self.generator_steps, *(self.teacher.num_steps if self.teacher else [])]:
            if count < 1:
                refuse("generator_steps and --teacher.num_steps", count, "at least 1 each")
        for scale in self.teacher.guidance if self.teacher else []:
            if scale:  # 0 also means no guidance
                check_teacher_guidance("teacher.guidance", scale)


def merge(*parts: Mapping[str, Any]) -> Options:
    """Merge options by dotted names; the last one wins.

    `a: {...}` after `a.b: 1` replaces it, as on the command line.
    """
    merged: Options = {}
    for name, value in (item for part in parts for item in part.items()):
        merged = {
            key: v for key, v in merged.items() if key != name and not key.startswith(f"{name}.")
        }
        merged[name] = value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Options:
    """Return a config's options by dotted names; lists and empty sections are values."""
    flat: Options = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def explicit(base: Sequence[str], options: Options) -> Options:
    """Return all options that a fit's configs and arguments set, without defaults.

    Raises:
        UsageError: If a config is not a YAML file of options.
    """
    flat: Options = {}
    for path in base:
        try:
            content = read_yaml(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"--base: cannot read {path!r} as YAML ({reason}).") from error
        if not isinstance(content, dict):
            raise UsageError(f"--base: {path!r} holds no options, but {content!r:.60}.")
        flat |= flatten(current(content))
    for name, value in options.items():
        flat = merge(flat, {name: value})
        if isinstance(value, Mapping) and value:
            flat = merge(flat, flatten({name: value}))
            flat.pop(name)
    return flat


def arguments(base: Sequence[str], options: Options) -> list[str]:
    """Return configs and options as command line arguments."""
    return [
        *(f"--config={path}" for path in base),
        *(f"--{name}={in_words(value)}" for name, value in options.items()),
    ]


def in_words(value: Any) -> str:
    """Format an option's value: text unchanged, anything else as JSON, which is valid YAML."""
    return value if isinstance(value, str) else json.dumps(value)
