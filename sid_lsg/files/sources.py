"""Resolve names of models and files: paths, Hub ids, `package:...` and `architecture:...`."""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from sid_lsg.messages.errors import UsageError

PREFIX = "package:"
ARCHITECTURE = "architecture:"
CONFIGS = "configs"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"  # in a model of diffusers

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Source(NamedTuple):
    """A resolved name of a model or file.

    Attributes:
        kind: `folder` and `file` exist on this machine; `hub` is a Hub id; `architecture` names an
            untrained model; `missing` is a path that does not exist.
        name: The name that the user gave.
        path: The path of a `folder`, `file` or `missing`.
    """

    kind: Literal["folder", "file", "hub", "architecture", "missing"]
    name: str
    path: Path

    @property
    def is_local(self) -> bool:
        """Return True if the path exists."""
        return self.kind in ("folder", "file")

    @property
    def location(self) -> str:
        """Return the path or Hub id to pass to diffusers and transformers.

        A path that does not exist is made absolute, so that it does not look like a Hub id and
        nothing is downloaded for it.
        """
        if self.is_local:
            return str(self.path)
        return str(self.path.absolute()) if self.kind == "missing" else self.name


def resolve(path: str) -> str:
    """Return a path with `package:` replaced by the package's folder and `~` by the home folder.

    Configs refer to the embedded teacher as `package:demo/fashion`, so they work from any
    directory, and `package:configs/demo.yaml` is a shipped config. Other paths are returned
    unchanged.
    """
    if not path.startswith(PREFIX):
        return os.path.expanduser(path)
    package, name = Path(str(files("sid_lsg"))), path.removeprefix(PREFIX)
    # A wheel has the configs inside the package; a checkout has them next to it.
    beside = name.split("/")[0] == CONFIGS and not (package / CONFIGS).is_dir()
    return str((package.parent if beside else package) / name)


def locate(name: str) -> Source:
    """Resolve a name. An existing path takes precedence over a Hub id."""
    if name.startswith(ARCHITECTURE):
        return Source("architecture", name, Path(name))
    path = Path(resolve(name))
    if path.is_dir():
        return Source("folder", name, path)
    if path.exists():
        return Source("file", name, path)
    return Source("hub" if _HUB_ID.fullmatch(name) else "missing", name, path)


def located(name: str, option: str, remedy: str) -> Source:
    """Resolve a name, and reject a path that does not exist.

    Args:
        name: The name.
        option: Name of the option that gave it, for error messages.
        remedy: A sentence that says what to give instead.

    Raises:
        UsageError: If the name is neither an existing path nor a Hub id.
    """
    source = locate(name)
    if source.kind == "missing":
        raise UsageError(
            f"--{option}: there is no folder {str(source.path)!r}, and it is not a Hub id "
            f"(owner/name). {remedy}"
        )
    return source
