"""Damaged and malicious files."""

import os
from pathlib import Path
from typing import Any


class Trap:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def flip(path: Path, place: int) -> None:
    """Change one bit, in a file of its own."""
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.unlink()
    path.write_bytes(data)
