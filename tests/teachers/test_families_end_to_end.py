"""Every family is trained, resumed, exported to stock diffusers, sampled and scored.

`tests.helpers.tiny_families` lists the families.
"""

import io
import json
import signal
from pathlib import Path
from typing import Any

import diffusers.utils.dynamic_modules_utils as dynamic_modules
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.app.panels import take
from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.estimate import estimate
from sid_lsg.commands.evaluate import evaluate
from sid_lsg.commands.export import export
from sid_lsg.commands.generate import generate
from sid_lsg.export.folder import save_pipeline
from sid_lsg.generation.models import load_model
from sid_lsg.generation.trained import Trained, load_trained
from sid_lsg.images.pixels import to_uint8
from sid_lsg.method.choices import Noise
from sid_lsg.options.flow import Flow
from sid_lsg.teachers.families import load
from tests.helpers import runs, strategy_runs
from tests.helpers.images import photographs
from tests.helpers.tiny_families import (
    EVERYTHING,
    FAMILIES,
    LEAN,
    LORA,
    PROMPTS,
    SEEDS,
    TinyFamily,
    command,
    load_adapters,
    stock_latents,
)

MOVED = 1e-4  # a trained network moves by more than this, relative


@pytest.fixture(autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """Let diffusers copy the code that it runs to a temporary folder."""
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code")))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return FAMILIES[request.param]


def fit(family: TinyFamily, root: Path, *more: str, **options: Any) -> Path:
    arguments = command(family, root.parent, **options)
    main([*arguments, f"--trainer.default_root_dir={root}", *more])
    return root


@pytest.fixture(scope="module")
def run(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all weights for one step, with image grids, scores, health checks and an export."""
    return fit(family, tmp_path_factory.mktemp("run") / "run", **EVERYTHING)


@pytest.fixture(scope="module")
def adapted(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train adapters for four steps, with everything that saves memory."""
    root = tmp_path_factory.mktemp("adapted") / "run"
    return fit(family, root, model__num_steps=4, **LORA, **LEAN)


def weights(family: TinyFamily, root: Path) -> dict[str, Tensor]:
    return load_file(root / "generator" / family.network)


def opened(root: Path) -> Trained:
    return load_trained(require_checkpoint(root))


def own_latents(trained: Trained, num_steps: int) -> Tensor:
    teacher = trained.teacher
    return teacher.generate(teacher.network, PROMPTS, SEEDS, trained.t_init, num_steps)


# ---------------------------------------------------------------------- training


@pytest.mark.slow
def test_a_run_is_scored_and_watched(family: TinyFamily, run: Path) -> None:
    before, after = load_file(family.folder / family.network), weights(family, run)
    assert after.keys() == before.keys()
    assert all(value.isfinite().all() for value in after.values())
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(changed) > 0.9 * len(before)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert {"clip_score_fast_4", "teacher_clip_score_fast_4"} <= summary.keys()
    assert len(list((run / "grids").iterdir())) == 2
    assert (run / "comparison.png").is_file()


@pytest.mark.parametrize("options", [{}, LORA | LEAN], ids=["full", "LoRA, lean"])
@pytest.mark.slow
def test_a_resumed_run_equals_an_undisturbed_one(
    family: TinyFamily, request: pytest.FixtureRequest, tmp_path: Path, options: dict[str, Any]
) -> None:
    """One iteration and a second one from its checkpoint equal two iterations bitwise.

    A new process does the second iteration of the full run: it has nothing but the checkpoint.
    """
    steps = {"model__num_steps": 4} if options else {}
    expected = weights(family, request.getfixturevalue("adapted" if options else "run"))
    root = tmp_path / "run"
    fit(family, root, **options, **steps, trainer__max_steps=1)
    if options:
        fit(family, root, "--ckpt_path=last", **options, **steps)
    else:
        runs.finish(runs.start([*command(family, tmp_path), "--ckpt_path=last"], root, 1), root)
    found = weights(family, root)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


DROPPED = EVERYTHING | {
    "model__text__device": "drop",
    "image_grid__every_n_steps": 1,
    "image_grid__prompts": "[a new prompt]",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"model__num_steps": 4}, LORA | DROPPED], ids=["4 steps", "LoRA, no text encoders"]
)
def test_steps_and_adapters_are_independent(
    family: TinyFamily, tmp_path: Path, options: dict[str, Any]
) -> None:
    found = weights(family, fit(family, tmp_path / "run", trainer__max_steps=1, **options))
    before = load_file(family.folder / family.network)
    moved = sum(float((value - before[name]).norm()) for name, value in found.items())
    assert moved > MOVED


