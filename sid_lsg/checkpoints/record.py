"""What a checkpoint says of itself: its schema, what wrote it, and with which configuration."""

import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sid_lsg.messages.errors import UsageError

RECORD = "sid_lsg"  # the key of the record in a checkpoint
SCHEMA = 1  # to be raised when what is written today can no longer be continued from

_NEEDED = ("state_dict", "optimizer_states", "loops", "pytorch-lightning_version")
_PACKAGES = ("torch", "lightning", "diffusers", "transformers", "sid-lsg")


def check_contents(found: Any, path: str, option: str = "ckpt_path") -> None:
    """Reject a checkpoint of a newer version, and a file that is not of a training.

    Args:
        found: What the file holds.
        path: Its path, for messages.
        option: The option that named it, for messages.

    Raises:
        UsageError: If it is one of them.
    """
    record = found.get(RECORD) if isinstance(found, dict) else None
    schema = record.get("schema") if isinstance(record, dict) else 0  # older ones hold no record
    if not isinstance(schema, int) or schema > SCHEMA:
        by = (record or {}).get("versions", {}).get("sid-lsg", "unknown")
        raise UsageError(
            f"--{option}: {path!r} is of schema {schema!r}, and this version reads up to {SCHEMA}. "
            f"Continue with the version of sid_lsg that wrote it ({by}) or a newer one."
        )
    for name in _NEEDED:
        if not isinstance(found, dict) or name not in found:
            raise UsageError(
                f"--{option}: {path!r} is not a checkpoint of a training: it lacks {name!r}. Give "
                "one from a run directory's checkpoints/."
            )


def add_record(checkpoint: dict[str, Any], config: Mapping[str, Any] | None) -> None:
    """Add schema, versions and the run's configuration to a checkpoint, as plain data.

    A checkpoint that is made when the next iteration has begun counts that iteration too. It is
    done again in a continued run, so it is taken out of the count.
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
        progress["is_last_batch"] = False  # the next one's
