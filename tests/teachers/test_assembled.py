"""Teachers made of parts: their text encoders in any precision, or dropped after encoding."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sid_lsg.costs.memory import standing_bytes
from sid_lsg.costs.plan import Plan, PlannedRun
from sid_lsg.export.folder import save_pipeline
from sid_lsg.files.weights import first_difference
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.memory import loaded_dtypes, set_text
from sid_lsg.options.text import Text
from sid_lsg.options.training import Adapters
from sid_lsg.teachers import families
from tests.helpers.counted_costs import GUIDED
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


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_encoded_some_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = families.load(str(FAMILIES[name].folder))
    tokens = teacher.tokenize(["a red cat", "", "two dogs on a log"])
    whole = teacher.condition_on(tokens)
    monkeypatch.setattr("sid_lsg.teachers.base._AT_ONCE", 2)
    parts = teacher.condition_on(tokens)
    assert parts.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.slow
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
@pytest.mark.slow
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


INT8 = [PIPELINES / "tiny_sd3", PIPELINES / "tiny_pixart"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [FOLDERS[0], *INT8, FAMILIES["flux2"].folder, FAMILIES["qwen_image"].folder],
    ids=lambda folder: folder.name,
)
def test_text_encoders_in_8_bits(folder: Path, tmp_path: Path) -> None:
    """Linear layers have 8 bits; features are close; an export is whole; `estimate` counts them."""
    prompts = ["a red cat", "two dogs", "the moon"]
    whole = families.load(str(folder))
    text = Text(precision="int8")
    teacher = families.load(str(folder), dtypes=loaded_dtypes("32", Adapters(), "int8"))
    set_text(text, teacher)
    held = sum(
        tensor.nbytes + getattr(getattr(tensor, "SCB", None), "nbytes", 0)
        for part in teacher.text_parts.values()
        for tensor in (*part.parameters(), *part.buffers())
    )
    plans = Plan(GUIDED, 4, 4, text=text), Plan(GUIDED, 4, 4, text=Text(device="cpu"))
    outline = families.outline(str(folder))
    counted = [standing_bytes(PlannedRun(one, outline))["VAE, text encoder"] for one in plans]
    assert abs(counted[0] - counted[1] - held) <= 24  # bytes: Qwen's positions stay in float32
    expected, found = whole.encode_prompts(prompts), teacher.encode_prompts(prompts)
    for name, value in expected.items():
        assert found[name].isfinite().all()
        assert (found[name].float() - value.float()).norm() < 0.05 * value.float().norm()
    image = teacher.sample_reference(prompts[:1], [0], 2, 2.0)
    teacher.encode_once(prompts)
    torch.testing.assert_close(
        teacher.sample_reference(prompts[:1], [0], 2, 2.0), image, rtol=1e-2, atol=1e-2
    )
    save_pipeline(teacher, teacher.network, tmp_path, 625)
    again = families.load(str(tmp_path))
    for name, part in families.load(str(folder)).text_parts.items():
        before, after = part.state_dict(), again.text_parts[name].state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_8_bits_need_weights_and_bitsandbytes(
    tiny_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"--model.text.precision int8: .* random weights"):
        set_text(Text(precision="int8"), families.load("architecture:sd15-small"))
    monkeypatch.setattr("sid_lsg.teachers.assembled.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"int8: bitsandbytes is not installed.*eight-bit"):
        families.load(tiny_sd, dtypes=loaded_dtypes("32", Adapters(), "int8"))