@pytest.mark.slow
def test_real_images_change_the_generator(family: TinyFamily, run: Path, tmp_path: Path) -> None:
    """The adversarial term reaches the generator's weights."""
    real = {"data__real_images": photographs(tmp_path), "model__real_data__generator_weight": 1.0}
    found, plain = weights(family, fit(family, tmp_path / "run", **real)), weights(family, run)
    assert all(value.isfinite().all() for value in found.values())
    assert sum(float((value - plain[name]).norm()) for name, value in found.items()) > MOVED


@pytest.mark.slow
def test_adapters_are_on_every_attention(family: TinyFamily, adapted: Path) -> None:
    """The default targets are the projections of the network's attention."""
    (file,) = (adapted / "generator" / "lora").glob("*.safetensors")
    layers = {name.rpartition(".lora_")[0] for name in load_file(file)}
    ends = {layer.rpartition(".")[2] for layer in layers}
    assert {"to_q", "to_k", "to_v"} <= ends
    network = "base_model" if file.stem == "adapter_model" else family.network.split("/")[0]
    assert {layer.split(".")[0] for layer in layers} == {network}
    names = load_file(family.folder / family.network)
    assert sum(layer.endswith(".to_q") for layer in layers) == sum(
        name.endswith(".to_q.weight") for name in names
    )


# ---------------------------------------------------------------------- export


@pytest.mark.parametrize(
    ("which", "num_steps"), [*(("run", steps) for steps in (1, 2, 3, 4)), ("adapted", 4)]
)
@pytest.mark.slow
def test_stock_diffusers_samples_an_export(
    family: TinyFamily, request: pytest.FixtureRequest, tmp_path: Path, which: str, num_steps: int
) -> None:
    root = request.getfixturevalue(which)
    export(str(root), str(tmp_path / "out"), num_steps=num_steps, license="mit")
    trained = opened(root)
    expected = own_latents(trained, num_steps)
    stock = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    found = stock_latents(stock, num_steps, trained.teacher)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"num_inference_steps={num_steps}," in card


