"""Several processes train, score, stop and resume like one process."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.checkpoints.io import WRITTEN, SafeCheckpointIO
from sid_lsg.checkpoints.shards import joined
from sid_lsg.cli import main
from sid_lsg.commands.consolidate import consolidate
from sid_lsg.data.prompts import PromptDataModule, PromptDataset
from sid_lsg.distributed.processes import meet
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.strategies import FSDP2Strategy, MultiNetDDPStrategy, warn_if_no_room
from tests.helpers import forked
from tests.helpers.checkpoints import opened
from tests.helpers.comparison import same
from tests.helpers.images import photographs
from tests.helpers.interpreter import interpreter
from tests.helpers.paths import REPOSITORY
from tests.helpers.strategy_runs import NETWORKS, Rows, assert_same, optimizer, run_job, weights

pytestmark = pytest.mark.slow

PROMPTS = [f"a {color} {thing}" for color in ("red", "blue", "old") for thing in range(20)]
SGD = ["SGD", {"lr": 1e-4}]
# With beta1 = 0, Adam would turn the rounding of a tiny gradient into a whole step.
ADAM = ["Adam", {"lr": 1e-4, "betas": [0.9, 0.99], "eps": 1e-3, "fused": True}]
BATCH = 4


def poisoned() -> list[str]:
    """Return one prompt of rank 1 in iteration 2, phase 1, and all of rank 0 in 3, phase 2."""
    dataset = PromptDataset(PROMPTS, BATCH, seed=0)
    return [dataset[2].fake[3], *dataset[3].generator[:2]]


VARIANTS: dict[str, dict[str, Any]] = {
    f"{strategy}, micro-batch {size}": {
        "name": f"{strategy}, micro-batch {size}",
        "trainer": {"strategy": strategy, "devices": 2},
        "model": {"micro_batch_size": size},
        "export": size == 2,
        "counted": True,
    }
    for strategy in ("ddp", "ddp_multi", "fsdp2")
    for size in (1, 2)
}  # runs on two processes, each with half of the batch


def handed(steps: int, before: str | None = None, strategy: str = "auto") -> dict[str, Any]:
    """Return a run up to `steps` that resumes from another; with a strategy, on two processes."""
    run: dict[str, Any] = {"name": f"step {steps}", "steps": steps, "optimizer": ADAM}
    if before:
        run["from"] = before
    if strategy != "auto":
        run["trainer"] = {"strategy": strategy, "devices": 2}
    return run | {"model": {"gradients": {"clip_val": 1.0}, "micro_batch_size": 1 + steps % 2}}


SGD_RUN: dict[str, Any] = {"optimizer": SGD, "steps": 5}
WITH_REAL_IMAGES = ("ddp_multi", "fsdp2")


@pytest.fixture(scope="module")
def results(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Execute all runs on the CPU, once."""
    folder = tmp_path_factory.mktemp("several")
    bad, short = SGD_RUN | {"poisoned": poisoned()}, SGD_RUN | {"steps": 2}
    alone = [SGD_RUN | {"name": "alone", "export": True}, bad | {"name": "alone, poisoned"}]
    whole = handed(6) | {"name": "whole"}
    larger = {"name": "larger micro-batches", "model": whole["model"] | {"micro_batch_size": 4}}
    more = short | {"name": "alone, two steps", "model": {"num_steps": 2}}
    alone.append(short | {"name": "alone, short"})
    real = short | {"real_images": photographs(folder)}
    alone.append(real | {"name": "alone, real images"})
    alone += [whole, handed(2), handed(6, "step 2") | larger, more]
    one_shard = {"trainer": {"strategy": "fsdp2_sharded", "devices": 1}, "name": "one shard"}
    run_job(folder, small_sd, PROMPTS, 1, [*alone, handed(3, "step 2") | one_shard])
    runs = [SGD_RUN | run for run in VARIANTS.values()]
    for name in ("ddp_multi", "fsdp2"):
        other = {"name": f"{name}, poisoned", "counted": False}
        runs.append(bad | VARIANTS[f"{name}, micro-batch 1"] | other)
    runs += [
        handed(4, "one shard", "fsdp2_sharded"),
        handed(5, "step 4", "ddp_multi"),
        handed(6, "step 5", "fsdp2"),
        handed(4, "one shard", "fsdp2") | {"name": "file"},
        handed(5, "step 4", "fsdp2_sharded") | {"name": "from shards"},
        handed(5, "file", "fsdp2_sharded") | {"name": "from file"},
    ]
    fsdp2 = short | {"trainer": {"strategy": "fsdp2", "devices": 2}, "counted": True}
    names = ["fake_score", "generator", "teacher"]
    options: dict[str, Any] = {"num_steps": 2, "micro_batch_size": 1}
    lean = {
        "name": "fsdp2, two steps, lean",
        "model": options | {"memory": {"activations": "lean"}},
    }
    options |= {"memory": {"checkpointing": names}}
    runs += [fsdp2 | {"name": "fsdp2, two steps", "model": options}, fsdp2 | lean]
    half = {"trainer": fsdp2["trainer"] | {"precision": "bf16-mixed"}}
    runs.append(fsdp2 | half | {"name": "fsdp2, bf16"})
    for name in WITH_REAL_IMAGES:
        runs.append(real | VARIANTS[f"{name}, micro-batch 1"] | {"name": f"{name}, real images"})
    run_job(folder, small_sd, PROMPTS, 2, runs)
    return folder


