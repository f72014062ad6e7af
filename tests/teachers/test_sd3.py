"""A teacher of Stable Diffusion 3: text, sizes, training, export to stock diffusers, errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file

from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.export.card import write_card
from sid_lsg.export.exported import Exported, read_exported
from sid_lsg.export.facts import facts_of
from sid_lsg.export.folder import save_pipeline
from sid_lsg.files.sources import locate
from sid_lsg.generation.models import load_model
from sid_lsg.images.pixels import to_uint8
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.sampling import seeded_noises
from sid_lsg.teachers import families
from sid_lsg.teachers.sd3 import SD3
from tests.helpers.golden import error
from tests.helpers.tiny_families import EVERYTHING, FAMILIES, PROMPTS, command

TINY = FAMILIES["sd3"]
FOLDER = TINY.folder
SEEDS = [3, 0]


@pytest.fixture(scope="module")
def teacher() -> SD3:
    loaded = families.load(str(FOLDER))
    assert isinstance(loaded, SD3)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the teacher's folder that a test may change."""
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def without_t5(folder: Path) -> Path:
    """Remove T5 and its tokenizer, as `save_pretrained` leaves them out."""
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / name)
        index[name] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# ---------------------------------------------------------------------- text and sizes


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize("length", [None, 77, 0])
@pytest.mark.slow
def test_text_is_encoded_as_in_the_stock_pipeline(
    folder: Path, t5: bool, length: int | None
) -> None:
    if not t5:
        without_t5(folder)
    own: Any = families.load(str(folder))
    if length is not None:
        own.max_sequence_length = length
    used = 256 if length is None else length
    # The stock pipeline wants to be told that T5 is missing, and cannot cut it to nothing.
    none = {} if t5 and used else dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    stock = StableDiffusion3Pipeline.from_pretrained(folder, **none)
    embeds, _, pooled, _ = stock.encode_prompt(
        PROMPTS, None, None, max_sequence_length=used, do_classifier_free_guidance=False
    )
    found = own.encode_prompts(PROMPTS)
    torch.testing.assert_close(found["encoder_hidden_states"], embeds)
    torch.testing.assert_close(found["pooled_projections"], pooled)


def test_a_length_is_exported(folder: Path, tmp_path: Path) -> None:
    own: Any = families.load(str(folder))
    own.max_sequence_length = 77
    save_pipeline(own, own.network, tmp_path / "out", 999, 2)
    again: Any = families.load(str(tmp_path / "out"))
    assert again.max_sequence_length == 77
    assert again.pipeline_options == {"guidance_scale": 1, "max_sequence_length": 77}


