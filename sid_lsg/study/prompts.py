"""Prompt files that a study makes of another one: fewer prompts, other words, some kept apart."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sid_lsg.data.corpus import find_files, read_corpus
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

PREFIX = "study:"  # begins the path of a file in the study's own folder
FOLDER = "prompts"


@dataclass
class PromptFile:
    """How a prompt file is made of another one. What is given is done in this order.

    Args:
        source: The prompts, as for --data.prompts.
        having: Keep the prompts in which one of these phrases stands.
        lacking: Keep the prompts in which none of these stands.
        share: Keep this share of the prompts, drawn at random, in their order.
        drop_words: Leave out each word with this probability, but never all of a prompt.
        shuffle_words: Put the words of each prompt into random order.
        seed: Decides what is drawn.
    """

    source: str
    having: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    share: float = 1.0
    drop_words: float = 0.0
    shuffle_words: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0 < self.share <= 1:
            refuse("prompt_files: share", self.share, "a share, above 0 and at most 1")
        if not 0 <= self.drop_words < 1:
            refuse("prompt_files: drop_words", self.drop_words, "a probability below 1")

    def make(self, prompts: Sequence[str]) -> list[str]:
        """Make the prompts; the same ones on any machine.

        Raises:
            UsageError: If none is left.
        """
        kept = [
            prompt
            for prompt in prompts
            if (not self.having or any(phrase in prompt for phrase in self.having))
            and not any(phrase in prompt for phrase in self.lacking)
        ]
        draw = random.Random(self.seed)  # of its methods, Python promises to keep random() alone
        order = sorted(range(len(kept)), key=lambda _: draw.random())
        kept = [kept[i] for i in sorted(order[: round(self.share * len(kept))])]
        if not kept:
            raise UsageError(
                f"--prompt_files: nothing is left of {self.source!r} with having {self.having}, "
                f"lacking {self.lacking}, share {self.share}. Ask for more."
            )
        return [self._changed(prompt.split(), draw) for prompt in kept]

    def _changed(self, words: list[str], draw: random.Random) -> str:
        if self.drop_words:
            words = [w for w in words if draw.random() >= self.drop_words] or words[-1:]
        if self.shuffle_words:
            words = sorted(words, key=lambda _: draw.random())
        return " ".join(words)


def names(files: dict[str, PromptFile]) -> set[str]:
    """Return what options call these files: study:prompts/NAME.txt."""
    return {f"{PREFIX}{FOLDER}/{name}.txt" for name in files}


def located(value: object, output: Path) -> object:
    """Put the study's folder into an option's value, in place of the prefix."""
    if isinstance(value, str) and value.startswith(PREFIX):
        return str(output / value.removeprefix(PREFIX))
    if isinstance(value, list):
        return [located(item, output) for item in value]
    return value


def check_names(value: object, known: set[str]) -> None:
    """Refuse an option that names a file of the study which it does not make.

    Raises:
        UsageError: For the first one.
    """
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and item.startswith(PREFIX) and item not in known:
            raise UsageError(
                f"--series: {item!r} is none of the --prompt_files ({', '.join(sorted(known))}). "
                "Add it there, or name a file."
            )


def write_prompts(files: dict[str, PromptFile], output: Path) -> None:
    """Write the prompt files into the study's folder; leave those alone that are there.

    Raises:
        UsageError: If a file is there that holds other prompts.
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
                f"--prompt_files: {name!r} would not be what {str(path)!r} holds, which runs have "
                "been trained on. Give it another name, or choose another --output."
            )
