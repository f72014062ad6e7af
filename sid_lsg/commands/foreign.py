"""Explain errors that a run's options cause in Lightning or in other packages."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from sid_lsg.messages.errors import UsageError
from sid_lsg.messages.words import in_a_line

_PACKAGE = Path(__file__).parents[1]
# Files of this package that pass options on; an error below them is not theirs.
_PASSING = {_PACKAGE / "cli.py", _PACKAGE / "commands/fit.py", _PACKAGE / "commands/parser.py"}


@contextmanager
def explaining(
    trainer: Callable[[], Mapping[str, Any]], defaults: Callable[[], Mapping[str, Any]]
) -> Iterator[None]:
    """Convert errors that options of the Trainer cause in other packages to one message.

    An error that passes through this package's own code is a bug here, and stays as it is.

    Args:
        trainer: Returns the configuration's `trainer` section; called for an error alone.
        defaults: Returns its values in a run that gives none.

    Raises:
        UsageError: Instead of an error of another package; it names the option.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        cause = _first(error)
        if isinstance(cause, UsageError):
            raise cause from None
        files = _files(error)
        if not isinstance(cause, MisconfigurationException) and any(map(_is_ours, files)):
            raise
        option = _option(cause, files, trainer(), defaults())
        kind = "" if isinstance(cause, MisconfigurationException) else f" ({type(cause).__name__})"
        raise UsageError(f"--{option}: {in_a_line(cause)}{kind}. Change or remove it.") from error


def _first(error: BaseException) -> BaseException:
    """Return the error from which the others followed; the parser raises its own after it."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        if not isinstance(earlier, Exception):
            break
        error = earlier
    return error


def _files(error: BaseException | None) -> list[Path]:
    """Return the files of the code that an error and those before it passed through."""
    found: list[Path] = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found.append(Path(trace.tb_frame.f_code.co_filename))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def _is_ours(file: Path) -> bool:
    return file.is_relative_to(_PACKAGE) and file not in _PASSING and file != Path(__file__)


def _option(
    error: BaseException,
    files: Sequence[Path],
    trainer: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> str:
    """Name the option that caused an error: by the code that raised it, or by its message."""
    for name, path in _classes(trainer):
        if _defined_in(path) & {*files}:
            return f"trainer.{name} {path.rpartition('.')[2]}"
    changed = [n for n, v in trainer.items() if v != defaults.get(n) and n != "callbacks"]
    # By a quoted or assigned name, a name, the folder of the code, or a value; given options before
    # the others.
    for pattern in (r"(`{0}`|\b{0}=)", r"\b{0}\b"):
        for name in [*changed, *trainer]:
            if re.search(pattern.format(name), str(error)):
                return f"trainer.{name}"
    folders = {file.parent.name for file in files}
    for name in changed:
        value, plurals = trainer[name], {f"{name}s", f"{name[:-1]}ies"}
        quoted = isinstance(value, str) and len(value) > 2
        if quoted and (plurals & folders or re.search(rf"\b{re.escape(value)}\b", str(error))):
            return f"trainer.{name} {value}"
    return f"trainer ({', '.join(changed)})" if changed else "trainer"


def _classes(trainer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the options that name classes, with the classes' paths."""
    for name, value in trainer.items():
        for one in value if isinstance(value, list) else [value]:
            path = one.get("class_path") if isinstance(one, Mapping) else None
            if isinstance(path, str):
                yield name, path


def _defined_in(path: str) -> set[Path]:
    """Return the files that define a class and its bases of the same package."""
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name)
    files = set()
    for base in inspect.getmro(kind):
        if base.__name__ not in ("Callback", "Logger", "object"):
            try:
                files.add(Path(inspect.getsourcefile(base) or ""))
            except TypeError:  # built in
                continue
    return files
