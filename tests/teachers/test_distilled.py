"""A teacher that was distilled before is refused by what gives it away, before it is loaded."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.commands.estimate import estimate
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers.distilled import check_not_distilled
from sid_lsg.training.module import SiDLSG
from tests.helpers.model_folders import edit
from tests.helpers.paths import GOLDEN, GOLDEN_FLOW

FLUX, PIXART = (GOLDEN_FLOW / "pipelines" / f"tiny_{name}" for name in ("flux", "pixart"))
SDXL, SD = GOLDEN_FLOW / "pipelines" / "tiny_sdxl", GOLDEN / "tiny_sd"
SANA = GOLDEN_FLOW / "pipelines" / "tiny_sana"
WEIGHTS = shutil.ignore_patterns("*.safetensors")
SD35 = "stabilityai/stable-diffusion-3.5"
SPRINT = "Efficient-Large-Model/{}_Sprint_{}B_1024px_teacher_diffusers"
BASE = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture(params=[SDXL, SD], ids=["sdxl", "sd"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a model without weights: its files of configuration are enough."""
    return Path(shutil.copytree(request.param, tmp_path / "model", ignore=WEIGHTS))


def refusal(model: str | Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        check_not_distilled(str(model), **options)
    message = str(caught.value)
    assert message.startswith(
        f"--model.teacher: {str(model)!r} is already distilled into few steps"
    )
    assert "Give its base model" in message
    return message


def test_base_models_are_accepted(folder: Path) -> None:
    check_not_distilled(str(folder))
    for name in ("architecture:sdxl", "package:demo/fashion", "no/such/folder/at/all"):
        check_not_distilled(name)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"timestep_spacing": "trailing"}, "its scheduler's timestep_spacing 'trailing'"),
        ({"_class_name": "LCMScheduler"}, "its scheduler, LCMScheduler"),
        ({"_class_name": "TCDScheduler"}, "its scheduler, TCDScheduler"),
        ({"_class_name": "SiDScheduler"}, "its scheduler, SiDScheduler"),
    ],
)
def test_a_scheduler_gives_a_model_away(folder: Path, values: dict[str, Any], found: str) -> None:
    edit(folder / "scheduler/scheduler_config.json", **values)
    assert found in refusal(folder)