FLOWS = [name for name in FAMILIES if name not in ("sdxl", "pixart")]


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
    ("noise", "t_init", "shift"),
    [("fixed", 999, 1.0), ("ddim", 999, 3.0), ("ddim", 900, 1.0), ("fixed", 500, 3.0)],
)
def test_stock_diffusers_samples_other_times_and_noise(
    name: str, tmp_path: Path, noise: Noise, t_init: int, shift: float
) -> None:
    teacher = load(str(FAMILIES[name].folder))
    Flow(shift=shift).set_times(teacher.schedule)
    save_pipeline(teacher, teacher.network, tmp_path, t_init, 3, noise=noise)
    expected = teacher.generate(teacher.network, PROMPTS, SEEDS, t_init, 3, noise)
    stock = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    found = stock_latents(stock, 3, teacher)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_stock_diffusers_loads_the_adapters(family: TinyFamily, adapted: Path) -> None:
    trained = opened(adapted)
    exported = DiffusionPipeline.from_pretrained(adapted / "generator", trust_remote_code=True)
    stock = DiffusionPipeline.from_pretrained(family.folder, scheduler=exported.scheduler)
    before = stock_latents(stock, 4, trained.teacher)
    load_adapters(stock, adapted / "generator" / "lora")
    found = stock_latents(stock, 4, trained.teacher)
    expected = own_latents(trained, 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (before - expected).norm() / expected.norm() > MOVED


# ---------------------------------------------------------------------- commands


@pytest.mark.slow
def test_images_are_generated_and_scored(family: TinyFamily, run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    common: dict[str, Any] = {"prompts": str(tmp_path / "prompts.txt"), "accelerator": "cpu"}
    generate(str(run / "generator"), output=str(tmp_path / "images"), seeds="3", **common)
    files = sorted((tmp_path / "images").glob("*.png"))
    size = (family.size, family.size)
    assert [Image.open(file).size for file in files].count(size) == len(PROMPTS)
    model = load_model(str(run))
    expected = to_uint8(model.sample(PROMPTS[:1], [3]))[0].permute(1, 2, 0)
    shown = [np.asarray(Image.open(file)) for file in files if Image.open(file).size == size]
    shown.append(np.asarray(Image.open(io.BytesIO(take(model, PROMPTS[0], 3).png))))  # the app's
    errors = [int(np.abs(image.astype(int) - expected.numpy()).max()) for image in shown]
    assert min(errors[:-1]) <= 1
    assert errors[-1] == 0
    evaluate(
        str(run), num_images=4, clip="package:demo/fashion/clip", protocol="fast",
        output=str(tmp_path / "out"), **common,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "clip_score_fast_4" in report["scores"]


def test_the_teacher_is_sampled(family: TinyFamily) -> None:
    model = load_model(str(family.folder), "ddim", num_steps=2, guidance=2.0)
    images = model.sample(PROMPTS, SEEDS)
    assert images.shape == (4, 3, family.size, family.size)
    assert model.evaluations == 2 * family.passes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_a_generator_samples_in_16_bits(family: TinyFamily, run: Path, dtype: str) -> None:
    whole = load_model(str(run)).sample(PROMPTS, SEEDS)
    half = load_model(str(run), dtype=dtype).sample(PROMPTS, SEEDS)
    assert (half - whole).norm() / whole.norm() < 0.1


@pytest.mark.slow
def test_costs_are_estimated(family: TinyFamily) -> None:
    precision = ["--trainer.precision=bf16-mixed", "--model.memory.frozen_precision=bf16"]
    found = estimate([f"--model.teacher={family.folder}", "--data.batch_size=4", *precision])
    assert found["standing_gib"]["teacher"] > 0
    assert found["tflop_per_image"]["phase 2: teacher"] > 0
    assert any("checkpointing" in row["options"] for row in found["options"])


# ---------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(family: TinyFamily, tmp_path: Path) -> None:
    common: dict[str, Any] = {"optimizer": ["SGD", {"lr": 1e-4}], "steps": 2}
    common["model"] = {"num_steps": 2, "micro_batch_size": 1}
    folder, teacher = tmp_path, str(family.folder)
    strategy_runs.run_job(folder, teacher, PROMPTS, 1, [common | {"name": "alone"}])
    strategies = ("ddp_multi", "fsdp2")
    jobs = [
        common | {"name": name, "trainer": {"strategy": name, "devices": 2}} for name in strategies
    ]
    strategy_runs.run_job(folder, teacher, PROMPTS, 2, jobs)
    for name in strategies:
        strategy_runs.assert_same(folder, name, "alone", 1e-6)


@pytest.mark.parametrize("family", ["sd3"], indirect=True)
@pytest.mark.slow
def test_a_killed_run_is_resumed_bitwise(family: TinyFamily, tmp_path: Path) -> None:
    arguments = command(family, tmp_path, trainer__max_steps=6)
    expected, root = tmp_path / "expected", tmp_path / "killed"
    runs.finish(runs.start(arguments, expected, 1), expected)
    (process,) = started = runs.start(arguments, root, 1)
    runs.wait(started, root / "checkpoints", 2)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = [*arguments, *(["--ckpt_path=last"] if (root / "config.yaml").exists() else [])]
    runs.finish(runs.start(again, root, 1), root)
    found = weights(family, root)
    assert all(torch.equal(found[name], value) for name, value in weights(family, expected).items())
