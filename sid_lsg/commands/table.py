"""The list of commands."""

from typing import NamedTuple

PROGRAM = "python -m sid_lsg.cli"


class Command(NamedTuple):
    """A command.

    Attributes:
        module: Name of the module in `sid_lsg.commands` and of its function.
        summary: A description in one line.
        of_fit: True if it accepts the options of `fit`. Its function then takes the unparsed
            arguments; otherwise the function's parameters are the options.
        check: Name of a function in the module that checks the arguments before parsing.
    """

    module: str
    summary: str
    of_fit: bool = False
    check: str | None = None


COMMANDS = {
    "fit": Command("fit", "distil a teacher into a one-step generator", of_fit=True),
    "generate": Command("generate", "generate images of prompts"),
    "app": Command("app", "try a generator in the browser, beside its teacher"),
    "export": Command("export", "export a trained generator for other software"),
    "consolidate": Command("consolidate", "convert a checkpoint folder into one file"),
    "import-official": Command("import_official", "convert a checkpoint of the official code"),
    "evaluate": Command("evaluate", "score a model or a folder of images, and write a report"),
    "prepare-coco": Command("prepare_coco", "create COCO's caption list and reference statistics"),
    "prompts": Command("prompts", "collect the captions of a data set as prompts, and filter them"),
    "study": Command(
        "study",
        "run a grid of fits and compare their scores in tables and plots",
        check="check_series",
    ),
    "dashboard": Command("dashboard", "save W&B workspace views of runs and sweeps"),
    "estimate": Command("estimate", "estimate the memory and the duration of a fit", of_fit=True),
    "benchmark": Command(
        "benchmark", "measure a fit's speed and memory on this machine", of_fit=True
    ),
}