@pytest.mark.parametrize(("resolution", "side"), [(None, 64), (32, 32), (128, 128)])
def test_sizes_follow_the_resolution(resolution: int | None, side: int) -> None:
    own = families.load(str(FOLDER), resolution=resolution)
    assert own.latent_shape == (16, side // 8, side // 8)
    assert own.sample_reference(["a"], [0], 1, 1.0).shape == (1, 3, side, side)


@pytest.mark.parametrize(
    ("resolution", "message"),
    [(40, "multiple of 16"), (8, "multiple of 16"), (144, "Use at most 128")],
)
def test_a_resolution_that_does_not_fit_is_refused(resolution: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        families.load(str(FOLDER), resolution=resolution)


def test_the_end_of_a_long_prompt_is_what_no_encoder_reads(teacher: SD3, folder: Path) -> None:
    prompt = " ".join(["cat"] * 90)
    assert teacher.cut_off(prompt) == ""  # T5 reads 256
    assert teacher.cut_off(" ".join(["cat"] * 600)).endswith("cat")
    assert families.load(str(without_t5(folder))).cut_off(prompt).endswith("cat")


def test_images_are_encoded_and_decoded_with_scale_and_shift(teacher: SD3) -> None:
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    mean = teacher.vae.encode(pixels / 127.5 - 1).latent_dist.mean
    assert error(teacher.encode_images(pixels), (mean - 0.0609) * 1.5305) < 1e-5
    latents = torch.randn(2, 16, 8, 8)
    expected = teacher.vae.decode(latents / 1.5305 + 0.0609).sample
    assert error(teacher.decode(latents), expected) < 1e-5


# ---------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of four-step generators, with image grids, scores, health and an export."""
    root = tmp_path_factory.mktemp("run") / "run"
    arguments = command(TINY, root.parent, model__num_steps=4, **EVERYTHING)
    main([*arguments, f"--trainer.default_root_dir={root}"])
    return root


def test_the_teachers_defaults_are_trained_with_and_recorded(run: Path) -> None:
    before = families.load(str(FOLDER)).network.state_dict()
    after = load_file(run / "generator" / TINY.network)
    assert after.keys() == before.keys()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(changed) > 80
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    chosen = {name: model[name] for name in ("t_init", "weighting", "step_training")}
    assert chosen == {"t_init": 999, "weighting": "1_minus_sigma", "step_training": "last"}
    assert model["prompt_dropout"] == 0
    assert model["flow"] == pytest.approx({"location": 0.6931472, "scale": 1.6, "shift": 1})
    summary = json.loads((run / "summary.json").read_text())
    assert "clip_score_fast_4" in summary
    assert (run / "comparison.png").is_file()


# ---------------------------------------------------------------------- stock diffusers


def test_an_export_needs_no_code_of_this_project(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export(str(run), str(folder), num_steps=4, license="mit")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["scheduler"] == ["diffusers", "FlowMatchLCMScheduler"]
    assert not list(folder.rglob("*.py"))
    assert read_exported(locate(str(folder))) == Exported(999, 4)


@pytest.mark.parametrize("noise", ["fixed", "ddim"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.slow
def test_other_samplers_are_exported_with_their_scheduler(
    teacher: SD3, folder: Path, tmp_path: Path, noise: Any, shift: float
) -> None:
    own: Any = families.load(str(folder))
    own.schedule.shift = shift
    save_pipeline(own, own.network, tmp_path / "out", 999, 3, noise=noise)
    assert read_exported(locate(str(tmp_path / "out"))) == Exported(999, 3, noise, shift)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    (z,) = seeded_noises(SEEDS, own.latent_shape)
    theirs = pipeline(
        PROMPTS[:2], num_inference_steps=3, guidance_scale=1, latents=z, output_type="latent"
    ).images
    ours = own.generate(own.network, PROMPTS[:2], SEEDS, 999, 3, noise)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.slow
def test_the_cards_code_samples_the_export(
    folder: Path, tmp_path: Path, t5: bool, num_steps: int
) -> None:
    """Without T5, diffusers needs two arguments; later noise follows the global seed."""
    own: Any = families.load(str(folder if t5 else without_t5(folder)))
    own.max_sequence_length = 16
    save_pipeline(own, own.network, tmp_path / "out", 999, num_steps)
    facts = facts_of(own, 999, num_steps, model=str(tmp_path / "out"))
    write_card(tmp_path / "out", facts)
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert ("text_encoder_3=None" in code) is not t5
    assert "max_sequence_length=16" in code
    assert ("torch.manual_seed" in card) is (num_steps > 1)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code, names)
    assert names["image"].size == (64, 64)
    pipeline = load_model(str(tmp_path / "out"), "pipeline", num_steps=num_steps, guidance=1.0)
    assert pipeline.sample(PROMPTS[:1], [0]).shape == (1, 3, 64, 64)
    if num_steps == 1:
        latents = own.generate(own.network, ["a lighthouse at dawn"], [0], 999, 1)
        wanted = to_uint8(own.decode(latents))[0].permute(1, 2, 0).numpy()
        assert abs(np.asarray(names["image"]).astype(int) - wanted).max() <= 1


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", {"in_channels": 17}, "takes 17 channels"),
        ("transformer", {"joint_attention_dim": 41}, "attends to 41 features"),
        ("transformer", {"pooled_projection_dim": 33}, "takes 33 pooled features"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, change: dict[str, Any], message: str, folder: Path
) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=f"--model.teacher: .*{message}"):
        families.outline(str(folder))


@pytest.mark.parametrize("name", ["sd35-medium", "sd35-large", "sd3-medium"])
@pytest.mark.slow
def test_architectures_have_the_models_sizes(name: str) -> None:
    own: Any = families.outline(f"architecture:{name}")
    millions = {"sd35-medium": 2243, "sd35-large": 8056, "sd3-medium": 2028}[name]
    assert sum(p.numel() for p in own.network.parameters()) // 10**6 == millions
    assert own.latent_shape == (16, 128, 128)
    assert sum(p.numel() for p in own.text_encoder_3.parameters()) // 10**6 == 4762


def test_a_stock_scheduler_needs_the_methods_times(teacher: SD3) -> None:
    for steps in (1, 2, 4, 8):
        scheduler: Any = teacher.stock_scheduler(999, steps, "fresh")
        assert isinstance(scheduler, FlowMatchLCMScheduler)
        scheduler.set_timesteps(steps)
        times = teacher.schedule.generator_times(999, steps)
        assert scheduler.sigmas[:-1].tolist() == pytest.approx(times, abs=1e-6)
    assert teacher.stock_scheduler(625, 2, "fresh") is None
    assert teacher.stock_scheduler(999, 2, "ddim") is None
