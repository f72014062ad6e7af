"""The record in a checkpoint: schema, package versions and configuration of its run."""

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sid_lsg.messages.errors import UsageError

RECORD = "sid_lsg"  # the key of the record in a checkpoint
SCHEMA = 1  # increase it when older versions can no longer resume from new checkpoints

_NEEDED = ("state_dict", "optimizer_states", "loops", "pytorch-lightning_version")
_PACKAGES = ("torch", "lightning", "diffusers", "transformers", "sid-lsg")


def check_contents(found: Any, path: str, option: str = "ckpt_path") -> None:
    """Reject a checkpoint of a newer version, and a file that is not a checkpoint of a run.

    Args:
        found: The content of the file.
        path: Its path, for error messages.
        option: Name of the option that gave it, for error messages.

    Raises:
        UsageError: If it is one of these.
    """
    record = found.get(RECORD) if isinstance(found, dict) else None
    schema = record.get("schema") if isinstance(record, dict) else 0  # old ones have no record
    if not isinstance(schema, int) or schema > SCHEMA:
        by = (record or {}).get("versions", {}).get("sid-lsg", "unknown")
        raise UsageError(
            f"--{option}: {path!r} has schema {schema!r}, and this version reads up to {SCHEMA}. "
            f"Continue with the version of sid_lsg that wrote it ({by}) or a newer one."
        )
    for name in _NEEDED:
        if not isinstance(found, dict) or name not in found:
            raise UsageError(
                f"--{option}: {path!r} is not a checkpoint of a run: it lacks {name!r}. Give "
                "one from a run directory's checkpoints/."
            )


def add_record(checkpoint: dict[str, Any], config: Mapping[str, Any] | None) -> None:
    """Add schema, versions and the run's configuration to a checkpoint, as plain data.

    A checkpoint that is saved when the next iteration has already started also counts that
    iteration. A resumed run repeats it, so it is subtracted.
    """
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # a source tree, not installed
            versions[name] = importlib.metadata.version(name)
    checkpoint[RECORD] = {"schema": SCHEMA, "versions": versions, "config": config}
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if progress["total"]["ready"] > progress["total"]["started"]:
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"]
        progress["is_last_batch"] = False  # it is the value of the next batch
