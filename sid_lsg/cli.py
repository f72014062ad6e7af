"""The command line: `python -m sid_lsg.cli fit --config configs/lsg.yaml` and other commands.

It imports no large library, so that `--help`, `--version` and an unknown command answer at once.
"""

import difflib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module

from sid_lsg import __doc__ as project
from sid_lsg import __version__
from sid_lsg.commands.table import COMMANDS, PROGRAM
from sid_lsg.distributed.signals import ending_on_signals, ignore_in_launched, is_launched
from sid_lsg.distributed.threads import watch_load
from sid_lsg.files.config_files import check_config_files
from sid_lsg.messages.console import fail, format_warning
from sid_lsg.messages.errors import Interrupted, SharedError, TrainingStopped, UsageError
from sid_lsg.messages.quiet import quiet_libraries
from sid_lsg.messages.streams import keep_output

_FAILURES = "sid_lsg.distributed.failures"  # imported by commands with several processes
_TOGETHER = {"fit", "generate", "evaluate"}  # commands that several processes run together
_LAUNCHED = {"LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"}  # variables of launched processes


def start() -> None:
    """Run the command line as a program: `sid-lsg`, `python -m sid_lsg` or `python -m sid_lsg.cli`.

    Before `main` handles Ctrl-C, the signal ends the program without a traceback. Output that
    cannot be written does not end it.
    """
    keep_output()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if is_launched() and sys.argv[1:2] == ["fit"]:
        # The launching process handles signals for all. If this process ended before it has
        # connected, the launching one would wait half an hour for it and ignore signals.
        ignore_in_launched()
    try:
        main()
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 1)
        raise
    _leave(0)


def _leave(status: int) -> None:
    """Exit at once if W&B's service has died during the run: wandb would block the end."""
    module = sys.modules.get("sid_lsg.loggers.wandb_logger")
    if module is not None and module.service_died:
        with suppress(Exception):
            sys.modules["wandb"].finish()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    A mistake of the user exits with one message and status 2, a signal with 128 plus its number:
    SIGTERM with 143, and Ctrl-C with 130.
    """
    quiet_libraries()
    warnings.formatwarning = format_warning
    try:
        with ending_on_signals():
            _run(sys.argv[1:] if args is None else args)
    except Interrupted as error:
        if _rank() == 0:
            print(f"interrupted: {error}", file=sys.stderr)
        raise
    except TrainingStopped as error:
        if _rank() == 0:
            print(f"stopped: {error}", file=sys.stderr)
        sys.exit(3)
    except _mistakes() as error:
        if isinstance(error, SharedError) and _rank() != 0:
            sys.exit(2)
        # An error in a data loader's worker comes at the end of the worker's traceback.
        mistake = f"{UsageError.__module__}.{UsageError.__name__}: "
        fail(str(error).rpartition(mistake)[2].strip())
    finally:
        if module := sys.modules.get(_FAILURES):
            module.stop_watching()


def _run(arguments: Sequence[str]) -> None:
    """Run a command, or print the help or the version.

    Raises:
        UsageError: If there is no such command.
    """
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"sid-lsg {__version__}")
    else:
        if name.startswith("-") and "fit" in rest:  # Lightning takes options before its command
            name, rest = "fit", _options(arguments)
            if sys.argv[1:] == [*arguments]:
                sys.argv[1:] = [name, *rest]  # which Lightning and launched processes read
        _check_command(name)
        with _sharing_failures(name):
            _call(name, rest, arguments)


def _call(name: str, rest: Sequence[str], arguments: Sequence[str]) -> None:
    """Check the arguments, and call the command."""
    check_config_files(arguments)
    watch_load()
    command = COMMANDS[name]
    module = import_module(f"sid_lsg.commands.{command.module}")
    function = getattr(module, command.module)
    if command.check:
        getattr(module, command.check)(rest)
    if command.of_fit:
        function(rest)
    else:
        import_module("sid_lsg.commands.parser").call(function, name, rest)


@contextmanager
def _sharing_failures(name: str) -> Iterator[None]:
    """End all processes of a run when one of them fails within the context."""
    if name in _TOGETHER and _LAUNCHED & os.environ.keys():
        import_module(_FAILURES).watch_launched()
    try:
        yield
    except BaseException as error:
        if module := sys.modules.get(_FAILURES):
            module.tell(error)
        raise


def _options(arguments: Sequence[str]) -> list[str]:
    """Return a line without its command `fit`, which comes after some options."""
    pairs = zip(["", *arguments], arguments, strict=False)
    found = [
        place
        for place, (before, word) in enumerate(pairs)
        if word == "fit" and (not before.startswith("-") or "=" in before)
    ]
    place = found[0] if found else [*arguments].index("fit")
    return [*arguments[:place], *arguments[place + 1 :]]


def _check_command(name: str) -> None:
    """Reject a missing or unknown command, and list the commands.

    Raises:
        UsageError: If the command is missing or unknown.
    """
    if name in COMMANDS:
        return
    found = f"{name!r} is not a command" if name else "a command is missing"
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"{found}.{hint} The commands are {', '.join(COMMANDS)}; `{PROGRAM} --help` describes them."
    )


def _help() -> str:
    """Return the help text with the list of commands."""
    rows = {name: command.summary for name, command in COMMANDS.items()}
    options = {"-h, --help": "show this message", "--version": "show the version"}
    width = max(map(len, rows)) + 2
    listed, others = (
        "\n".join(f"  {name:<{width}}{text}" for name, text in lines.items())
        for lines in (rows, options)
    )
    return (
        f"usage: {PROGRAM} COMMAND [options]\n\n"
        f"{(project or '').splitlines()[0]}\n\n"
        f"commands:\n{listed}\n\noptions:\n{others}\n\n"
        f"`{PROGRAM} COMMAND --help` explains a command's options."
    )


def _mistakes() -> tuple[type[Exception], ...]:
    """Return the exceptions for mistakes of the user: ours, and Lightning's if it is loaded."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (UsageError, lightning.MisconfigurationException) if lightning else (UsageError,)


def _rank() -> int:
    """Return the rank of this process; 0 if Lightning is not loaded."""
    module = sys.modules.get("lightning_utilities.core.rank_zero")
    return int(getattr(module.rank_zero_only, "rank", 0)) if module else 0


if __name__ == "__main__":
    start()
