"""PixArt as a teacher: its resolution, its text, its size as an input, and errors.

`test_stock_calls.py` compares its calls with the stock pipelines'.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families
from sid_lsg.teachers.pixart import PixArtSigma
from tests.helpers.golden import error
from tests.helpers.paths import GOLDEN_FLOW

FOLDER = GOLDEN_FLOW / "pipelines" / "tiny_pixart"


def load(folder: Path, **options: Any) -> PixArtSigma:
    loaded = families.load(str(folder), **options)
    assert isinstance(loaded, PixArtSigma)
    return loaded


def replaced(folder: Path, **config: Any) -> Path:
    """Copy the model with a random transformer of another configuration."""
    copy = Path(shutil.copytree(FOLDER, folder))
    changed = dict(PixArtTransformer2DModel.load_config(copy / "transformer")) | config
    PixArtTransformer2DModel.from_config(changed).save_pretrained(copy / "transformer")
    return copy


def test_another_resolution_is_kept_by_an_export(tmp_path: Path) -> None:
    """The positions of the exported network are those that the teacher has at this resolution."""
    native, other = load(FOLDER), load(FOLDER, resolution=96)
    assert other.latent_shape == (4, 12, 12)
    save_pipeline(other, other.network, tmp_path / "out", 625)
    again = load(tmp_path / "out")
    assert again.latent_shape == other.latent_shape
    x_t, t = torch.randn(1, 4, 12, 12), torch.tensor([500])
    condition = native.encode_prompts(["a cat"])
    with torch.no_grad():
        found = [own.predict(own.network, x_t, t, condition) for own in (native, other, again)]
    assert torch.equal(found[0], found[1])
    assert error(found[2], found[0]) < 1e-5


def test_the_length_of_a_prompt_can_be_chosen(tmp_path: Path) -> None:
    own = load(FOLDER)
    assert own.encode_prompts(["a cat"])["encoder_attention_mask"].shape == (1, 300)
    assert own.cut_off("a cat " * 50) == ""
    own.max_sequence_length = 16
    assert own.encode_prompts(["a cat"])["encoder_attention_mask"].shape == (1, 16)
    assert own.pipeline_options["max_sequence_length"] == 16
    assert own.cut_off("A cat " * 50).startswith("cat a")
    with pytest.raises(UsageError, match="must be 1 to 512 for this teacher, got 0"):
        own.max_sequence_length = 0


@pytest.mark.parametrize(
    ("config", "options", "found"),
    [
        ({"out_channels": 12}, {}, "takes 4 channels and returns 12"),
        ({"caption_channels": 48}, {}, "attends to 48 features and its text_encoder outputs 24"),
        ({"use_additional_conditions": True}, {}, "which its pipeline does not give"),
        ({}, {"resolution": 60}, "--model.resolution: 60 pixels do not fit"),
    ],
)
def test_parts_that_do_not_fit_together_are_rejected(
    tmp_path: Path, config: dict[str, Any], options: dict[str, Any], found: str
) -> None:
    if config.get("use_additional_conditions"):
        config |= {"attention_head_dim": 12, "cross_attention_dim": 24}
    folder = replaced(tmp_path / "model", **config) if config else FOLDER
    with pytest.raises(UsageError) as caught:
        load(folder, **options)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hub", "side", "transformer"),
    [
        ("pixart-sigma", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 1024, 610_856_096),
        ("pixart-alpha", "PixArt-alpha/PixArt-XL-2-1024-MS", 1024, 611_349_152),
        ("pixart-sigma-512", "PixArt-alpha/PixArt-Sigma-XL-2-512-MS", 512, 610_856_096),
    ],
)
@pytest.mark.slow
def test_architectures_have_the_published_parameter_counts(
    name: str, hub: str, side: int, transformer: int
) -> None:
    for model in (f"architecture:{name}", hub):
        teacher = families.outline(model)
        assert sum(p.numel() for p in teacher.network.parameters()) == transformer
        assert teacher.image_size == (side, side)
        condition = teacher.null_condition()
        x_t = torch.empty(1, *teacher.latent_shape, device="meta")
        t = torch.zeros(1, dtype=torch.long, device="meta")
        assert teacher.predict(teacher.network, x_t, t, condition).shape == x_t.shape


def test_a_size_that_the_pipeline_does_not_give_is_refused() -> None:
    with pytest.raises(UsageError, match="which its pipeline gives at 1024 pixels only"):
        families.outline("architecture:pixart-alpha", resolution=512)
