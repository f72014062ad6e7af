"""FLUX.2-klein, Qwen-Image and Z-Image as teachers: images, architectures, exports and errors.

`test_stock_calls.py` compares their calls with the stock pipelines'.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.export.exported import exported
from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import load_model
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families
from sid_lsg.teachers.distilled import check_not_distilled
from tests.helpers.golden import error
from tests.helpers.tiny_pipelines import tiny_pipeline

NAMES = ("flux2", "qwen_image", "z_image")


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return tiny_pipeline(request.param)


def edited(folder: Path, place: Path, path: str, **values: Any) -> Path:
    copy = Path(shutil.copytree(folder, place))
    (copy / path).write_text(json.dumps(json.loads((copy / path).read_text()) | values))
    return copy


def test_an_export_keeps_its_size_length_and_steps(folder: Path, tmp_path: Path) -> None:
    teacher: Any = families.load(str(folder), resolution=32)
    teacher.max_sequence_length = 40
    save_pipeline(teacher, teacher.network, tmp_path / "out", 999, 3)
    again = families.load(str(tmp_path / "out"))
    assert again.latent_shape == teacher.latent_shape
    assert again.image_size == (32, 32)
    assert again.max_sequence_length == 40
    assert again.pipeline_options == teacher.pipeline_options
    found = exported(again.scheduler_config)
    assert found is not None
    assert (found.t_init, found.num_steps, found.noise) == (999, 3, "fresh")


def test_images_are_encoded_into_what_is_decoded(folder: Path) -> None:
    """The scaling of `encode_images` is the inverse of that of `decode`."""
    teacher: Any = families.load(str(folder))
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    latents = teacher.encode_images(pixels)
    assert latents.shape == (2, *teacher.latent_shape)
    seen: list[torch.Tensor] = []
    decode, encode = teacher.vae.decode, teacher.vae.encode

    def keep(z: torch.Tensor, **options: Any) -> Any:
        seen.append(z)
        return decode(z, **options)

    teacher.vae.decode = keep
    teacher.decode(latents)
    frames = pixels / 127.5 - 1
    if seen[0].dim() == 5:
        frames = frames.unsqueeze(2)
    assert error(seen[0], encode(frames).latent_dist.mean) < 1e-5


@pytest.mark.slow
def test_the_pipelines_guidance_means_the_same_for_all(folder: Path) -> None:
    """The pipeline itself and our sampling of the teacher agree, with guidance and without."""
    for guidance in (1.0, 3.0):
        settings: Any = (2, guidance, 64)
        images = [
            load_model(str(folder), sampler, *settings).sample(["a cat"], [3])
            for sampler in ("ddim", "pipeline")
        ]
        assert error(images[0].clamp(-1, 1), images[1]) < 1e-4


def test_a_long_prompt_is_reported(folder: Path) -> None:
    teacher: Any = families.load(str(folder))
    assert teacher.cut_off("a cat") == ""
    long = "a cat " * 300 + "sitting"
    end = teacher.cut_off(long)
    assert end.endswith("sitting")
    first = len(long) - len(end)
    found = [teacher.encode_prompts([text]) for text in (long, long[:first] + "?" * len(end))]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


@pytest.mark.parametrize(
    ("name", "path", "values", "found"),
    [
        ("flux2", "model_index.json", {"_class_name": "Flux2Pipeline"}, "it is in FLUX.2-dev's"),
        ("flux2", "transformer/config.json", {"guidance_embeds": True}, "transformer"),
        ("flux2", "vae/config.json", {"a_new_field": 3}, "a_new_field"),
        ("qwen_image", "transformer/config.json", {"zero_cond_t": True}, "zero_cond_t"),
        ("qwen_image", "vae/config.json", {"latents_std": [1.0]}, "has not 4 means"),
        ("z_image", "transformer/config.json", {"siglip_feat_dim": 8}, "siglip_feat_dim"),
        ("z_image", "text_encoder/config.json", {"model_type": "llama"}, "is of a llama"),
        ("z_image", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "flow"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, name: str, path: str, values: dict[str, Any], found: str
) -> None:
    folder = edited(tiny_pipeline(name), tmp_path / "model", path, **values)
    with pytest.raises(UsageError) as caught:
        families.load(str(folder))
    assert str(caught.value).startswith("--model.teacher: ")
    assert found in str(caught.value)


def test_a_distilled_klein_is_refused(tmp_path: Path) -> None:
    folder = edited(
        tiny_pipeline("flux2"), tmp_path / "model", "model_index.json", is_distilled=True
    )
    with pytest.raises(UsageError, match="by its index"):
        check_not_distilled(str(folder))


@pytest.mark.parametrize(
    ("name", "small", "billions"),
    [
        ("flux2-klein-4b", "flux2-small", 3.88),
        ("flux2-klein-9b", "flux2-small", 9.08),
        ("qwen-image", "qwen-image-small", 20.43),
        ("z-image", "z-image-small", 6.15),
    ],
)
@pytest.mark.slow
def test_architectures_have_the_published_size(name: str, small: str, billions: float) -> None:
    sizes = []
    for own in (name, small):
        teacher = families.outline(f"architecture:{own}")
        sizes.append(sum(p.numel() for p in teacher.network.parameters()))
        x_t = torch.empty(1, *teacher.latent_shape, device="meta")
        t = torch.zeros(1, device="meta")
        found = teacher.predict(teacher.network, x_t, t, teacher.null_condition())
        assert found.shape == x_t.shape
    assert sizes[0] / 1e9 == pytest.approx(billions, abs=0.02)
    assert sizes[1] < sizes[0] / 100


@pytest.mark.parametrize("name", ["flux2-small", "qwen-image-small", "z-image-small"])
@pytest.mark.slow
def test_random_weights_give_plausible_outputs(name: str) -> None:
    teacher = families.load(f"architecture:{name}", resolution=64)
    condition = teacher.encode_prompts(["a red shoe", "a blue hat"])
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        v = teacher.predict(teacher.network, x_t, torch.tensor([0.02, 0.98]), condition)
    assert v.isfinite().all()
    assert 0.05 < v.std() < 20
    assert teacher.decode(v).isfinite().all()
