"""Locate, hash and load published weights and tokenizers, without unpickling objects."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.files import sources
from sid_lsg.files.loading import explained
from sid_lsg.files.weights import first_not_finite
from sid_lsg.messages.errors import UsageError

HUB_FILE = "hf:"
_TOKENIZER_REMEDY = "Give a folder, or a Hub id that this machine can reach, as `tokenizer`."
_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


def names_a_file(source: str) -> bool:
    """Return True for a weights file (a path or `hf:owner/name/file`), not a folder or Hub id."""
    return source.startswith(HUB_FILE) or Path(source).suffix in _SUFFIXES


def locate(source: str, patterns: Sequence[str] = ()) -> Path:
    """Return the local path of a file or folder; download it from the Hub if necessary.

    Args:
        source: Path, `package:...`, `hf:owner/name/file`, or the Hub id of a folder.
        patterns: Patterns of the files to download from a Hub folder.

    Raises:
        FileNotFoundError: If the path does not exist. Errors of huggingface_hub are passed on.
    """
    if source.startswith(HUB_FILE):
        parts = source.removeprefix(HUB_FILE).split("/", 2)
        if len(parts) != 3:
            raise FileNotFoundError("write a file on the Hub as hf:owner/name/file")
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    found = sources.locate(source)
    if found.is_local:
        return found.path
    old_id = re.fullmatch(r"\w[\w-]*", source)  # some tokenizers' Hub ids have no owner
    if names_a_file(source) or not (found.kind == "hub" or old_id):
        raise FileNotFoundError(f"there is no {str(found.path)!r}")
    return Path(snapshot_download(source, allow_patterns=list(patterns)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from the file's top level or its key `state_dict`.

    Raises:
        ValueError: If the file contains anything else, or a tensor that is not finite; objects are
            rejected, never unpickled.
    """
    weights = load_file(path) if path.suffix == ".safetensors" else _read_tensors(path)
    if damaged := first_not_finite(weights):
        raise ValueError(f"its weight {damaged} is not finite: the file is damaged")
    return weights


def _read_tensors(path: Path) -> dict[str, Tensor]:
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
    return stored


def identify(source: str, files: Sequence[Path]) -> dict[str, str]:
    """Return `source`, `file` and `sha256` of the loaded files.

    For one file the hash is the one that the Hub shows; several files are hashed as one, in order.
    """
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return {
        "source": source,
        "file": " ".join(file.name for file in files),
        "sha256": total.hexdigest(),
    }


def load_tokenizer(kind: Any, source: str, option: str) -> Any:
    """Load a tokenizer. Check its size afterwards: transformers builds one even without files."""
    with explained(f"--{option}: could not load the tokenizer {source!r}", _TOKENIZER_REMEDY):
        return kind.from_pretrained(
            locate(source, ["tokenizer*.json", "special_tokens_map.json", "vocab*", "merges.txt"])
        )


def wrong_tokenizer(source: str, option: str, found: str, expected: str) -> UsageError:
    """Return the error for a tokenizer that does not match the weights."""
    return UsageError(
        f"--{option}: the tokenizer {source!r} ({found}) does not match the weights "
        f"({expected}). Give the matching one as `tokenizer`."
    )
