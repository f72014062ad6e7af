"""Exports do not depend on what wrote the teacher, and load in earlier releases."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import load_model
from sid_lsg.teachers import families
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.tiny_families import FAMILIES

ENCODER = "text_encoder/model.safetensors"
# The oldest releases that an export is for.
RELEASES = {"diffusers": "0.30.0", "transformers": "4.44.2", "huggingface_hub": "0.24.7"}
SAMPLE = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
images = pipeline("a red cat <mycat>", num_inference_steps=1, guidance_scale=0, output_type="pt",
                  generator=torch.Generator().manual_seed(0)).images
torch.save(images, sys.argv[2])
"""
TOKENIZE = """
import json, pathlib, sys, transformers
ids = []
for folder in map(pathlib.Path, sys.argv[1:]):
    for name, found in json.loads((folder / "model_index.json").read_text()).items():
        if name.startswith("tokenizer"):
            tokenizer = getattr(transformers, found[1]).from_pretrained(folder / name)
            ids.append(tokenizer("a red cat").input_ids)
print(json.dumps(ids))
"""
ONE_FILE = {"sd3": "tokenizer_3", "pixart": "tokenizer", "sana": "tokenizer"}  # tokenizer.json


def without_prefix(folder: Path) -> None:
    """Rename as transformers 5.6 and `from_single_file(...).save_pretrained` do."""
    weights = load_file(folder / ENCODER)
    plain = {name.removeprefix("text_model."): value for name, value in weights.items()}
    save_file(plain, folder / ENCODER, {"format": "pt"})


def saved_again(folder: Path) -> None:
    """Save each part with today's releases; the text encoder as one that was not loaded."""
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        kind.from_pretrained(folder / part).save_pretrained(folder / part)
    loaded = CLIPTextModel.from_pretrained(folder / "text_encoder")
    fresh = CLIPTextModel(loaded.config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder / "text_encoder")


def with_one_tokenizer_file(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")


def sharded(folder: Path) -> None:
    """Split the weights of the UNet and the text encoder over files."""
    UNet2DConditionModel.from_pretrained(folder / "unet").save_pretrained(
        folder / "unet", max_shard_size="20KB"
    )
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    (folder / ENCODER).unlink()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="50KB")


WRITERS: list[Callable[[Path], None]] = [
    without_prefix, saved_again, with_one_tokenizer_file, sharded
]  # fmt: skip


def export(teacher: Path, folder: Path) -> Path:
    loaded = StableDiffusion.from_pretrained(str(teacher))
    save_pipeline(loaded, loaded.network, folder, 600)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def expected(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return content(export(Path(small_sd), tmp_path_factory.mktemp("expected")))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_an_export_does_not_depend_on_what_wrote_the_teacher(
    write: Callable[[Path], None], small_sd: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(small_sd, tmp_path / "teacher"))
    write(teacher)
    found = content(export(teacher, tmp_path / "export"))
    assert {*found} == {*expected}
    changed = [name for name, data in found.items() if data != expected[name]]
    assert [name for name in changed if not name.startswith("tokenizer/")] == []
    for name in ("vocab.json", "merges.txt"):
        assert found[f"tokenizer/{name}"] == expected[f"tokenizer/{name}"]
    with safe_open(tmp_path / "export" / ENCODER, "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118


def test_added_tokens_are_listed_for_early_releases(small_sd: str, tmp_path: Path) -> None:
    folder = export(with_tokens(small_sd, tmp_path / "teacher"), tmp_path / "export")
    config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<mycat>"]
    assert "extra_special_tokens" not in config
    assert config["added_tokens_decoder"]["537"]["content"] == "<mycat>"
    again = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert again("<mycat>").input_ids == [535, 537, 536]


def with_tokens(small_sd: str, folder: Path) -> Path:
    """Copy a teacher and add a token to its tokenizer and its text encoder."""
    shutil.copytree(small_sd, folder)
    without_prefix(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mycat>"]})
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder.resize_token_embeddings(len(tokenizer))
    encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export families with a tokenizer that is saved as tokenizer.json alone."""
    root = tmp_path_factory.mktemp("one_file")
    for name in ONE_FILE:
        teacher = families.load(str(FAMILIES[name].folder))
        save_pipeline(teacher, teacher.network, root / name, 999)
    return {name: root / name for name in ONE_FILE}


def test_tokenizers_of_one_file_are_of_the_class_that_reads_it(one_file: dict[str, Path]) -> None:
    for family, name in ONE_FILE.items():
        index = json.loads((one_file[family] / "model_index.json").read_text())
        config = json.loads((one_file[family] / name / "tokenizer_config.json").read_text())
        expected = "GemmaTokenizerFast" if family == "sana" else "T5TokenizerFast"
        assert index[name] == ["transformers", expected]
        assert config["tokenizer_class"] == expected
        families.load(str(one_file[family]))
    index = json.loads((one_file["sd3"] / "model_index.json").read_text())
    assert index["tokenizer"] == index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]
    model = json.loads((one_file["sana"] / "tokenizer/tokenizer.json").read_text())["model"]
    assert {type(merge) for merge in model["merges"]} == {str}


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the python of an environment with early releases."""
    return environment(tmp_path_factory.mktemp("early") / "environment")


def run(python: Path, *arguments: str | Path) -> str:
    ended = subprocess.run([python, "-c", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.slow
def test_tokenizers_load_in_early_releases(early: Path, one_file: dict[str, Path]) -> None:
    found = run(early, TOKENIZE, *one_file.values())
    assert json.loads(found) == json.loads(run(Path(sys.executable), TOKENIZE, *one_file.values()))


def environment(folder: Path) -> Path:
    """Make an environment with early releases, and only torch from ours; return its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (folder / "shared").mkdir()
    for name in ("torch", "torchgen", "functorch", "nvidia", "triton", "torch-*.dist-info"):
        for found in Path(sysconfig.get_path("purelib")).glob(name):
            (folder / "shared" / found.name).symlink_to(found)
    (site / "shared.pth").write_text(f"{folder / 'shared'}\n")
    wanted = [f"{name}=={release}" for name, release in RELEASES.items()]
    wanted += ["numpy", "sympy", "networkx", "jinja2", "typing_extensions", "setuptools"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    pip += ["install", "--quiet", "--no-compile"]
    installed = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{', '.join(wanted)} cannot be installed: {installed.stderr[-200:]}")
    return python


@pytest.mark.slow
def test_exports_load_in_early_releases(early: Path, small_sd: str, tmp_path: Path) -> None:
    """Images of an early release's pipeline equal today's."""
    folder = export(with_tokens(small_sd, tmp_path / "teacher"), tmp_path / "export")
    out = tmp_path / "images.pt"
    run(early, SAMPLE, folder, out)
    ours = load_model(str(folder), "pipeline", 1, 0.0).sample(["a red cat <mycat>"], [0])
    torch.testing.assert_close(torch.load(out) * 2 - 1, ours, rtol=0, atol=1e-4)
