"""Read the file that an offline run of Weights & Biases writes."""

import json
import time
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


def records(folder: Path) -> list[Record]:
    """Read the records of an offline run; wait until wandb's process has written the last one."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(300):
        found = parsed(file.read_bytes())
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} does not end")


def parsed(data: bytes) -> list[Record]:
    """Parse wandb's file: a log of 32 KiB blocks, as in LevelDB."""
    found, position, parts = [], 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # padding at the end of a block
            position += 32768 - position % 32768
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        position += 7 + length
        parts += data[position - length : position]
        if kind in (1, 4):  # a complete record, or its last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of an offline run."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            inner = row
            *outer, last = item.nested_key or [item.key]
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = json.loads(item.value_json)
        rows.append(row)
    return rows
