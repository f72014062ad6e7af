"""The benchmark command: its measurements add up and are saved."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from sid_lsg.benchmark.baseline import Baseline
from sid_lsg.benchmark.machine import clock, describe, matmul_ceiling, threads
from sid_lsg.benchmark.operators import kind_of, waiting
from sid_lsg.benchmark.report import markdown
from sid_lsg.benchmark.runs import fit, measure, peak_bytes
from sid_lsg.benchmark.search import largest, without_memory_error
from sid_lsg.commands.benchmark import benchmark
from sid_lsg.costs.allocations import Allocations
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.guidance import Guidance
from sid_lsg.training.module import SiDLSG
from tests.helpers.paths import REPOSITORY


@pytest.fixture(scope="module")
def measured(tiny_sd: str) -> dict[str, Any]:
    module = SiDLSG(tiny_sd, guidance=Guidance(scale=2.0), micro_batch_size=2)
    return measure(module, 4, 2, 1, accelerator="cpu") | {"module": module}


@pytest.mark.slow
def test_parts(measured: dict[str, Any]) -> None:
    parts = measured["parts_seconds"]
    assert {"generator", "fake score", "backward", "text", "draws", "optimizer"} <= set(
        parts["fake score"]
    )
    assert set(parts["generator"]) == {*parts["fake score"], "teacher"}
    assert parts["iteration"]["EMA"] > 0
    assert measured["images_per_s"] == pytest.approx(4 / measured["seconds"]["median"])
    whole = sum(value for phase in parts.values() for value in phase.values())
    # the parts add up to the iteration, even on a busy machine
    assert 0.3 < whole / measured["seconds"]["median"] < 3


@pytest.mark.slow
def test_flops(measured: dict[str, Any]) -> None:
    """18 evaluations of the UNet with guidance; the attention's backward pass recomputes some."""
    fake, generator = (measured["parts_flops"][name] for name in ("fake score", "generator"))
    one = fake["generator"]
    assert fake["fake score"] == generator["fake score"] == generator["teacher"] == 2 * one
    assert generator["generator"] == one
    assert 3.5 * one < fake["backward"] < 4.5 * one
    assert 5.5 * one < generator["backward"] < 7 * one
    assert measured["flops"] == sum(sum(parts.values()) for parts in (fake, generator))


