"""An exported folder gives the same latents and images in stock diffusers as in this package."""

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers.utils.dynamic_modules_utils as dynamic_modules
import diffusers.utils.logging
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from sid_lsg.export.exported import exported as exported_as
from sid_lsg.export.folder import save_pipeline
from sid_lsg.export.scheduler import SiDScheduler
from sid_lsg.generation.models import load_model
from sid_lsg.images.pixels import to_uint8
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.options.training import Loading
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from sid_lsg.training.module import SiDLSG

PROMPTS = ["a red cat on a log", "", "two dogs " * 16]  # the last is truncated at 77 tokens
SEEDS = [5, 0, 2**40]
CASES = [
    ("epsilon", 625, 1),
    ("epsilon", 300, 1),
    ("v_prediction", 625, 1),
    ("v_prediction", 999, 1),
    ("epsilon", 625, 2),
    ("v_prediction", 625, 2),
    ("epsilon", 625, 4),
    ("v_prediction", 999, 4),
]


@pytest.fixture(autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Let diffusers copy the code that it runs to a temporary folder."""
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code")))


@pytest.fixture
def diffusers_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Capture what diffusers logs at its default level."""
    level = diffusers.utils.logging.get_verbosity()
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    diffusers.utils.logging.set_verbosity_warning()
    yield caplog
    diffusers.utils.logging.set_verbosity(level)
    logger.removeHandler(caplog.handler)


def trained(tiny_sd: str, prediction_type: str, t_init: int, **options: int) -> SiDLSG:
    """Return a module whose EMA differs from its teacher."""
    v = {"scheduler": "../tiny_sd_v/scheduler"}
    subfolders = v if prediction_type == "v_prediction" else None
    module = SiDLSG(tiny_sd, loading=Loading(subfolders=subfolders), t_init=t_init, **options)  # type: ignore[arg-type]
    module.ema.load_state_dict(load_file(Path(tiny_sd).parent / "weights_g.safetensors"))
    return module


def load(folder: Path, num_steps: int = 2) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=num_steps > 1)


def sample(pipeline: DiffusionPipeline, output_type: str = "latent", num_steps: int = 1) -> Tensor:
    """Sample as the README describes."""
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        PROMPTS,
        num_inference_steps=num_steps,
        guidance_scale=0,
        generator=generator,
        output_type=output_type,
    ).images
    return torch.as_tensor(np.array(images)) if output_type == "pil" else images


