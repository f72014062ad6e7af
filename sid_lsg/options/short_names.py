"""Loggers by their short names: this project's come before Lightning's of the same name."""

import re
from collections.abc import Sequence

_OWN = {"CSVLogger": "sid_lsg.loggers.CSVLogger", "WandbLogger": "sid_lsg.loggers.WandbLogger"}
_NAME = re.compile(rf"(?<![\w.])({'|'.join(_OWN)})(?![\w.])")
_LINE = re.compile(
    r"logger['\"]?:\s*\[[^\]]*\]"
    rf"|(class_path|logger)['\"]?:\s*\W*({'|'.join(_OWN)})(?![\w.])"
    rf"|^\s*-\s*['\"]?({'|'.join(_OWN)})['\"]?\s*(#.*)?$",
    re.MULTILINE,
)
_OPTIONS = {"trainer.logger", "trainer.logger+", "trainer.logger.class_path"}


def named_loggers(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which short names of loggers stand for this project's."""
    found, option = [], ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument.removeprefix("--").partition("=")[0]
        found.append(_expand(argument) if option in _OPTIONS else argument)
    return found


def named_loggers_text(text: str) -> str:
    """Return a configuration in which short names of loggers stand for this project's."""
    return _LINE.sub(lambda line: _expand(line[0]), text)


def _expand(text: str) -> str:
    return _NAME.sub(lambda name: _OWN[name[0]], text)
