"""What teachers with a UNet share: sampling the teacher in any precision of the text encoders."""

from pathlib import Path

import pytest
import torch

from sid_lsg.networks.memory import set_text
from sid_lsg.options.text import Text
from sid_lsg.teachers import families
from tests.helpers.paths import GOLDEN, GOLDEN_FLOW

FOLDERS = [GOLDEN / "tiny_sd", GOLDEN_FLOW / "pipelines" / "tiny_sdxl"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_sampling_stays_in_float32_with_16_bit_text_encoders(folder: Path) -> None:
    teacher = families.load(str(folder))
    expected = teacher.sample_reference(["a red cat", "two dogs"], [0, 1], 2, 2.0)
    set_text(Text(precision="bf16"), teacher)
    found = teacher.sample_reference(["a red cat", "two dogs"], [0, 1], 2, 2.0)
    assert found.dtype == torch.float32
    scale = expected.abs().max()
    assert 0 < (found - expected).abs().max() < 0.02 * scale
