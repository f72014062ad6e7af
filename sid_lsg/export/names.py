"""Write text encoders and tokenizers under the names that every release of transformers reads.

Since 5.6, transformers saves CLIP's text encoder under the names of the file from which it was
loaded, with or without `text_model.`. Earlier releases know only names with it, and fill weights of
other names with random numbers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers import CLIPTextModel

from sid_lsg.files.streaming import encoded

_PREFIX = "text_model."
_WEIGHTS = "model.safetensors"
_TOKEN = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def rename_weights(component: Any, folder: Path) -> None:
    """Give a saved component's weights the names of early releases, if it is CLIP's text encoder.

    Args:
        component: The component.
        folder: The folder in which it was saved.
    """
    path = folder / _WEIGHTS
    if type(component) is not CLIPTextModel or not path.is_file():
        return
    with path.open("rb") as old:
        length = int.from_bytes(old.read(8), "little")
        header = json.loads(old.read(length))
        if all(name.startswith((_PREFIX, "__")) for name in header):
            return
        named = {_earlier(name): entry for name, entry in header.items()}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as new:
            new.write(encoded(named))
            shutil.copyfileobj(old, new, 1 << 24)
    temporary.replace(path)


def complete_tokenizer(folder: Path) -> None:
    """Make a saved tokenizer the same whatever was tokenized, and readable by every release.

    The saved padding and truncation are those of the last call. Transformers before version 5 and
    other software read vocab.json and merges.txt, and the added tokens in tokenizer_config.json.
    Releases before 4.45 read a merge only as text, not as a pair.
    """
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if "merges" in (model := content["model"]):
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        if all(merge.count(" ") == 1 for merge in merges):
            model["merges"] = merges
        if not (folder / "vocab.json").exists():
            _write_vocabulary(folder, model["vocab"], merges)
    write_json(path, content | {"truncation": None, "padding": None})
    if config.is_file():
        _complete_config(config, content)


def name_tokenizers(index: Path) -> None:
    """Name the classes of tokenizers in a pipeline's index as every release reads them."""
    parts = json.loads(index.read_text(encoding="utf-8"))
    for name, found in parts.items():
        if name.startswith("tokenizer") and found[1]:
            parts[name] = [found[0], _readable_class(found[1], index.parent / name)]
    write_json(index, parts)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as the libraries do."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_vocabulary(folder: Path, vocabulary: dict[str, int], merges: list[str]) -> None:
    text = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def _readable_class(kind: str, folder: Path) -> str:
    """Return the class that reads a tokenizer's files in every release.

    Since version 5, `T5TokenizerFast` is another name of `T5Tokenizer`, under which it is saved.
    Earlier, `T5Tokenizer` reads only spiece.model, and `T5TokenizerFast` tokenizer.json.

    Args:
        kind: The name under which it is saved.
        folder: The tokenizer's folder.
    """
    files = getattr(getattr(transformers, kind, None), "vocab_files_names", {})
    slow = [name for role, name in files.items() if role != "tokenizer_file"]
    if slow and all((folder / name).is_file() for name in slow):
        return kind
    fast = f"{kind}Fast"
    return fast if hasattr(transformers, fast) else kind


def _complete_config(path: Path, content: dict[str, Any]) -> None:
    """List the added tokens, and name further special tokens and the class as before version 5."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if kind := config.get("tokenizer_class"):
        config["tokenizer_class"] = _readable_class(kind, path.parent)
    if isinstance(special := config.get("extra_special_tokens"), list):
        del config["extra_special_tokens"]
        if special:
            config["additional_special_tokens"] = special
    added = {
        str(token["id"]): {name: token[name] for name in _TOKEN}
        for token in content.get("added_tokens") or ()
    }
    if added:
        config["added_tokens_decoder"] = added
    write_json(path, config)


def _earlier(name: str) -> str:
    return name if name.startswith((_PREFIX, "__")) else _PREFIX + name
