"""A teacher's hash follows all that its images depend on, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sid_lsg.teachers.families import load
from sid_lsg.teachers.identity import teacher_hash
from tests.helpers.tiny_families import FAMILIES

PROMPTS = ["a red cat", "two dogs running"]


def change_weight(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / path)
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, folder / path, {"format": "pt"})

    return change


def edit(path: str, field: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(config | {field: value}))

    return change


def swap_tokens(folder: Path) -> None:
    path = folder / "tokenizer/vocab.json"
    tokens = json.loads(path.read_text())
    tokens["a</w>"], tokens["b</w>"] = tokens["b</w>"], tokens["a</w>"]
    path.write_text(json.dumps(tokens))


CHANGES: dict[str, Callable[[Path], None]] = {
    "network": change_weight("unet/diffusion_pytorch_model.safetensors"),
    "VAE": change_weight("vae/diffusion_pytorch_model.safetensors"),
    "text encoder": change_weight("text_encoder/model.safetensors"),
    "tokens": swap_tokens,
    "scale of latents": edit("vae/config.json", "scaling_factor", 0.5),
    "schedule": edit("scheduler/scheduler_config.json", "beta_end", 0.013),
    "prediction": edit("scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
}


@pytest.fixture(scope="module")
def original(tiny_sd: str) -> str:
    return teacher_hash(load(tiny_sd), PROMPTS)


@pytest.mark.parametrize("what", CHANGES)
def test_every_part_counts(what: str, original: str, tiny_sd: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "teacher"))
    CHANGES[what](folder)
    assert teacher_hash(load(str(folder)), PROMPTS) != original


def test_the_folder_does_not_count(original: str, tiny_sd: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd, tmp_path / "moved")
    assert teacher_hash(load(str(folder)), PROMPTS) == original


def test_prompts_and_settings_count(original: str, tiny_sd: str) -> None:
    teacher = load(tiny_sd)
    assert teacher_hash(teacher, PROMPTS[::-1]) != original
    teacher.keep_text_apart()  # the text encoder may stay on another device
    assert teacher_hash(teacher, PROMPTS) == original
    assert teacher_hash(load(tiny_sd, resolution=32), PROMPTS) != original


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_hash(family: str) -> None:
    folder = str(FAMILIES[family].folder)
    assert teacher_hash(load(folder), PROMPTS) == teacher_hash(load(folder), PROMPTS)
