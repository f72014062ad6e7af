"""Make damaged and malicious files."""

import os
from pathlib import Path
from typing import Any


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file; replace the file, so that hard links keep the original."""
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.unlink()
    path.write_bytes(data)
