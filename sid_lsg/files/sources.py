"""What a name of a model or a file means: a path, a Hub id, `package:...` or `architecture:...`."""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

from sid_lsg.messages.errors import UsageError

PREFIX = "package:"
ARCHITECTURE = "architecture:"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"  # in a model of diffusers

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Source(NamedTuple):
    """What a name means.

    Attributes:
        kind: `folder` and `file` exist on this machine; `hub` is a Hub id; `architecture` names an
            untrained model; `missing` is a path at which nothing lies.
        name: The name as it was given.
        path: Where a folder or file lies, or would lie.
    """

    kind: Literal["folder", "file", "hub", "architecture", "missing"]
    name: str
    path: Path

    @property
    def is_local(self) -> bool:
        """Whether something lies at the path."""
        return self.kind in ("folder", "file")

    @property
    def location(self) -> str:
        """Return what diffusers and transformers load from: a path or a Hub id.

        A path that does not exist never looks like a Hub id, so that nothing is downloaded for it.
        """
        if self.is_local:
            return str(self.path)
        return str(self.path.absolute()) if self.kind == "missing" else self.name


def resolve(path: str) -> str:
    """Turn `package:demo/fashion` into the path of that file or folder inside the package.

    Shipped configs name the embedded teacher this way, so they work from any directory. `~` becomes
    the home folder. Every other path is returned as it is.
    """
    if path.startswith(PREFIX):
        return str(files("sid_lsg").joinpath(path.removeprefix(PREFIX)))
    return os.path.expanduser(path)


def locate(name: str) -> Source:
    """Decide what a name means. What exists on this machine comes before a Hub id."""
    if name.startswith(ARCHITECTURE):
        return Source("architecture", name, Path(name))
    path = Path(resolve(name))
    if path.is_dir():
        return Source("folder", name, path)
    if path.exists():
        return Source("file", name, path)
    return Source("hub" if _HUB_ID.fullmatch(name) else "missing", name, path)


def located(name: str, option: str, remedy: str) -> Source:
    """Decide what a name means, and reject a path at which nothing lies.

    Args:
        name: The name.
        option: The option that gave it, for messages.
        remedy: What to give instead, as a sentence.

    Raises:
        UsageError: If nothing is there.
    """
    source = locate(name)
    if source.kind == "missing":
        raise UsageError(
            f"--{option}: there is no folder {str(source.path)!r}, and it is not a Hub id "
            f"(owner/name). {remedy}"
        )
    return source
