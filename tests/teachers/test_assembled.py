"""Teachers made of parts: sampling the teacher in any precision of its text encoders."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sid_lsg.networks.memory import set_text
from sid_lsg.options.text import Text
from sid_lsg.teachers import families
from tests.helpers.paths import GOLDEN, GOLDEN_FLOW

PIPELINES = GOLDEN_FLOW / "pipelines"
FOLDERS = [
    GOLDEN / "tiny_sd",
    *(PIPELINES / f"tiny_{name}" for name in ("sdxl", "sd3", "sana", "pixart")),
]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_sampling_stays_in_float32_with_16_bit_text_encoders(folder: Path) -> None:
    teacher = families.load(str(folder))
    expected = teacher.sample_reference(["a red cat", "two dogs"], [0, 1], 2, 2.0)
    set_text(Text(precision="bf16"), teacher)
    seen: list[torch.dtype] = []
    teacher.network.register_forward_pre_hook(
        lambda _, args, named: seen.append((args or (named["hidden_states"],))[0].dtype),
        with_kwargs=True,
    )
    found = teacher.sample_reference(["a red cat", "two dogs"], [0, 1], 2, 2.0)
    assert found.dtype == torch.float32
    assert {*seen} == {torch.float32}
    assert not found.equal(expected)
    if folder.name != "tiny_sana":  # its features of random weights lose more in 16 bits
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_another_familys_autoencoder_is_told_by_its_scale(
    folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Weights of equal shapes do not tell it. Any other scale may be a fine-tuned autoencoder's."""

    def warned(scale: float) -> list[str]:
        config["scaling_factor"] = scale
        path.write_text(json.dumps(config))
        recwarn.clear()
        families.load(str(copied))
        return [str(each.message) for each in recwarn if "scaling_factor" in str(each.message)]

    copied = Path(shutil.copytree(folder, tmp_path / folder.name))
    path = copied / "vae" / "config.json"
    config = json.loads(path.read_text())
    own = config["scaling_factor"]
    assert warned(own) == warned(0.5) == []
    for scale, owner in {0.18215: "Stable Diffusion 1 and 2", 1.5305: "Stable Diffusion 3"}.items():
        said = (
            f"--model.teacher: the config of its vae has scaling_factor {scale}, as {owner} has, "
            f"not {own}: "
        )
        told = [message.startswith(said) for message in warned(scale)]
        # PixArt-Alpha has Stable Diffusion's, and PixArt-Sigma SDXL's.
        assert told == ([] if scale == own or "pixart" in folder.name else [True])
