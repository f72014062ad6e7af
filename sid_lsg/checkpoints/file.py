"""Write, verify and open a checkpoint file without executing code.

The file is a zip file of `torch.save`, which contains the CRC-32 of each record.
"""

import hashlib
import os
import re
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, BinaryIO, NamedTuple, TypeVar, cast

import torch

_CHUNK = 2**24
_UNENDING = "is truncated or corrupted: the end of the zip file is missing"


class Damaged(Exception):
    """A checkpoint cannot be used; the message continues a sentence after its name."""


class Written(NamedTuple):
    """The length and CRC-32 of a file."""

    bytes: int
    crc32: int


def save(content: Any, path: Path) -> None:
    """Write a file directly from the tensors, and flush it to the disk.

    Raises:
        OSError: If writing fails.
    """
    _save(content, path, _Writer)


def save_counted(content: Any, path: Path) -> Written:
    """Write a file as `save` does, and return its length and CRC-32, which takes longer.

    Raises:
        OSError: If writing fails.
    """
    writer = _save(content, path, _CountingWriter)
    return Written(writer.bytes, writer.crc32)


def _save(content: Any, path: Path, kind: "type[_AnyWriter]") -> "_AnyWriter":
    with path.open("wb") as file:
        writer = kind(file)
        try:
            torch.save(content, cast(IO[bytes], writer))
        except RuntimeError:
            if writer.error is None:
                raise
        if writer.error is not None:
            raise writer.error
        file.flush()
        os.fsync(file.fileno())
    return writer


class _Writer:
    """A file that remembers its first OSError, which torch.save hides."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


class _CountingWriter(_Writer):
    """A file that also counts its bytes and computes their CRC-32."""

    bytes = crc32 = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.bytes += count
        self.crc32 = zlib.crc32(data, self.crc32)
        return count


_AnyWriter = TypeVar("_AnyWriter", bound=_Writer)


def sync(folder: Path) -> None:
    """Flush a folder's entries to the disk, if the file system supports it."""
    with suppress(OSError):  # otherwise the disk is updated later
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_file(path: Path) -> Any:
    """Open a file; its tensors are read when they are used.

    Opened tensors do not change when the file is deleted or replaced.

    Raises:
        Damaged: If the file contains anything but plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = code[1] if code else "something"
        raise Damaged(f"is rejected: it contains {what}, which is not plain data") from error
    except Exception as error:  # torch raises anything for malformed files
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise Damaged(f"is not a checkpoint ({reason})") from error


def verify_records(path: Path) -> None:
    """Read a file, and compare each record with its checksum.

    Raises:
        Damaged: If it is not a complete zip file, or a checksum differs.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
            if not zipfile.is_zipfile(file):
                raise Damaged(_UNENDING if start == b"PK" else "is not a checkpoint")
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as record:
                    while record.read(_CHUNK):  # raises where the checksum differs
                        pass
    except Damaged:
        raise
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile raises anything for damaged headers
        raise Damaged(f"is corrupted ({error})") from error


def fingerprint(path: Path) -> str:
    """Return a short digest of a checkpoint from the checksums that it contains."""
    digest = hashlib.sha256()
    if path.is_dir():
        digest.update((path / "manifest.json").read_bytes())
    else:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                digest.update(f"{record.filename} {record.file_size} {record.CRC}\n".encode())
    return digest.hexdigest()[:12]


def verify_bytes(path: Path, written: Written) -> None:
    """Read a file, and compare its length and checksum with those that were written.

    Raises:
        Damaged: If they differ.
    """
    size = crc32 = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                size, crc32 = size + len(data), zlib.crc32(data, crc32)
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror or error})") from error
    if size != written.bytes:
        expected = f"{size:,} bytes, not {written.bytes:,}"
        raise Damaged(f"is truncated or corrupted: it has {expected}")
    if crc32 != written.crc32:
        raise Damaged("is corrupted (Bad CRC-32)")
