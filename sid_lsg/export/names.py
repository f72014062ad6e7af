"""Write text encoders and tokenizers under the names that every release of transformers reads.

Since 5.6, transformers saves CLIP's text encoder under the names of the file from which it was
loaded, with or without `text_model.`. Earlier releases know only names with it, and fill weights of
other names with random numbers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

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
    """
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, content | {"truncation": None, "padding": None})
    if config.is_file():
        _complete_config(config, content)
    model = content["model"]
    if (folder / "vocab.json").exists() or "merges" not in model:
        return
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON as the libraries do."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _complete_config(path: Path, content: dict[str, Any]) -> None:
    """List the added tokens, and name further special tokens as before version 5."""
    config = json.loads(path.read_text(encoding="utf-8"))
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
