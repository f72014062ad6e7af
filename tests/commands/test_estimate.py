"""The estimate command: what a fit will need."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.commands.estimate import Estimate, estimate
from sid_lsg.commands.fit_options import FitOptions
from sid_lsg.costs.options import levers, plan_of
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Compute
from tests.helpers.paths import CONFIGS


def config_of(*args: str) -> Any:
    return FitOptions(estimate, Estimate, args).config


@pytest.mark.slow
def test_an_estimate_is_printed_and_saved(
    tiny_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made" / "estimate.json"
    args = ["--model.teacher", tiny_sd, "--data.batch_size", "32", "--model.micro_batch_size", "4"]
    args += ["--trainer.max_steps", "1000", "--estimate.output", str(output)]
    args += [
        "--model.memory.activations",
        "lean",
        "--trainer.precision",
        "bf16-mixed",
        "--model.memory.frozen_precision",
        "bf16",
    ]
    args += ["--model.memory.checkpointing", "[fake_score, generator, teacher]"]
    for name in ("fake", "generator"):
        args += [f"--model.optimizer_{name}=torch.optim.Adam"]
        args += [f"--model.optimizer_{name}.betas=[0.0, 0.999]"]
    found = estimate([*args, "--estimate.gpus", "2", "--estimate.gpu", "4090"])

    assert json.loads(output.read_text()) == found
    printed = capsys.readouterr().out
    rows = found["options"]
    assert [row["options"] for row in rows] == [
        "as configured",
        "--model.compute.compile true",
        "class_path: sid_lsg.optimizers.AdamWithoutMomentum (both optimizers)",
        "--model.ema.device cpu",
        "--trainer.strategy fsdp2",
        "all of these",
    ]
    assert all(row["options"] in printed for row in rows)
    assert found["gpus"] == 2
    assert found["usable_gib"] == 22.5
    first, compiled, without, _, sharded, everything = rows
    standing, passing = found["standing_gib"], found["passing_gib"]
    assert first["memory_gib"] == pytest.approx(sum(standing.values()) + max(passing.values()))
    assert everything["memory_gib"] < sharded["memory_gib"] < first["memory_gib"]
    saved = (first["memory_gib"] - without["memory_gib"]) / standing["optimizers"]
    assert saved == pytest.approx(0.5)
    assert first["largest_micro_batch"] == 16
    assert found["tflop_per_s"] == pytest.approx(31.388)
    assert compiled["memory_gib"] == first["memory_gib"]
    # 19% of 165.2; networks this small make a GPU wait for the host in all 4 micro-batches
    assert first["seconds_per_iteration"] == pytest.approx(4 * found["launching_seconds"])
    assert first["hours_at_largest"] == pytest.approx(first["hours"] / 4)
    assert first["hours"] == pytest.approx(1000 * first["seconds_per_iteration"] / 3600)


def test_the_plan_is_read_from_the_config() -> None:
    trainer = CONFIGS / "trainer" / "multinode.yaml"
    args = ["--config", str(CONFIGS / "lsg.yaml"), "--config", str(trainer)]
    plan = plan_of(
        config_of(*args, "--model.lora.generator.rank", "8", "--model.ema.device", "cpu")
    )
    assert tuple(plan.kappas) == (1.5, 1.5, 1.5, 1.5)
    assert (plan.batch_size, plan.micro_batch_size, plan.devices) == (512, 4, 16)
    assert (plan.precision, plan.strategy) == ("bf16-mixed", "ddp_multi")
    assert plan.lora.generator == LoRA(8)
    assert plan.ema.device == "cpu"
    assert plan.images_at_once == 16
    optimizer = plan.optimizer_fake([torch.nn.Parameter()])
    assert list(optimizer.defaults["betas"]) == [0.0, 0.999]


@pytest.mark.parametrize(
    ("asked", "devices"),
    [("8", 8), ("auto", 1), ("[0, 1, 2, 3]", 4), ("0,1", 2), ("1", 1)],
)
@pytest.mark.slow
def test_devices_are_counted_from_the_options(asked: str, devices: int) -> None:
    args = ["--config", str(CONFIGS / "lsg.yaml"), "--trainer.devices", asked]
    assert plan_of(config_of(*args)).devices == devices
    assert plan_of(config_of(*args, "--trainer.num_nodes", "2")).devices == 2 * devices


@pytest.mark.parametrize("asked", ["-1", "all"])
def test_all_devices_need_an_explicit_number(asked: str) -> None:
    config = config_of("--config", str(CONFIGS / "lsg.yaml"), "--trainer.devices", asked)
    with pytest.raises(UsageError, match=r"--trainer.devices: .* Give --estimate.gpus"):
        plan_of(config)
    assert plan_of(config, gpus=4).devices == 4


def test_only_effective_options_are_suggested() -> None:
    args = ["--config", str(CONFIGS / "lsg.yaml"), "--trainer.precision", "bf16-mixed"]
    args += ["--model.memory.checkpointing", "[generator, teacher, fake_score]"]
    plan = plan_of(config_of(*args, "--trainer.strategy", "fsdp2"), gpus=8)
    assert list(levers(plan)) == [
        "--model.memory.activations lean",
        "--model.memory.frozen_precision bf16",
    ]
    assert "--model.compute.compile true" in levers(replace(plan, strategy="ddp_multi"))
    plain = plan_of(config_of("--config", str(CONFIGS / "lsg.yaml")))
    assert [option.split()[0] for option in levers(plain)] == [
        "--trainer.precision",
        "--model.compute.tf32",
        "--model.compute.compile",
        "--model.memory.activations",
        "--model.memory.checkpointing",
        "--model.memory.frozen_precision",
        "--model.ema.device",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--estimate.gpus", "0"], "--estimate.gpus must be a positive number"),
        (["--estimate.gpus", "7"], "7 device.* do not divide --data.batch_size"),
        (["--estimate.efficiency", "1.5"], "--estimate.efficiency must be a share"),
        (["--model.teacher", "architecture:sd9"], "--model.teacher: there is no architecture"),
        (["--model.micro_batch_size", "5"], "--model.micro_batch_size: 5 does not divide"),
        (["--model.micro_batch_size", "0"], "--model.micro_batch_size must be at least 1"),
        (["--trainer.precision", "bf16-true"], "--trainer.precision"),
        (["--estimate.output", str(CONFIGS)], "--estimate.output must be the name of a file"),
        (["--estimate.output", "/proc/estimate.json"], "--estimate.output: cannot write"),
    ],
)
def test_a_mistake_names_its_option(args: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        estimate(["--config", str(CONFIGS / "lsg.yaml"), *args])


def test_a_gpu_can_be_described_by_tflops_and_memory() -> None:
    other = Estimate(tflops=100, memory_gb=48)
    assert other.usable_bytes == 46.5 * 2**30
    plan = plan_of(config_of("--config", str(CONFIGS / "lsg.yaml")))
    half = replace(plan, precision="bf16-mixed")
    assert other.speed(plan) == pytest.approx(0.39e14)
    assert other.speed(half) == pytest.approx(0.19e14)
    assert other.speed(replace(half, compute=Compute(compile=True))) == pytest.approx(0.29e14)
    assert Estimate(gpu="a100").speed(plan) == pytest.approx(19.5e12 * 0.39)
    assert Estimate(gpu="a100").speed(replace(plan, compute=Compute(tf32=True))) == pytest.approx(
        156e12 * 0.13
    )
    assert Estimate(gpu="a100").speed(replace(half, compute=Compute(tf32=True))) == pytest.approx(
        312e12 * 0.19
    )
    given = Estimate(gpu="a100", efficiency=0.5)
    assert given.speed(plan) == pytest.approx(19.5e12 / 2)
    assert given.speed(replace(half, compute=Compute(compile=True))) == pytest.approx(156e12)
