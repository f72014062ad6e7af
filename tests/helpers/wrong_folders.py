"""Wrong model folders, made from a whole one: parts removed, swapped, cut and misconfigured."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.wrong_configs import Parts

Spoil = Callable[[Path], None]


class Wrong(NamedTuple):
    """A way to spoil a model's folder, and what the message must name."""

    name: str
    spoil: Spoil
    said: str


_FILE = {True: "diffusion_pytorch_model.safetensors", False: "model.safetensors"}


def wrong_folders(parts: Parts) -> Iterator[Wrong]:
    """Yield the ways to spoil a family's folder."""
    networks = dict.fromkeys(parts.networks, True) | dict.fromkeys(parts.encoders, False)
    for name, of_diffusers in networks.items():
        weights = Path(name) / _FILE[of_diffusers]
        yield Wrong(f"{name} removed", _remove(name), name)
        yield Wrong(f"{name} without config", _remove(f"{name}/config.json"), name)
        yield Wrong(f"{name} without weights", _remove(str(weights)), name)
        for size in (0, 7, 3000):
            yield Wrong(f"{name} cut to {size} bytes", _cut(weights, size), name)
        yield Wrong(f"{name} with an empty config", _write(f"{name}/config.json", ""), name)
        yield Wrong(f"{name} with a list as config", _write(f"{name}/config.json", "[]"), name)
        yield Wrong(f"{name} with NaN", _change(weights, _with_nan), "not finite")
        yield Wrong(f"{name} with infinity", _change(weights, _with_infinity), "not finite")
        yield Wrong(f"{name} lacks a weight", _change(weights, _without_one), name)
        yield Wrong(f"{name} has a weight more", _change(weights, _with_more), "surplus")
        yield Wrong(f"{name} only as fp16", _variant(weights), "fp16")
        yield Wrong(f"{name} only as .bin", _pickle(weights), ".bin")
        yield Wrong(f"{name} of other weights", _change(weights, _transposed), name)
    for name, fields in (parts.networks | parts.encoders).items():
        for field, values in fields.items():
            for value in values:
                path = f"{name}/config.json"
                # Weights' shapes show some fields: the message then names the part's weight.
                yield Wrong(f"{name}.{field}={value}", _edit(path, field, value), name)
    for name, kind in parts.foreign.items():
        config = {"_class_name": kind, "_diffusers_version": "0.30.0", "in_channels": 16}
        yield Wrong(f"{name} of a {kind}", _write(f"{name}/config.json", json.dumps(config)), kind)
    for field, values in parts.scheduler.items():
        for value in values:
            path = "scheduler/scheduler_config.json"
            yield Wrong(f"scheduler.{field}={value}", _edit(path, field, value), "scheduler")
    yield Wrong("scheduler removed", _remove("scheduler"), "scheduler")
    yield Wrong("an empty scheduler", _write("scheduler/scheduler_config.json", ""), "scheduler")
    for name in parts.tokenizers:
        yield from _wrong_tokenizers(name)
    for name in parts.others:
        yield Wrong(f"{name} removed", _remove(name), name)
        yield Wrong(f"{name} without its file", _remove(f"{name}/tokenizer.json"), name)
        yield Wrong(f"{name} with an empty file", _write(f"{name}/tokenizer.json", ""), name)
        yield Wrong(f"{name} cut", _cut(Path(name) / "tokenizer.json", 900), name)
        yield Wrong(f"{name} without pad_token", _edit(_config(name), "pad_token", None), name)
    yield Wrong("an empty index", _write("model_index.json", ""), "model_index.json")
    yield Wrong("an index without a pipeline", _write("model_index.json", "{}"), "")


def _wrong_tokenizers(name: str) -> Iterator[Wrong]:
    config = _config(name)
    yield Wrong(f"{name} removed", _remove(name), name)
    yield Wrong(f"{name} without vocab.json", _remove(f"{name}/vocab.json"), name)
    yield Wrong(f"{name} without merges.txt", _remove(f"{name}/merges.txt"), name)
    yield Wrong(f"{name} with no merges", _write(f"{name}/merges.txt", "#version: 0.2\n"), name)
    yield Wrong(f"{name} with half the vocabulary", _halve(f"{name}/vocab.json"), name)
    yield Wrong(f"{name} with a token more", _add_token(f"{name}/vocab.json"), name)
    yield Wrong(f"{name} of T5", _edit(config, "tokenizer_class", "T5Tokenizer"), "T5Tokenizer")
    yield Wrong(f"{name} too long", _edit(config, "model_max_length", 512), name)
    yield Wrong(f"{name} of no length", _edit(config, "model_max_length", None), name)
    for field, text in {"eos_token": "<|startoftext|>", "pad_token": "<pad>"}.items():
        yield Wrong(f"{name}.{field}={text}", _edit_special(name, field, text), name)


def _config(tokenizer: str) -> str:
    return f"{tokenizer}/tokenizer_config.json"


def _remove(path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        place = folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return spoil


def _write(path: str, text: str) -> Spoil:
    return lambda folder: (folder / path).write_text(text) and None  # type: ignore[func-returns-value]


def _edit(path: str, field: str, value: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = part = json.loads((folder / path).read_text())
        *groups, name = field.split(".")
        for group in groups:
            part = part[group]
        part[name] = value
        (folder / path).write_text(json.dumps(config))

    return spoil


def _edit_special(name: str, field: str, text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name / "special_tokens_map.json").unlink(missing_ok=True)  # it would win
        _edit(f"{name}/tokenizer_config.json", field, text)(folder)

    return spoil


def _cut(path: Path, size: int) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / path).write_bytes((folder / path).read_bytes()[:size])

    return spoil


def _change(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / path)
        change(weights)
        save_file(weights, folder / path, {"format": "pt"})

    return spoil


def _variant(path: Path) -> Spoil:
    return lambda folder: (
        (folder / path).rename((folder / path).with_suffix(".fp16.safetensors")) and None
    )  # type: ignore[func-returns-value]


def _pickle(path: Path) -> Spoil:
    def spoil(folder: Path) -> None:
        old = folder / path
        stem = "pytorch_model" if old.stem == "model" else old.stem
        torch.save(load_file(old), old.with_name(f"{stem}.bin"))
        old.unlink()

    return spoil


def _halve(path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        tokens = json.loads((folder / path).read_text())
        kept = {text: number for text, number in tokens.items() if number % 2 or "<|" in text}
        (folder / path).write_text(json.dumps(kept))

    return spoil


def _add_token(path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        tokens = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(tokens | {"<more>": len(tokens)}))

    return spoil


def _with_nan(weights: dict[str, torch.Tensor]) -> None:
    next(value for value in weights.values() if value.is_floating_point()).view(-1)[0] = torch.nan


def _with_infinity(weights: dict[str, torch.Tensor]) -> None:
    weights[max(weights)].view(-1)[-1] = -torch.inf


def _without_one(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(max(weights, key=lambda name: weights[name].numel()))


def _with_more(weights: dict[str, torch.Tensor]) -> None:
    weights["surplus.weight"] = torch.zeros(3)


def _transposed(weights: dict[str, torch.Tensor]) -> None:
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name] = weights[name].flatten()[:-1].clone()
