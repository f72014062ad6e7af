"""Make damaged and malicious files."""

import os
import struct
import zipfile
from pathlib import Path
from typing import Any


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def weight_place(path: Path) -> int:
    """Return a position inside the largest tensor of a file that torch.save has written.

    The padding between tensors differs between versions of PyTorch.
    """
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    with path.open("rb") as file:
        file.seek(record.header_offset + 26)  # the lengths of the name and the padding
        name, padding = struct.unpack("<HH", file.read(4))
    return int(record.header_offset + 30 + name + padding + record.file_size // 2)


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file; replace the file, so that hard links keep the original."""
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    path.unlink()
    path.write_bytes(data)
