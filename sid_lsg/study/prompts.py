"""Prompt files that a study derives from other ones by filtering and changing prompts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sid_lsg.data.corpus import find_files, read_corpus
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

PREFIX = "study:"  # prefix of paths in the study's folder
FOLDER = "prompts"


@dataclass
class PromptFile:
    """A prompt file derived from another one; the operations are applied in this order.

    Args:
        source: The prompts, as for --data.prompts.
        having: Keep prompts that contain one of these phrases.
        lacking: Keep prompts that contain none of these phrases.
        share: Keep this fraction of the prompts, chosen at random, in their order.
        drop_words: Drop each word with this probability, but never all words of a prompt.
        shuffle_words: Shuffle the words of each prompt.
        seed: Seed of the random choices.
    """

    source: str
    having: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    share: float = 1.0
    drop_words: float = 0.0
    shuffle_words: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that fractions are in range.

        Raises:
            UsageError: If one is not.
        """
        if not 0 < self.share <= 1:
            refuse("prompt_files: share", self.share, "above 0 and at most 1")
        if not 0 <= self.drop_words < 1:
            refuse("prompt_files: drop_words", self.drop_words, "a probability below 1")

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
        return [self._changed(prompt.split(), draw) for prompt in kept]

    def _changed(self, words: list[str], draw: random.Random) -> str:
        if self.drop_words:
            words = [w for w in words if draw.random() >= self.drop_words] or words[-1:]
        if self.shuffle_words:
            words = sorted(words, key=lambda _: draw.random())
        return " ".join(words)


def names(files: dict[str, PromptFile]) -> set[str]:
    """Return the files' names for options: study:prompts/NAME.txt."""
    return {f"{PREFIX}{FOLDER}/{name}.txt" for name in files}


def located(value: object, output: Path) -> object:
    """Replace the prefix in an option's value by the study's folder."""
    if isinstance(value, str) and value.startswith(PREFIX):
        return str(output / value.removeprefix(PREFIX))
    if isinstance(value, list):
        return [located(item, output) for item in value]
    return value


def check_names(value: object, known: set[str]) -> None:
    """Reject an option's value that refers to a prompt file that the study does not create.

    Raises:
        UsageError: For the first such file.
    """
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and item.startswith(PREFIX) and item not in known:
            raise UsageError(
                f"--series: {item!r} is not one of --prompt_files ({', '.join(sorted(known))}). "
                "Add it there, or give another file."
            )


def write_prompts(files: dict[str, PromptFile], output: Path) -> None:
    """Write the prompt files into the study's folder, unless they exist.

    Raises:
        UsageError: If an existing file holds other prompts.
    """
    for name, file in files.items():
        source = find_files(file.source, "--prompt_files")
        corpus = read_corpus(source, None, "--prompt_files", column_option=None)
        text = "".join(f"{line}\n" for line in file.make(corpus))
        path = output / FOLDER / f"{name}.txt"
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"--prompt_files: {name!r} differs from {str(path)!r}, which runs were trained on. "
                "Give it another name, or choose another --output."
            )
