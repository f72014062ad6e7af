"""The commands: a name, where it stands and what it does."""

from typing import NamedTuple

PROGRAM = "python -m sid_lsg.cli"


class Command(NamedTuple):
    """A command.

    Attributes:
        module: The module of `sid_lsg.commands` and its function.
        summary: What the command does, in a line.
        of_fit: Whether it takes the options of `fit`. Its function then takes the arguments as they
            were typed; any other function's parameters are the options.
        check: A function of the module that checks the arguments before they are parsed.
    """

    module: str
    summary: str
    of_fit: bool = False
    check: str | None = None


COMMANDS = {
    "fit": Command("fit", "distil a teacher into a one-step generator", of_fit=True),
    "generate": Command("generate", "make images of prompts"),
    "app": Command("app", "try a generator in the browser, beside its teacher"),
    "export": Command("export", "write a trained generator as a folder for other software"),
    "consolidate": Command("consolidate", "make one file of a checkpoint that is a folder"),
    "import-official": Command(
        "import_official", "make an exported folder of an official checkpoint"
    ),
    "evaluate": Command("evaluate", "score a model or a folder of images, and write a report"),
    "prepare-coco": Command("prepare_coco", "make COCO's caption list and reference statistics"),
    "study": Command(
        "study",
        "run a grid of fits and compare their scores in tables and plots",
        check="check_series",
    ),
    "estimate": Command(
        "estimate", "estimate a fit's memory on each device, and its hours", of_fit=True
    ),
    "benchmark": Command(
        "benchmark", "measure a fit's speed and memory on this machine", of_fit=True
    ),
}