def report(folder: Path, run: str, rank: int = 0) -> dict[str, Any]:
    found = json.loads((folder / run / f"report{rank}.json").read_text())
    assert isinstance(found, dict)
    return found


def count(state: Any) -> int:
    """Count the numbers in a checkpoint's tensors."""
    if isinstance(state, dict | list):
        return sum(map(count, state.values() if isinstance(state, dict) else state))
    return state.numel() if torch.is_tensor(state) else 0


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_the_same_weights_as_one(results: Path, name: str) -> None:
    assert_same(results, name, "alone", 1e-6)
    ours, theirs = report(results, name)["rows"], report(results, "alone")["rows"]
    assert len(ours) == 5
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3), a
    latents = [torch.load(results / name / f"latents{rank}.pt") for rank in (0, 1)]
    assert torch.equal(latents[0], latents[1])
    torch.testing.assert_close(latents[0], torch.load(results / "alone/latents0.pt"))


@pytest.mark.parametrize("name", VARIANTS)
def test_an_iteration_reduces_each_networks_gradients_once(results: Path, name: str) -> None:
    """The count does not depend on the micro-batches; the rest are losses, norms and flags."""
    found = report(results, name)["traffic"]
    size = 4 * len(weights(results, name, "generator"))
    scalars = 200
    if name.startswith("fsdp2"):
        reduced = found.pop("c10d::_reduce_scatter_base_")
        gathered = found.pop("c10d::_allgather_base_")
        assert reduced == 2 * size
        # Per micro-batch: generator and fake score forward, fake score backward; then all three
        # networks forward and backward, including the two that are not trained.
        assert gathered == (3 + 6) * size * (2 if name.endswith("1") else 1)
    else:
        assert 0 <= found.pop("c10d::allreduce_") - 2 * size < scalars
    assert sum(found.values()) < scalars


@pytest.mark.parametrize("name", ["fsdp2, two steps", "fsdp2, two steps, lean"])
def test_fsdp2_works_with_several_steps_and_activation_checkpointing(
    results: Path, name: str
) -> None:
    """Gradients are reduced once for all network calls and micro-batches."""
    assert_same(results, name, "alone, two steps", 1e-6)
    size = 4 * len(weights(results, name, "generator"))
    assert report(results, name)["traffic"]["c10d::_reduce_scatter_base_"] == 2 * size


@pytest.mark.parametrize("strategy", WITH_REAL_IMAGES)
def test_real_images_are_spread_over_processes(results: Path, strategy: str) -> None:
    """Their forward pass is split too; the backward pass runs only through the encoder."""
    name = f"{strategy}, real images"
    assert_same(results, name, "alone, real images", 1e-6)
    size = 4 * len(weights(results, name, "generator"))
    traffic = report(results, name)["traffic"]
    reduced = traffic["c10d::_reduce_scatter_base_" if strategy == "fsdp2" else "c10d::allreduce_"]
    assert 0 <= reduced - 2 * size < 250
    first, second = report(results, name)["rows"], report(results, "alone, real images")["rows"]
    for a, b in zip(first, second, strict=True):
        assert "logit_real" in a
        assert a == pytest.approx(b, rel=1e-3), a