@pytest.mark.slow
def test_operators(measured: dict[str, Any]) -> None:
    """The operator kinds contain all FLOPs, and on a CPU most of the time."""
    kinds = measured["operators"]
    products = ("convolutions", "matrix products", "attention")
    assert all(kinds[kind]["flops"] > 0 for kind in products)
    assert sum(kinds[kind]["flops"] for kind in products) == measured["flops"]
    assert sum(kind["flops"] for kind in kinds.values()) == measured["flops"]
    outside = kinds["Python and launches"]["seconds"]
    assert 0 < outside < sum(kind["seconds"] for kind in kinds.values()) / 2
    assert kinds["convolutions"]["calls"] > 100


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::convolution_backward", "convolutions"),
        ("aten.convolution_backward", "convolutions"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::addmm", "matrix products"),
        ("aten.bmm", "matrix products"),
        ("aten::mkldnn_linear", "matrix products"),
        ("aten::native_group_norm_backward", "group and layer norms"),
        ("triton_poi_fused_add_silu_3", "compiled by torch.compile"),
        ("triton_red_fused__to_copy_convolution_native_group_norm_7", "compiled by torch.compile"),
        ("triton_poi_fused__scaled_dot_product_attention_3", "compiled by torch.compile"),
        ("aten::_fused_adam_", "optimizers, EMA, repair"),
        ("aten::_foreach_norm", "optimizers, EMA, repair"),
        ("aten::copy_", "copies"),
        ("aten::cat", "copies"),
        ("aten::mul", "elementwise and other"),
        ("aten::_softmax", "elementwise and other"),
    ],
)
def test_kinds_of_operators(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_waiting_time_excludes_the_profilers_overhead() -> None:
    kernels = {"convolutions": {"seconds": 0.5, "calls": 3.0}}
    profiled = kernels | {"the device waits": {"seconds": 2.0, "calls": 0.0}}
    assert waiting(profiled, 0.75)["the device waits"]["seconds"] == 0.25
    assert waiting(profiled, 0.4)["the device waits"]["seconds"] == 0
    assert waiting(profiled, 0.75)["convolutions"] == kernels["convolutions"]
    on_cpu = kernels | {"Python and launches": {"seconds": 2.0, "calls": 0.0}}
    assert waiting(on_cpu, 0.75) == on_cpu


@pytest.mark.slow
def test_memory_by_category(measured: dict[str, Any]) -> None:
    memory, module = measured["memory_bytes"], measured["module"]
    size = sum(p.numel() for p in module.generator.parameters()) * 4
    frozen = sum(p.numel() for p in module.teacher.parameters()) * 4
    count = len([*module.generator.parameters()])
    assert memory["weights"] == frozen + 2 * size
    # Only one network has gradients at a time. Some have spare room.
    assert memory["gradients"] == pytest.approx(size, rel=1e-3)
    assert memory["EMA"] == size
    assert memory["optimizer"] == 2 * (size + count * 4)  # no first moment
    assert memory["activations"] > size
    kept = sum(memory[name] for name in ("weights", "EMA", "optimizer"))
    assert kept + memory["activations"] < memory["all"] <= sum(memory.values()) - memory["all"]


@pytest.mark.slow
def test_activations_are_measured_for_one_micro_batch(
    tiny_sd: str, measured: dict[str, Any]
) -> None:
    module = SiDLSG(tiny_sd, guidance=Guidance(scale=2.0))
    whole = measure(module, 4, 1, 1, accelerator="cpu")["memory_bytes"]["activations"]
    assert 1.7 < whole / measured["memory_bytes"]["activations"] < 2.1


@pytest.mark.slow
def test_memory_agrees_with_the_profiler(small_sd: str) -> None:
    """PyTorch's profiler sees every allocation on a CPU. Compare the peaks above the start."""

    class Profiled(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
                self.profile.__enter__()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                self.profile.__exit__(None, None, None)

    profiled = Profiled()
    module = SiDLSG(small_sd, guidance=Guidance(scale=2.0))
    fit(module, 4, 2, [profiled], accelerator="cpu")
    kineto = profiled.profile.profiler.kineto_results
    pending, events = list(kineto.experimental_event_tree()), []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    live = peak = 0
    for _, size in sorted(events):
        live += size
        peak = max(peak, live)

    fresh = SiDLSG(small_sd, guidance=Guidance(scale=2.0))
    counted = peak_bytes(fresh, 4, accelerator="cpu")
    networks = [fresh.teacher, fresh.fake_score, fresh.generator, fresh.ema]
    kept = sum(p.numel() * 4 for network in networks for p in network.parameters())
    kept += 2 * sum(p.numel() * 4 + 4 for p in fresh.generator.parameters())  # Adam's
    assert counted - kept == pytest.approx(peak, rel=0.1)


def test_allocations() -> None:
    with Allocations() as allocations:
        x = torch.zeros(1000)
        y = x.view(10, 100)  # a view allocates no memory
        z = y + 1
        assert allocations.live["activations"] == 8000
        allocations.note(z, "gradients")
        assert allocations.live == {"activations": 4000, "gradients": 4000}
        del x
        assert allocations.live["activations"] == 4000  # y still uses it
        del y, z
    assert set(allocations.live.values()) == {0}
    assert allocations.peak_of_all == 8000


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 100])
def test_largest(size: int) -> None:
    tried: list[int] = []
    assert largest(lambda n: tried.append(n) or n <= size) == size  # type: ignore[func-returns-value]
    assert len(tried) == len(set(tried)) < 16
    assert largest(lambda _: True, limit=5) == 5


