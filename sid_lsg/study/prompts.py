"""Prompt files that a study derives from other ones by filtering and changing prompts."""

from pathlib import Path

from sid_lsg.data.corpus import find_files, read_corpus
from sid_lsg.files.replacing import replacing
from sid_lsg.messages.errors import UsageError
from sid_lsg.study.options import PromptFile

PREFIX = "study:"  # prefix of paths in the study's folder
FOLDER = "prompts"


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