@pytest.mark.parametrize(
    "values", [{"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}]
)
def test_zero_terminal_snr_needs_trailing_timesteps(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "scheduler/scheduler_config.json"
    edit(path, timestep_spacing="trailing", **values)
    check_not_distilled(str(folder))


def test_the_scheduler_of_another_subfolder_counts(folder: Path) -> None:
    shutil.copytree(folder / "scheduler", folder / "base_scheduler")
    edit(folder / "scheduler/scheduler_config.json", timestep_spacing="trailing")
    assert "--model.loading.subfolders" in refusal(folder)
    check_not_distilled(str(folder), subfolders={"scheduler": "base_scheduler"})


def test_a_guidance_embedding_gives_a_model_away(folder: Path) -> None:
    edit(folder / "unet/config.json", time_cond_proj_dim=256)
    assert "the guidance embedding of its UNet (time_cond_proj_dim 256)" in refusal(folder)


@pytest.mark.parametrize("width", [1152, 2240])
def test_sprints_guidance_embedding_gives_it_away(tmp_path: Path, width: int) -> None:
    folder = Path(shutil.copytree(SANA, tmp_path / "model", ignore=WEIGHTS))
    check_not_distilled(str(folder))
    edit(folder / "transformer/config.json", guidance_embeds=True, cross_attention_dim=width)
    message = refusal(folder)
    assert "the guidance embedding of its transformer (guidance_embeds)" in message
    size = {1152: SPRINT.format("Sana", "0.6"), 2240: SPRINT.format("SANA", "1.6")}[width]
    assert message.endswith(f"Give its base model, such as {size}.")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("sdxl-turbo", "turbo"),
        ("SDXL-Lightning", "lightning"),
        ("my_sdxl_lcm", "lcm"),
        ("Hyper-SD-sdxl", "hypersd"),
        ("flash-sdxl", "flashsdxl"),
    ],
)
def test_a_name_gives_a_model_away(tmp_path: Path, name: str, word: str) -> None:
    shutil.copytree(SDXL, tmp_path / name, ignore=WEIGHTS)
    message = refusal(tmp_path / name)
    assert f"its name ({word!r} in {name!r})" in message
    assert message.endswith(f"Give its base model, such as {BASE}.")


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("stabilityai/sdxl-turbo", BASE),
        ("stabilityai/sd-turbo", "stabilityai/stable-diffusion-2-1"),
        ("SimianLuo/LCM_Dreamshaper_v7", "Lykon/dreamshaper-7"),
        ("stabilityai/stable-diffusion-3.5-large-turbo", f"{SD35}-large"),
        ("tensorart/stable-diffusion-3.5-medium-turbo", f"{SD35}-medium"),
        ("jasperai/flash-sd3", "stabilityai/stable-diffusion-3-medium-diffusers"),
        ("Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", SPRINT.format("Sana", "0.6")),
        ("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", SPRINT.format("SANA", "1.6")),
        ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev"),
        ("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
        ("lightx2v/Qwen-Image-Lightning", "Qwen/Qwen-Image"),
        ("PixArt-alpha/PixArt-LCM-XL-2-1024-MS", "PixArt-alpha/PixArt-XL-2-1024-MS"),
        ("PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512", "PixArt-alpha/PixArt-XL-2-1024-MS"),
    ],
)
def test_hub_ids_are_known_without_a_network(
    model: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("offline")

    monkeypatch.setattr("sid_lsg.files.loading.hf_hub_download", fail)
    assert refusal(model).endswith(f"Give its base model, such as {base}.")


def test_known_base_models_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(model: str, file: str, revision: str | None) -> str:
        asked.append(model)
        raise OSError("offline")

    monkeypatch.setattr("sid_lsg.files.loading.hf_hub_download", download)
    check_not_distilled(BASE, "main")
    assert not asked
    check_not_distilled("someone/some-model")
    assert asked


def test_the_original_name_in_a_configuration_counts(folder: Path) -> None:
    edit(folder / "unet/config.json", _name_or_path="someone/model-xl-turbo")
    assert "its name ('turbo' in 'model-xl-turbo')" in refusal(folder)


@pytest.mark.parametrize(
    ("whole", "spoilt", "values", "found"),
    [
        (PIXART, "scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "scheduler"),
        (PIXART, "transformer/config.json", {"_name_or_path": "a/pixart-dmd"}, "its name ('dmd'"),
        (PIXART, "model_index.json", {"is_distilled": True}, "its index (is_distilled)"),
        (FLUX, "transformer/config.json", {"guidance_embeds": False}, None),
        (FLUX, "scheduler/scheduler_config.json", {"use_dynamic_shifting": False}, None),
    ],
)
def test_transformers_are_known_too(
    tmp_path: Path, whole: Path, spoilt: str, values: dict[str, Any], found: str | None
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model", ignore=WEIGHTS)
    check_not_distilled(str(folder))
    edit(folder / spoilt, **values)
    if found is None:
        check_not_distilled(str(folder))
    else:
        assert found in refusal(folder)


def test_a_model_like_flux_schnell_is_refused(tmp_path: Path) -> None:
    """It has no guidance embedding, as models without it in which guidance was trained again."""
    folder = shutil.copytree(FLUX, tmp_path / "model", ignore=WEIGHTS)
    edit(folder / "transformer/config.json", guidance_embeds=False)
    edit(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=False, shift=1.0)
    assert refusal(folder).endswith("such as black-forest-labs/FLUX.1-dev.")


@pytest.mark.parametrize(
    "name", ["turbulence", "lightnings", "hyper-real", "lcms", "flash-light", "sprint_teacher"]
)
def test_other_names_are_accepted(tmp_path: Path, name: str) -> None:
    shutil.copytree(SD, tmp_path / name, ignore=WEIGHTS)
    check_not_distilled(str(tmp_path / name))


def test_training_and_estimates_refuse_a_distilled_teacher(folder: Path) -> None:
    edit(folder / "scheduler/scheduler_config.json", timestep_spacing="trailing")
    with pytest.raises(UsageError, match="is already distilled into few steps"):
        SiDLSG(str(folder))
    with pytest.raises(UsageError, match="is already distilled into few steps"):
        estimate(["--model.teacher", str(folder)])