def test_only_out_of_memory_errors_mean_that_it_does_not_fit() -> None:
    def fail(error: Exception) -> None:
        raise error

    for said in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("backend='inductor' raised: OutOfMemoryError: CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert not without_memory_error(partial(fail, said))
    with pytest.raises(RuntimeError, match="must match"):
        without_memory_error(partial(fail, RuntimeError("The sizes of tensors must match.")))
    assert without_memory_error(lambda: None)
    with pytest.raises(ZeroDivisionError):
        without_memory_error(lambda: 1 / 0)


def test_machine() -> None:
    with threads(1):
        about = describe(torch.device("cpu"))
        assert about["threads"] == 1
        assert about["device"]
        assert matmul_ceiling(torch.device("cpu"), torch.float32, 0.01) > 1e8
        now = clock(torch.device("cpu"))
        assert now() <= now()


COMPARED = ("--benchmark.compare_official", "true")


def run(small_sd: str, output: Path, *options: str, iterations: int = 2) -> dict[str, Any]:
    common = f"--model.teacher {small_sd} --trainer.accelerator cpu --benchmark.output {output}"
    counts = f"--benchmark.iterations {iterations} --benchmark.warmup 1"
    benchmark([*options, *common.split(), *counts.split()])
    result: dict[str, Any] = json.loads(output.read_text())
    return result


@pytest.mark.slow
def test_command(tiny_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measure two micro-batch sizes and the largest that fits, with a config of `fit`."""
    result = run(
        tiny_sd,
        tmp_path / "made" / "numbers.json",
        *("--config", "configs/lsg.yaml", "--model.resolution", "null"),
        *("--benchmark.micro_batches", "[1, 2]", "--benchmark.memory_limit", "0.0145"),
        *("--benchmark.precisions", "[fp32]"),
    )
    one, two = result["settings"]
    assert [row["micro_batch_size"] for row in (one, two)] == [1, 2]
    assert two["flops"] == pytest.approx(2 * one["flops"], rel=0.01)
    for row in (one, two):
        assert row["share_of_ceiling"] == row["flops_per_s"] / row["ceiling_flops_per_s"]
        assert 0 < row["share_of_ceiling"] < 2
    size = result["largest_micro_batch"]["fp32"]
    assert size == 2
    printed, progress = capsys.readouterr()
    assert (tmp_path / "made" / "numbers.md").read_text() in printed + "\n"
    assert f"- fp32: {size}" in printed
    for shown in ("measuring, micro-batch 1", "measuring, micro-batch 2", "trying, micro-batch 4"):
        assert f"{shown}: " in progress


@pytest.mark.slow
def test_interrupted_measurements_are_saved(
    small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter((measure, stop))
    monkeypatch.setattr("sid_lsg.benchmark.sweep.measure", lambda *a, **k: next(measured)(*a, **k))
    output = tmp_path / "numbers.json"
    with pytest.raises(KeyboardInterrupt):
        run(small_sd, output, "--benchmark.micro_batches", "[1, 2]")
    (row,) = json.loads(output.read_text())["settings"]
    assert row["micro_batch_size"] == 1
    assert f"{row['images_per_s']:.3g}" in output.with_suffix(".md").read_text()


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_compare(small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--benchmark.compare_official", "true", "--data.batch_size", "2")
    comparison = run(small_sd, tmp_path / "numbers.json", *options)["comparison"]
    assert len(comparison["iterations"]) == 4
    for seconds in comparison["iterations"].values():
        assert len(seconds["values"]) == 2
    own, theirs = (comparison["iterations"][name] for name in ("ours", "baseline"))
    assert comparison["ratio"]["median"] == pytest.approx(theirs["median"] / own["median"])
    printed, progress = capsys.readouterr()
    assert "Ratio without garbage collection" in printed
    assert "taking turns: " in progress


@pytest.mark.slow
def test_interrupted_turns_are_saved(
    small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(range(4))
    iteration = Baseline.iteration

    def stopped(self: Baseline, *args: Any) -> None:
        if self.collect and next(turns) == 3:
            raise ZeroDivisionError
        iteration(self, *args)

    monkeypatch.setattr(Baseline, "iteration", stopped)
    output = tmp_path / "numbers.json"
    with pytest.raises(ZeroDivisionError):
        run(small_sd, output, *COMPARED, "--data.batch_size", "2", iterations=9)
    result = json.loads(output.read_text())
    comparison = result["comparison"]
    assert result["iterations"] == 2
    assert {len(seconds["values"]) for seconds in comparison["iterations"].values()} == {2}
    assert "Ratio: " in output.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("name", "compiled"), [("cpu", "false"), ("xeon", "false"), ("xeon_compile", "true")]
)
def test_the_stored_comparisons_state_their_settings(name: str, compiled: str) -> None:
    stored = REPOSITORY / f"results/benchmarks/comparison_tiny_{name}.json"
    written = markdown(json.loads(stored.read_text()))
    assert written == stored.with_suffix(".md").read_text()
    assert f"- `--model.micro_batch_size null`\n- `--model.compute.compile {compiled}`\n" in written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.accelerator", "tpuu"], "--trainer.accelerator tpuu: `benchmark` finds"),
        (["--data.batch_size", "0"], "--data.batch_size is 0; it must be 1 or more"),
        (["--data.batch_size", "5", "--model.micro_batch_size", "2"], "2 does not divide the 5"),
        (["--trainer.gradient_clip_val", "1"], "--trainer.gradient_clip_val"),
        (["--benchmark.iterations", "0"], "--benchmark.iterations must be at least 1, got 0"),
        (["--benchmark.micro_batches", "[0]"], "--benchmark.micro_batches must be"),
        (["--benchmark.precisions", "[]"], "--benchmark.precisions must be"),
        (["--benchmark.output", "x.txt"], "--benchmark.output must be the name of a .json"),
        (["--benchmark.memory_limit", "-1"], "--benchmark.memory_limit must be"),
        ([*COMPARED, "--model.num_steps", "2"], "--model.num_steps: .* has nothing like it"),
        ([*COMPARED, "--model.guidance.eval_fake", "[1, 2]"], "--model.guidance.eval_fake: an"),
        (
            [*COMPARED, "--model.memory.frozen_precision", "bf16"],
            "--model.memory.frozen_precision: an",
        ),
        ([*COMPARED, "--model.lora.generator.rank", "4"], "--model.lora.generator: an"),
    ],
)
@pytest.mark.slow
def test_errors(small_sd: str, options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        benchmark(["--model.teacher", small_sd, *options])


def test_unwritable_output(small_sd: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--benchmark.output: cannot write"):
        run(small_sd, tmp_path / "file" / "numbers.json")