@pytest.mark.parametrize(("prediction_type", "t_init", "num_steps"), CASES)
@pytest.mark.slow
def test_stock_diffusers_gives_the_same_images(
    tiny_sd: str,
    tmp_path: Path,
    prediction_type: str,
    t_init: int,
    num_steps: int,
    diffusers_log: pytest.LogCaptureFixture,
) -> None:
    module = trained(tiny_sd, prediction_type, t_init, num_steps=num_steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_pipeline(module.teacher, module.ema, tmp_path, t_init, num_steps)
        pipeline = load(tmp_path, num_steps)
        latents = sample(pipeline, num_steps=num_steps)

    ours = module.generate(PROMPTS, SEEDS)
    untrained = module.generate(PROMPTS, SEEDS, network=module.teacher.network)
    assert (latents - ours).norm() / ours.norm() < 1e-4
    assert (latents - untrained).norm() / untrained.norm() > 1e-2  # not the teacher's latents

    assert [str(w.message) for w in caught if w.category is FutureWarning] == []  # diffusers' own
    for word in ("deprecat", "outdated", "safety", "not expected"):
        assert word not in diffusers_log.text.lower()
    assert pipeline.safety_checker is None

    pixels = sample(pipeline, "pil", num_steps)
    expected = to_uint8(module.teacher.decode(ours)).permute(0, 2, 3, 1)
    assert (pixels.int() - expected.int()).abs().max() <= 1

    again = StableDiffusion.from_pretrained(str(tmp_path))
    assert exported_as(again.scheduler_config)[:2] == (t_init, num_steps)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_stock_diffusers_samples_a_zero_snr_schedule(
    tiny_sd: str, tmp_path: Path, num_steps: int
) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    v_prediction = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    scheduler = DDPMScheduler(**v_prediction, rescale_betas_zero_snr=True)
    parts = (teacher.network, teacher.vae, teacher.text.text_encoder, teacher.text.tokenizer)
    teacher = StableDiffusion(*parts, scheduler)
    assert teacher.schedule.alphas[999] == 0
    save_pipeline(teacher, teacher.network, tmp_path, 999, num_steps)
    ours = teacher.generate(teacher.network, PROMPTS, SEEDS, 999, num_steps)
    latents = sample(load(tmp_path, num_steps), num_steps=num_steps)
    assert (latents - ours).norm() / ours.norm() < 1e-3


def test_a_teacher_is_not_an_export(tiny_sd: str) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    assert exported_as(teacher.scheduler_config) is None


@pytest.mark.parametrize("exported", [1, 2])
@pytest.mark.slow
def test_a_folder_can_be_sampled_in_any_number_of_steps(
    tiny_sd: str, tmp_path: Path, exported: int
) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    save_pipeline(module.teacher, module.ema, tmp_path, 625, exported)
    pipeline = load(tmp_path, exported)
    if exported == 1:
        pipeline.scheduler = SiDScheduler.from_config(pipeline.scheduler.config)
    for num_steps in (3, 1):
        ours = module.generate(PROMPTS, SEEDS, num_steps)
        latents = sample(pipeline, num_steps=num_steps)
        assert (latents - ours).norm() / ours.norm() < 1e-4


def test_code_of_a_folder_runs_only_if_it_is_trusted(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    folder = tmp_path / "generator"
    save_pipeline(module.teacher, module.ema, folder, 625, 2)
    ours = module.teacher.decode(module.generate(PROMPTS, SEEDS, 2))
    code = folder / "scheduler" / "sid_lsg_scheduler.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + code.read_text())

    with pytest.raises(ValueError, match=r"custom code in sid_lsg_scheduler\.py.*\n.*trust_remote"):
        DiffusionPipeline.from_pretrained(folder)
    model = load_model(str(folder), num_steps=2)
    assert torch.equal(model.sample(PROMPTS, SEEDS), ours)
    assert not (tmp_path / "ran").exists()
    load(folder)
    assert (tmp_path / "ran").exists()


def test_the_folder_has_the_resolution_of_the_training(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625, resolution=32)
    save_pipeline(module.teacher, module.ema, tmp_path, 625)
    latents = sample(DiffusionPipeline.from_pretrained(tmp_path))
    ours = module.generate(PROMPTS, SEEDS)
    assert latents.shape == ours.shape == (3, 4, 4, 4)
    assert (latents - ours).norm() / ours.norm() < 1e-4


def test_the_folder_contains_only_safetensors_and_stock_classes(
    tiny_sd: str, tmp_path: Path
) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    save_pipeline(module.teacher, module.ema, tmp_path, 625)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    weights = {name for name in files if not name.endswith((".json", ".txt"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    parts = json.loads((tmp_path / "model_index.json").read_text())
    libraries = {value[0] for value in parts.values() if isinstance(value, list)}
    assert libraries == {"diffusers", "transformers", None}
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    ema = module.ema.state_dict()
    assert stored.keys() == ema.keys()
    assert all(torch.equal(value, ema[name]) for name, value in stored.items())


def test_the_scheduler_imports_only_diffusers_and_torch() -> None:
    text = Path(sys.modules[SiDScheduler.__module__].__file__ or "").read_text()
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in imports} == {"torch", "diffusers"}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7])
def test_the_scheduler_has_the_generators_timesteps(num_steps: int) -> None:
    scheduler, schedule = SiDScheduler(num_steps=num_steps), DiscreteSchedule(*torch.ones(2, 1000))
    assert scheduler.timesteps.tolist() == schedule.generator_times(625, num_steps)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == schedule.generator_times(625, 5)
    scheduler.set_timesteps()
    assert scheduler.num_inference_steps == num_steps


def test_the_scheduler_has_stable_diffusions_betas(tiny_sd: str) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    assert torch.equal(SiDScheduler().alphas, teacher.schedule.alphas[:626])


@pytest.mark.parametrize("steps", [-1, 626])
def test_impossible_numbers_of_steps_are_rejected(steps: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 to 625, got {steps}"):
        SiDScheduler().set_timesteps(steps)
    with pytest.raises(ValueError, match="must be epsilon, v_prediction or .* got 'sample'"):
        SiDScheduler(prediction_type="sample")


def test_older_tokenizers_find_their_files(tiny_sd: str, tmp_path: Path) -> None:
    """Before transformers 5, the CLIP tokenizer read only vocab.json and merges.txt."""
    module = trained(tiny_sd, "epsilon", 625)
    save_pipeline(module.teacher, module.ema, tmp_path, 625)
    own = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        found = (tmp_path / "tokenizer" / name).read_text()
        expected = (Path(tiny_sd) / "tokenizer" / name).read_text()
        if name == "vocab.json":
            assert json.loads(found) == json.loads(expected)
        else:
            assert found.split("\n")[0].startswith("#version")
            assert found.strip().split("\n")[1:] == expected.strip().split("\n")[1:]
    shutil.move(tmp_path / "tokenizer" / "tokenizer.json", tmp_path)
    old = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    texts = [*PROMPTS, "The phone's bluest CATS!"]
    assert own(texts).input_ids == old(texts).input_ids


@pytest.mark.parametrize("num_steps", [1, 2])
def test_no_exported_file_names_a_local_folder(
    tiny_sd: str, tmp_path: Path, num_steps: int
) -> None:
    copied = shutil.copytree(tiny_sd, tmp_path / "secret" / "teacher")
    teacher = StableDiffusion.from_pretrained(str(copied))
    save_pipeline(teacher, teacher.network, tmp_path / "out", 625, num_steps)
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes(), path
    kept = json.loads((tmp_path / "out/unet/config.json").read_text())
    assert kept.items() >= {"cross_attention_dim": 32, "sample_size": 8}.items()


def test_exporting_does_not_change_the_module(tiny_sd: str, tmp_path: Path) -> None:
    module = trained(tiny_sd, "epsilon", 625)
    before = module.generate(PROMPTS, SEEDS)
    flags = [(p.requires_grad, p.dtype) for p in module.parameters()]
    save_pipeline(module.teacher, module.ema, tmp_path, 625)
    assert torch.equal(module.generate(PROMPTS, SEEDS), before)
    assert [(p.requires_grad, p.dtype) for p in module.parameters()] == flags
