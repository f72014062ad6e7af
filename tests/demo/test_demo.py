"""The embedded teacher, its dataset and tokenizer, and the recipe that trains it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sid_lsg.data.real_images import RealImages
from sid_lsg.demo import recipe
from sid_lsg.demo.dataset import (
    BACKGROUNDS,
    CAPTIONS,
    COLOURS,
    GARMENTS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_COLOURS,
    Palette,
    compose,
    draw,
    load_photographs,
    moved,
    scaled,
)
from sid_lsg.demo.images import images as make_real_images
from sid_lsg.demo.tokenizer import train_tokenizer
from sid_lsg.files.sources import resolve
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.statistics import Statistics
from sid_lsg.teachers.stable_diffusion import StableDiffusion

FASHION = Path(resolve("package:demo/fashion"))


def test_captions_name_garment_colour_and_background() -> None:
    assert len(set(CAPTIONS)) == len(GARMENTS) * len(COLOURS) * len(BACKGROUNDS) == 320
    assert "an orange ankle boot on a navy background" in CAPTIONS
    assert "a red pair of trousers on a black background" in CAPTIONS


def test_images_match_their_captions(data_dir: Path) -> None:
    photographs = load_photographs(data_dir, "train")
    assert photographs.grey.shape == photographs.mask.shape == (40, 32, 32)
    images, captions = draw(photographs, torch.arange(40), torch.Generator().manual_seed(0))
    assert images.shape == (40, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    for i in range(40):
        colour = next(c for c in COLOURS if f" {c} " in CAPTIONS[captions[i]].split(" on a ")[0])
        background = next(b for b in BACKGROUNDS if f"on a {b} " in CAPTIONS[captions[i]])
        assert GARMENTS[photographs.labels[i]] in CAPTIONS[captions[i]]
        corner = (images[i, :, 0, 0] + 1) / 2
        assert torch.allclose(corner, torch.tensor(BACKGROUNDS[background]), atol=1e-6)
        # The hole belongs to the garment, with its darkest colour, not to the background.
        hole = (images[i, :, 15, 15] + 1) / 2
        assert torch.allclose(hole, torch.tensor(COLOURS[colour]) * 0.25, atol=1e-6)
    black = compose(photographs, torch.zeros(40).long(), torch.zeros(40).long())
    assert black.shape == images.shape


def test_a_folder_of_real_images_matches_its_captions(data_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "images"
    make_real_images(output, str(data_dir), num_images=12)
    batch = RealImages(str(output)).batch(0, 12, 0, (32, 32), None)
    for image, text in zip(batch.images, batch.captions, strict=True):
        background = next(b for b in BACKGROUNDS if f"on a {b} " in text)
        assert torch.allclose(
            image[:, 0, 0] / 255, torch.tensor(BACKGROUNDS[background]), atol=0.01
        )
    with pytest.raises(UsageError, match="--output must be a folder that is new or empty"):
        make_real_images(output, str(data_dir), num_images=12)
    with pytest.raises(UsageError, match="--num_images must be 1 to 40, got 41"):
        make_real_images(tmp_path / "more", str(data_dir), num_images=41)
    with pytest.raises(UsageError, match="--num_images must be 1 to 28, got 30"):
        make_real_images(tmp_path / "more", str(data_dir), num_images=30, skip=12)


def test_parts_of_one_seed_do_not_overlap(data_dir: Path, tmp_path: Path) -> None:
    grey = load_photographs(data_dir, "t10k").grey[:, 8:24, 10:22].float().flatten(1)
    found = []
    for skip in (0, 10):
        folder = tmp_path / str(skip)
        make_real_images(folder, str(data_dir), num_images=10, split="t10k", skip=skip)
        for path in sorted(folder.glob("*.png")):
            image = torch.from_numpy(np.array(Image.open(path))[8:24, 10:22].max(-1)).flatten()
            found.append(int(torch.corrcoef(torch.stack([image.float(), *grey]))[0, 1:].argmax()))
    assert sorted(found) == [*range(20)]


def test_held_out_images_differ_in_what_they_are_named_after(data_dir: Path) -> None:
    photographs = load_photographs(data_dir, "train")
    other = Palette(HELD_OUT_COLOURS, BACKGROUNDS)
    generator = torch.Generator().manual_seed(0)
    images, captions = draw(photographs, torch.arange(40), generator, other)
    assert not {*COLOURS.values()} & {*HELD_OUT_COLOURS.values()}
    assert not {*BACKGROUNDS.values()} & {*HELD_OUT_BACKGROUNDS.values()}
    for image, number in zip(images, captions.tolist(), strict=True):
        colour = other.captions()[number].split(" on a ")[0].split()[1]
        hole = (image[:, 15, 15] + 1) / 2
        assert torch.allclose(hole, torch.tensor(HELD_OUT_COLOURS[colour]) * 0.25, atol=1e-6)

    shifted = moved(photographs, torch.Generator().manual_seed(0))
    assert torch.equal(shifted.mask.sum((1, 2)), photographs.mask.sum((1, 2)))  # nothing is cut
    assert not torch.equal(shifted.mask, photographs.mask)
    small = scaled(photographs, 16)
    ratio = small.mask.float().sum((1, 2)) / photographs.mask.float().sum((1, 2))
    assert torch.allclose(ratio, torch.full((40,), 0.25), atol=0.01)


def test_missing_and_wrong_data_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dataset-fashion-mnist"):
        load_photographs(tmp_path, "train")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"not an IDX file")
    with pytest.raises(UsageError, match="train-images-idx3-ubyte is not an IDX file"):
        load_photographs(tmp_path, "train")


def test_the_tokenizer_has_a_token_for_every_word() -> None:
    tokenizer = train_tokenizer(list(CAPTIONS))
    for text in (CAPTIONS[0], CAPTIONS[77], CAPTIONS[-1]):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        words = text.replace("t-shirt", "t - shirt").split()
        assert tokens == ["<|startoftext|>", *(f"{word}</w>" for word in words), "<|endoftext|>"]
    assert tokenizer.decode(tokenizer("a zebra").input_ids, skip_special_tokens=True) == "a zebra"
    padded = tokenizer("", padding="max_length").input_ids
    assert len(padded) == tokenizer.model_max_length == 16


@pytest.mark.slow
def test_the_recipe_runs(data_dir: Path, tmp_path: Path) -> None:
    """Run every stage for one or two steps; the result loads as a teacher."""
    output = tmp_path / "fashion"
    options = {"data_dir": str(data_dir), "batch_size": 4}
    recipe.clip(output, steps=2, **options)
    recipe.vae(output, steps=1, **options)
    recipe.sharpen(output, steps=1, **options)
    recipe.unet(output, steps=2, **options)
    recipe.statistics(output, data_dir=str(data_dir))
    teacher = StableDiffusion.from_pretrained(str(output))
    assert teacher.latent_shape == (4, 8, 8)
    assert Statistics.load(output / "reference.safetensors").count > 2
    built = {p.relative_to(output) for p in output.rglob("*") if p.is_file()}
    embedded = {p.relative_to(FASHION) for p in FASHION.rglob("*") if p.is_file()}
    assert embedded == built


def test_the_embedded_teacher_is_small_and_complete() -> None:
    files = [path for path in FASHION.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors"}
    assert sorted((FASHION / "prompts.txt").read_text().splitlines()) == sorted(CAPTIONS)
    with safe_open(FASHION / "reference.safetensors", "pt") as file:
        assert file.metadata()["count"] == "10000"
    assert json.loads((FASHION / "model_index.json").read_text())["_class_name"] == (
        "StableDiffusionPipeline"
    )


@pytest.mark.slow
def test_the_embedded_teacher_follows_its_prompts() -> None:
    """With 10 steps, the caption closest to most images is their own."""
    teacher = StableDiffusion.from_pretrained("package:demo/fashion")
    clip = CLIPFeatures.from_pretrained("package:demo/fashion/clip")
    chosen = [i * 10 + 3 for i in range(32)]
    prompts = [CAPTIONS[i] for i in chosen]
    images = teacher.sample_reference(prompts, range(32), num_steps=10, guidance=1.5)
    cosine = torch.nn.functional.normalize
    similarity = cosine(clip.images(images), dim=-1) @ cosine(clip.texts(CAPTIONS), dim=-1).T
    found = similarity.argmax(1)
    assert float((found == torch.tensor(chosen)).float().mean()) > 0.6
    own = similarity[torch.arange(32), torch.tensor(chosen)]
    assert float(own.mean()) > 0.8
