"""Find and read the files of pretrained networks."""

import pickle
import zipfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from sid_lsg.files.sources import locate
from sid_lsg.files.weights import first_not_finite


def folder_of(source: str, *patterns: str) -> Path:
    """Return a network's folder; download it from the Hub if necessary.

    Args:
        source: Folder, `package:...`, or Hub id, with a revision after `@` if it is not `main`.
        patterns: Patterns of the files to download from the Hub.

    Raises:
        FileNotFoundError: If there is no such folder. Errors of huggingface_hub are passed on.
    """
    found = locate(source)
    if found.kind == "folder":
        return found.path
    name, _, revision = source.partition("@")
    if found.kind == "file" or locate(name).kind != "hub":
        raise FileNotFoundError(f"there is no folder {str(found.path)!r}")
    return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors that PyTorch saved, at the top level or under the key `state_dict`.

    Raises:
        ValueError: If the file contains anything else, or a tensor that is not finite; objects are
            rejected, never unpickled.
    """
    try:
        stored = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),  # gigabytes: avoid a second copy in memory
        )
    except pickle.UnpicklingError as error:  # PyTorch's message suggests unpickling anyway
        raise ValueError(
            "it is not a weights file, or it contains objects other than tensors"
        ) from error
    if isinstance(stored, dict) and "state_dict" in stored:
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"it contains a {type(stored).__name__}, not named tensors")
    for name, value in stored.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"its {name!r} is a {type(value).__name__}, not a tensor")
    if damaged := first_not_finite(stored):
        raise ValueError(f"its weight {damaged} is not finite: the file is damaged")
    return stored
