"""Weights and tokenizers that others published: found, fingerprinted, never unpickled."""

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
from sid_lsg.messages.errors import UsageError

HUB_FILE = "hf:"
_TOKENIZER_REMEDY = "Give as `tokenizer` a folder or a Hub id that this machine can reach."
_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


def names_a_file(source: str) -> bool:
    """Tell a weights file, local or `hf:owner/name/file`, from a folder or a Hub id."""
    return source.startswith(HUB_FILE) or Path(source).suffix in _SUFFIXES


def locate(source: str, patterns: Sequence[str] = ()) -> Path:
    """Find a file or folder on this machine, or fetch it from the Hub.

    Args:
        source: Path, `package:...`, `hf:owner/name/file`, or the Hub id of a folder.
        patterns: Which files of such a folder to fetch.

    Raises:
        FileNotFoundError: If there is no such path; otherwise whatever huggingface_hub raises.
    """
    if source.startswith(HUB_FILE):
        parts = source.removeprefix(HUB_FILE).split("/", 2)
        if len(parts) != 3:
            raise FileNotFoundError("a file on the Hub is hf:owner/name/file")
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    found = sources.locate(source)
    if found.is_local:
        return found.path
    old_id = re.fullmatch(r"\w[\w-]*", source)  # some tokenizers' Hub ids have no owner
    if names_a_file(source) or not (found.kind == "hub" or old_id):
        raise FileNotFoundError(f"there is no {str(found.path)!r}")
    return Path(snapshot_download(source, allow_patterns=list(patterns)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors, at the file's top or under its key `state_dict`.

    Raises:
        ValueError: If the file holds anything else; objects are refused, never unpickled.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        stored = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),  # gigabytes, read once: not to be held twice
        )
    except pickle.UnpicklingError as error:  # its message proposes to unpickle all the same
        raise ValueError("it is no weights file, or holds objects besides tensors") from error
    if isinstance(stored, dict) and "state_dict" in stored:
        stored = stored["state_dict"]
    if not isinstance(stored, dict) or not stored:
        raise ValueError(f"it holds no named tensors but a {type(stored).__name__}")
    for name, value in stored.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"its {name!r} is a {type(value).__name__}, not a tensor")
    return stored


def identify(source: str, files: Sequence[Path]) -> dict[str, str]:
    """Tell what was loaded: `source`, `file`, and `sha256` of one file's bytes as the Hub shows it.

    Of several files they are joined, in this order.
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
    """Load a tokenizer; its size is to be checked, as transformers makes one of nothing."""
    with explained(f"--{option}: could not load the tokenizer {source!r}", _TOKENIZER_REMEDY):
        return kind.from_pretrained(
            locate(source, ["tokenizer*.json", "special_tokens_map.json", "vocab*", "merges.txt"])
        )


def wrong_tokenizer(source: str, option: str, found: str, expected: str) -> UsageError:
    """Say that a tokenizer is not the one of the weights."""
    return UsageError(
        f"--{option}: the tokenizer {source!r} ({found}) is not that of the weights ({expected}). "
        "Give the right one as `tokenizer`."
    )
