"""Teachers made of parts: their text encoders in any precision, or dropped after encoding."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sid_lsg.export.folder import save_pipeline
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.memory import set_text
from sid_lsg.options.text import Text
from sid_lsg.teachers import families
from tests.helpers.paths import GOLDEN, GOLDEN_FLOW
from tests.helpers.tiny_families import FAMILIES

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
        assert told == ([] if scale == own else [True])


@pytest.mark.parametrize(
    "folder", [FOLDERS[0], *(one.folder for one in FAMILIES.values())], ids=lambda one: one.name
)
def test_dropped_text_encoders_change_nothing_and_are_exported(
    folder: Path, tmp_path: Path
) -> None:
    prompts = ["a red cat", "two dogs", "the moon"]
    teacher = families.load(str(folder))
    expected = teacher.encode_prompts(prompts)
    image = teacher.sample_reference(prompts[:1], [0], 2, 2.0)
    teacher.encode_once(reversed([*prompts, *prompts]))
    assert {p.device.type for part in teacher.text_parts.values() for p in part.parameters()} == {
        "meta"
    }
    for name, value in teacher.encode_prompts(prompts).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    found = teacher.sample_reference(prompts[:1], [0], 2, 2.0)
    torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="drop: 'the sun' is none of the run's prompts"):
        teacher.encode_prompts(["the moon", "the sun"])
    save_pipeline(teacher, teacher.network, tmp_path, 625)
    whole, again = families.load(str(folder)), families.load(str(tmp_path))
    for name, part in whole.text_parts.items():
        before, after = part.state_dict(), again.text_parts[name].state_dict()
        assert first_difference(after, before) is None
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_too_many_prompts_to_remember_are_refused(
    tiny_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sid_lsg.teachers.remembered._MOST", 3 * 77 * 32 * 4)
    teacher = families.load(tiny_sd)
    with pytest.raises(UsageError, match=r"text.device drop: the features of more than \d prompts"):
        teacher.encode_once(map(str, range(10_000_000)))