def test_fsdp2_gathers_bf16_and_keeps_float32(results: Path) -> None:
    found = report(results, "fsdp2, bf16")
    size = 4 * len(weights(results, "alone", "generator"))
    assert found["traffic"]["c10d::_allgather_base_"] == 9 * size / 2
    assert found["traffic"]["c10d::_reduce_scatter_base_"] == 2 * size
    assert_same(results, "fsdp2, bf16", "alone, short", 1e-3)
    for network in NETWORKS:
        ours = weights(results, "fsdp2, bf16", network)
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, ours.bfloat16().float())
    for a, b in zip(found["rows"], report(results, "alone, short")["rows"], strict=True):
        assert a["loss_fake"] == pytest.approx(b["loss_fake"], rel=0.02)
        assert a["loss_generator"] == pytest.approx(b["loss_generator"], rel=0.2)


def test_fsdp2_stores_half_on_each_process(results: Path) -> None:
    whole = report(results, "alone")["stored"]
    for size in (1, 2):
        halves = [report(results, f"fsdp2, micro-batch {size}", rank)["stored"] for rank in (0, 1)]
        for network, numbers in whole.items():
            both = [half[network] for half in halves]
            assert sum(both) == numbers
            assert max(both) < 0.51 * numbers


@pytest.mark.parametrize("strategy", ["ddp", "ddp_multi", "fsdp2"])
def test_the_export_is_the_same_as_from_one_process(results: Path, strategy: str) -> None:
    ours, theirs = (
        results / name / "generator" for name in (f"{strategy}, micro-batch 2", "alone")
    )
    files = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()} == files
    for file in files - {Path("unet/diffusion_pytorch_model.safetensors")}:
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    unet = load_file(ours / "unet/diffusion_pytorch_model.safetensors")
    for name, value in load_file(theirs / "unet/diffusion_pytorch_model.safetensors").items():
        torch.testing.assert_close(unet[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp_multi", "fsdp2"])
def test_bad_samples_on_one_rank_are_skipped_by_all(results: Path, strategy: str) -> None:
    """One sample of one rank in one phase, then all samples of the other rank in the other."""
    name = f"{strategy}, poisoned"
    assert_same(results, name, "alone, poisoned", 1e-6)
    for run in (name, "alone, poisoned"):
        rows = report(results, run)["rows"]
        assert [row["skipped_samples"] for row in rows] == [0, 0, 1, 2, 0]
        assert all(row["nonfinite_gradients"] == 0 for row in rows)
        (warning,) = [w for w in report(results, run)["warnings"] if "not finite" in w]
        assert f"Iteration 3: the loss of 1 sample(s) was not finite: {poisoned()[0]!r}." in warning
    assert not any("not finite" in w for w in report(results, name, rank=1)["warnings"])
    moved = weights(results, name, "generator") - weights(results, "alone", "generator")
    assert moved.abs().max() > 0  # samples were skipped


def test_a_run_continues_under_another_strategy(results: Path) -> None:
    """One process, fsdp2 on one and two, ddp_multi and fsdp2 continue as one process would.

    The checkpoints in between are a file, folders of one and two shards, a file and a file.
    """
    assert_same(results, "step 6", "whole", 1e-5)
    ours, theirs = (
        torch.load(results / run / "state.ckpt", weights_only=True) for run in ("step 6", "whole")
    )
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for a, b in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert a["param_groups"] == b["param_groups"]
        assert a["state"].keys() == b["state"].keys()
        for number, state in b["state"].items():
            for key, value in state.items():
                found = a["state"][number][key]
                assert type(found) is type(value)
                assert float((found - value).norm()) <= 1e-3 * float(value.norm()), (number, key)


def test_a_run_continues_with_other_micro_batches(results: Path) -> None:
    assert_same(results, "larger micro-batches", "whole", 1e-5)


def test_consolidated_shards_equal_the_file_of_one_process(results: Path, tmp_path: Path) -> None:
    shards, file, output = (
        results / "step 4/state.ckpt",
        results / "file/state.ckpt",
        tmp_path / "a",
    )
    assert sorted(path.name for path in shards.iterdir()) == [
        "manifest.json", "shard-00000-of-00002.ckpt", "shard-00001-of-00002.ckpt",
    ]  # fmt: skip
    assert sorted(path.name for path in shards.parent.iterdir()) == [
        "latents0.pt", "latents1.pt", "report0.json", "report1.json", "state.ckpt",
    ]  # fmt: skip
    numbers = [
        count(torch.load(path, weights_only=True)) for path in (*shards.glob("shard*"), file)
    ]
    assert max(numbers[:2]) < 0.51 * numbers[2]
    consolidate(str(shards), str(output))
    ours, theirs = (torch.load(path, weights_only=True) for path in (output, file))
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not same(ours[key], theirs[key])] == []


def test_a_run_continues_from_shards_as_from_a_file(results: Path) -> None:
    """The results are bitwise equal."""
    ours, theirs = (opened(results / f"from {which}/state.ckpt") for which in ("shards", "file"))
    for part in ("state_dict", "optimizer_states"):
        assert same(joined(ours[part]), joined(theirs[part])), part


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_two_gpus_train_the_same_weights_as_one(name: str, small_sd: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    run_job(tmp_path, small_sd, PROMPTS, 1, [SGD_RUN | {"name": "alone"}], "gpu")
    run_job(tmp_path, small_sd, PROMPTS, 2, [SGD_RUN | VARIANTS[name]], "gpu")
    assert_same(tmp_path, name, "alone", 1e-5)  # convolutions sum in another order


# ---------------------------------------------------------------------- 16-mixed


def half(small_sd: str, tmp_path: Path, scale: float | None) -> tuple[Any, list[dict[str, float]]]:
    """Train for two iterations, in float16 if a scale is set; works without a GPU."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    make = optimizer("SGD", {"lr": 1e-6})
    module = SiDLSG(small_sd, optimizer_fake=make, optimizer_generator=make)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0)
    rows = Rows()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=-1, logger=False, callbacks=[rows],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)] if scale else None,
        log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, PromptDataModule(str(prompts), batch_size=2, num_workers=0))
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    return torch.load(tmp_path / "state.ckpt", weights_only=True), rows.rows


def test_one_scaler_serves_both_optimizers(small_sd: str, tmp_path: Path) -> None:
    _, expected = half(small_sd, tmp_path, None)
    for scale in (16.0, 128.0):
        state, found = half(small_sd, tmp_path, scale)
        assert state["MixedPrecision"]["scale"] == scale
        for a, b in zip(found, expected, strict=True):
            assert a["loss_fake"] == pytest.approx(b["loss_fake"], rel=1e-3)
            assert a["grad_norm_fake"] == pytest.approx(b["grad_norm_fake"], rel=0.02)

    # A step that overflows is skipped for either optimizer, and halves the scale of both.
    state, found = half(small_sd, tmp_path, 2.0**60)
    assert state["MixedPrecision"]["scale"] == 2.0**56
    assert [row["nonfinite_gradients"] for row in found] == [1, 1]
    fresh = SiDLSG(small_sd).state_dict()
    assert same(dict(fresh), state["state_dict"])


# ---------------------------------------------------------------------- command line


TORCHRUN = [
    "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sid_lsg.cli",
]  # fmt: skip


def fit(
    small_sd: str, tmp_path: Path, *options: str, processes: int = 1, launcher: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Train in processes; return the networks of the final checkpoint and the final scores."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\ntwo dogs\na blue bird\nthe moon\nan old book\n")
    root = tmp_path / "run"
    command = [
        "fit", "--model.teacher", small_sd,
        "--data.prompts", str(prompts), "--data.batch_size", "4", "--data.num_workers", "0",
        # Adam with beta1 = 0 would turn the rounding of a tiny gradient into a whole step.
        "--model.optimizer_fake", "torch.optim.SGD", "--model.optimizer_fake.lr", "1e-4",
        "--model.optimizer_generator", "torch.optim.SGD", "--model.optimizer_generator.lr", "1e-4",
        "--trainer.accelerator", "cpu", "--trainer.max_steps", "3",
        "--trainer.log_every_n_steps", "1", "--progress.refresh_rate", "0",
        "--image_grid.every_n_steps", "0", "--trainer.default_root_dir", str(root),
        "--metrics.clip", "package:demo/fashion/clip", "--metrics.protocol", "clip",
        "--metrics.reference", "package:demo/fashion/reference.safetensors",
        "--metrics.num_images", "7", "--metrics.batch_size", "3", "--metrics.teacher_steps", "1",
        "--metrics.every_n_images", "8", "--health.every_n_images", "8", *options,
    ]  # fmt: skip
    if launcher:
        python = interpreter()
        run = subprocess.run(
            [python, *launcher, *command], capture_output=True, text=True, cwd=REPOSITORY,
            env=os.environ | {"PYTHON_EXEC": python}, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
    else:
        jobs = [([command], rank) for rank in forked.ranks(processes)]
        forked.all_end_well(main, jobs, tmp_path)
    saved = SafeCheckpointIO().load_checkpoint(root / "checkpoints/last.ckpt")
    assert saved["global_step"] == 3
    rows = (root / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3
    summary = json.loads((root / "summary.json").read_text())
    return saved["state_dict"] | {
        name: torch.tensor(value) for name, value in summary.items() if "_clip_7" in name
    }


@pytest.fixture(scope="module")
def command(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return fit(small_sd, tmp_path_factory.mktemp("command"))


@pytest.mark.parametrize(
    ("launcher", "options"),
    [([], ["ddp_multi"]), (TORCHRUN, ["fsdp2_sharded", "--image_grid.every_n_steps", "2"])],
    ids=["ddp_multi", "fsdp2 and image grids, started by torchrun"],
)
def test_two_processes_train_and_score_as_one(
    launcher: list[str],
    options: list[str],
    command: dict[str, Tensor],
    small_sd: str,
    tmp_path: Path,
) -> None:
    devices = ["--trainer.devices", "2", "--trainer.strategy"]
    together = fit(small_sd, tmp_path, *devices, *options, processes=2, launcher=launcher)
    assert together.keys() == command.keys()
    for network in ("fake_score", "generator", "ema"):
        names = [name for name in command if name.startswith(f"{network}.")]
        ours = torch.cat([together[name].flatten() for name in names])
        theirs = torch.cat([command[name].flatten() for name in names])
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6
    scores = [name for name in command if "_clip_7" in name]
    assert len(scores) == 3 * 7
    for name in scores:
        expected = pytest.approx(float(command[name]), rel=1e-3, abs=1e-6)
        assert float(together[name]) == expected, name


@pytest.mark.parametrize("strategy", [FSDP2Strategy, MultiNetDDPStrategy])
def test_processes_wait_for_a_file_without_a_collective(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL ends a collective after half an hour, and a large file may take longer."""
    met: list[Any] = []
    monkeypatch.setattr("sid_lsg.training.strategies.meet", lambda: met.append("meet"))
    for base in (ModelParallelStrategy, DDPStrategy):
        monkeypatch.setattr(base, "barrier", lambda _, name: met.append(name))
    for name in (WRITTEN, "another"):
        strategy().barrier(name)
    assert met == ["meet", "another"]


def waiting(rank: int, processes: int, folder: Path) -> None:
    """Meet twice; rank 0 is late, by more than the limit of a collective."""
    limit = timedelta(seconds=2)
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", where, limit, processes, rank)
    for number in range(2):
        if rank == 0:
            time.sleep(4)
            (folder / f"written {number}").touch()
        meet()
        assert (folder / f"written {number}").exists()


def test_processes_meet_however_late_one_is(tmp_path: Path) -> None:
    jobs = [((rank, 2, tmp_path), {}) for rank in range(2)]
    forked.all_end_well(waiting, jobs, tmp_path)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_checkpoint_without_room_is_announced_before_the_training(
    missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the weights, 4 bytes each, and at least one moment of each that is trained."""
    module = torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(13, 1))
    weights, trained = 60 + 14, 60
    room, warned = 4 * (weights + trained) - missing, list[str]()
    monkeypatch.setattr("sid_lsg.training.strategies.has_room", lambda size: size <= room)
    monkeypatch.setattr("sid_lsg.training.strategies.rank_zero_warn", warned.append)
    warn_if_no_room(module, [torch.optim.Adam(module[0].parameters())])
    assert len(warned) == missing
    assert all("fsdp2_sharded" in text for text in warned)
