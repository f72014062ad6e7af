"""The embedded flow-matching teacher, and the recipe that trains it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch.nn.functional import normalize

from sid_lsg.cli import main
from sid_lsg.demo import recipe_flow
from sid_lsg.demo.dataset import CAPTIONS
from sid_lsg.files.sources import resolve
from sid_lsg.generation.models import load_model
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.teachers import families

FASHION_FLOW = Path(resolve("package:demo/fashion_flow"))


def stock(folder: Path) -> StableDiffusion3Pipeline:
    """Load a folder into diffusers' own pipeline."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_the_recipe_runs(data_dir: Path, tmp_path: Path) -> None:
    """Run every stage, for two steps; the stock pipeline samples the result."""
    output = tmp_path / "fashion_flow"
    recipe_flow.text(output)
    recipe_flow.transformer(output, data_dir=str(data_dir), steps=2, batch_size=4)
    images = stock(output)("a red dress", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 32, 32)
    assert images.isfinite().all()
    built = {p.relative_to(output) for p in output.rglob("*") if p.is_file()}
    embedded = {p.relative_to(FASHION_FLOW) for p in FASHION_FLOW.rglob("*") if p.is_file()}
    assert embedded == built


def test_the_recipe_encodes_texts_as_the_stock_pipeline_does() -> None:
    pipeline = stock(FASHION_FLOW)
    texts = [CAPTIONS[3], CAPTIONS[200], ""]
    states, projections = recipe_flow.encode_texts(recipe_flow.load_parts(FASHION_FLOW), texts)
    own, _, pooled, _ = pipeline.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=8
    )
    torch.testing.assert_close(own[:, :16], states, rtol=0, atol=0)
    torch.testing.assert_close(pooled, projections, rtol=0, atol=0)
    assert own.shape == (3, 24, 192)
    assert not own[:, 16:].any()


def test_the_embedded_teacher_is_small_and_complete() -> None:
    files = [path for path in FASHION_FLOW.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    index = json.loads((FASHION_FLOW / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["text_encoder_3"] == [None, None]


def test_the_stock_pipeline_is_loaded_without_t5() -> None:
    model = load_model("package:demo/fashion_flow", "pipeline", num_steps=2, guidance=1.5)
    assert model.sample(["a red dress"], [0]).shape == (1, 3, 32, 32)
    teacher = families.load("package:demo/fashion_flow")
    assert teacher.missing_parts == ("text_encoder_3", "tokenizer_3")
    assert teacher.max_sequence_length == 0


@pytest.mark.slow
def test_the_export_is_used_as_its_card_says(tmp_path: Path) -> None:
    options = {
        "model.teacher": "package:demo/fashion_flow",
        "model.num_steps": 2,
        "data.prompts": "package:demo/fashion/prompts.txt",
        "data.batch_size": 4,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 1,
        "trainer.default_root_dir": tmp_path,
        "trainer.logger": "false",
        "image_grid.every_n_steps": 0,
        "health.every_n_images": 0,
    }
    main(["fit", *(f"--{name}={value}" for name, value in options.items())])
    card = (tmp_path / "generator" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "text_encoder_3=None, tokenizer_3=None" in code
    assert "max_sequence_length=0" in code
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(tmp_path / "generator")), names)
    assert names["image"].size == (32, 32)


@pytest.mark.parametrize("zeros", [0, 256])
@pytest.mark.slow
def test_the_embedded_teacher_follows_its_prompts(zeros: int) -> None:
    """With 8 steps the caption closest to most images is their own, for any number of zeros."""
    clip = CLIPFeatures.from_pretrained("package:demo/fashion/clip")
    chosen = [i * 10 + 3 for i in range(32)]
    images = stock(FASHION_FLOW)(
        [CAPTIONS[i] for i in chosen],
        num_inference_steps=8,
        guidance_scale=1.5,
        max_sequence_length=zeros,
        generator=[torch.Generator().manual_seed(seed) for seed in range(32)],
        output_type="pt",
    ).images
    features = normalize(clip.images(images * 2 - 1), dim=-1)
    similarity = features @ normalize(clip.texts(CAPTIONS), dim=-1).T
    found = similarity.argmax(1)
    assert float((found == torch.tensor(chosen)).float().mean()) > 0.6
    own = similarity[torch.arange(32), torch.tensor(chosen)]
    assert float(own.mean()) > 0.8
