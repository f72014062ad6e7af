"""Find and check the `--config` files of a command line before a parser reads them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from sid_lsg.files.remote import check_local
from sid_lsg.files.sources import resolve
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.reading import read_yaml

CONFIG_OPTIONS = ("--config", "-c")


def pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each argument with the next one, which is its value if it is an option."""
    return pairwise([*(part for arg in args for part in arg.split("=", 1)), ""])


def check_config_files(args: Sequence[str]) -> None:
    """Reject a `--config` file that is missing, empty or not YAML.

    Raises:
        UsageError: For the first such file.
    """
    for option, value in pairs(args):
        if option not in CONFIG_OPTIONS:
            continue
        if not value or value.startswith("-"):
            raise UsageError(
                "--config needs a file: give one, for example package:configs/lsg.yaml."
            )
        check_local(value, "config")
        try:
            found = read_yaml(Path(resolve(value)).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--config: cannot read {value!r} ({error}).") from error
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"--config: {value!r} is not valid YAML ({reason}).") from error
        if not isinstance(found, dict):
            what = "is empty" if found is None else "contains no options"
            raise UsageError(
                f"--config: {value!r} {what}. Give a YAML file of options and their values, such "
                "as package:configs/lsg.yaml."
            )
