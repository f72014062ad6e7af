"""Parse the options of commands, with errors as one message."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser

from sid_lsg.commands.table import PROGRAM
from sid_lsg.files.remote import check_options
from sid_lsg.files.sources import resolve
from sid_lsg.messages.console import fail
from sid_lsg.options.renamed import current_text
from sid_lsg.options.short_names import named_loggers_text

# Options whose values are text and may look like numbers: `seeds: 5`.
_NUMBERS = re.compile(
    r"\b((?:frozen_precision|precision|seeds)['\"]?:\s+)(\d+)(?=\s*(?:[,}#\n]|$))"
)


class _ConfigFile(ActionConfigFile):
    """Read a configuration file, which may be one of the package: `package:configs/demo.yaml`."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Merge the file into the options."""
        super().__call__(parser, cfg, resolve(values), option_string)


class Parser(ArgumentParser):
    """A parser that prints an error as one message instead of the usage of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and the command for help, and exit with status 2."""
        message = re.sub(r'Parser key "([\w.]+)":\s*', r"--\1: ", message.strip())
        numbers = re.search(r"(Got|Given) value: -?(nan|inf)", message)
        hint = " Give a finite number." if numbers else ""
        # Options as the main parser names them, but not in values.
        pattern = r"((?:Got|Given) value: .*)|\bfit\.(?=\w)"
        message = re.sub(pattern, lambda found: found[1] or "--", message)
        command = self.prog.replace(" [options]", "") if self.prog.startswith(PROGRAM) else PROGRAM
        if self.prog == PROGRAM:  # the main parser of Lightning, which has no other command
            command += " fit"
        fail(f"{message}.{hint} `{command} --help` explains every option.")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse a command line, and reject URLs where files are expected."""
        found = super().parse_args(*args, **kwargs)
        options = found.as_dict()
        check_options(options.get(str(options.get("subcommand"))) or options)
        return found

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration, which may be of an earlier version."""
        content = _NUMBERS.sub(r'\1"\2"', named_loggers_text(current_text(content)))
        return super().parse_string(content, *args, **kwargs)

    def add_config(self) -> None:
        """Add the `--config` option."""
        self.add_argument(
            "-c",
            "--config",
            action=_ConfigFile,
            help="A YAML file with any of these options, or package:configs/... for one that comes "
            "with this package. Of several files, later ones take precedence.",
        )


def call(function: Callable[..., Any], command: str, arguments: Sequence[str]) -> None:
    """Parse the options, which are the function's parameters, and call the function."""
    parser = Parser(prog=f"{PROGRAM} {command}", description=description(function))
    parser.add_config()
    parser.add_function_arguments(function, as_group=False)
    config = parser.parse_args(list(arguments))
    config.pop("config")
    _prepare()
    function(**config.as_dict())


def answer_help(function: Callable[..., Any], options: type, arguments: Sequence[str]) -> None:
    """Print the help of a command that accepts the options of `fit`, without loading those.

    Args:
        function: The function of the command, with the same name.
        options: A dataclass of the command's own options.
        arguments: The command line after the command.
    """
    if not {"-h", "--help"} & {*arguments}:
        return
    parser = Parser(
        prog=f"{PROGRAM} {function.__name__}",
        description=description(function),
        epilog=f"All options of `fit` are accepted too: see `{PROGRAM} fit --help`.",
    )
    parser.add_config()
    parser.add_class_arguments(options, function.__name__)
    parser.print_help()
    sys.exit(0)


def _prepare() -> None:
    """Disable TF32 and progress bars of libraries. This imports the libraries, so parse first."""
    from sid_lsg.messages.quiet import hide_progress_bars
    from sid_lsg.networks.precision import allow_tf32

    hide_progress_bars()
    allow_tf32(False)


def description(function: Callable[..., Any]) -> str:
    """Return a function's docstring up to its arguments."""
    return (function.__doc__ or "").split("\n\n    Args")[0]
