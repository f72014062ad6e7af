"""The settings of `benchmark`; each name stands for several options."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sid_lsg.benchmark.report import markdown
from sid_lsg.benchmark.settings import Setting
from sid_lsg.commands.benchmark import benchmark
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import MemoryUse

ALL = ["fake_score", "generator", "teacher"]


@pytest.mark.parametrize(
    ("precision", "own", "trainer", "dtype", "changes"),
    [
        ("fp32", "bf16-mixed", "32-true", torch.float32, {"compute.tf32": False}),
        ("tf32", "bf16-mixed", "32-true", torch.float32, {"compute.tf32": True}),
        ("bf16", "32-true", "bf16-mixed", torch.bfloat16, {}),
        ("bf16-compile", "32-true", "bf16-mixed", torch.bfloat16, {"compute.compile": True}),
        ("config", "16-mixed", "16-mixed", torch.float16, {}),
        ("config", "32-true", "32-true", torch.float32, {}),
    ],
)
def test_precisions(
    precision: Any, own: str, trainer: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    setting = Setting(precision, "config", own)
    assert (setting.trainer_precision, setting.dtype) == (trainer, dtype)
    assert setting.changes == changes
    assert setting.name == precision


@pytest.mark.parametrize("memory", get_args(MemoryUse))
def test_memories(memory: MemoryUse) -> None:
    setting = Setting("bf16", memory, "32-true")
    if memory == "config":
        assert (setting.name, setting.changes) == ("bf16", {})
        return
    assert setting.name == f"bf16, {memory}"
    networks = ALL if memory.endswith("-checkpointing") else None
    kept = memory.removesuffix("-checkpointing")
    assert setting.changes == {"memory.activations": kept, "memory.checkpointing": networks}


@pytest.mark.slow
def test_each_memory_is_measured(
    small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Activations decrease in the known order; weights have the same size."""
    memories = ["fast", "balanced", "lean", "lean-checkpointing"]
    output = tmp_path / "numbers.json"
    benchmark(
        f"--model.teacher {small_sd} --trainer.accelerator cpu --benchmark.output {output} "
        "--benchmark.iterations 1 --benchmark.warmup 1 --benchmark.micro_batches [2] "
        "--model.guidance.scale 1.5 --model.memory.checkpointing [teacher] "
        f"--benchmark.memories {json.dumps(memories).replace(' ', '')}".split()
    )
    result = json.loads(output.read_text())
    rows = result["settings"]
    assert [row["memory"] for row in rows] == memories
    assert result["does_not_fit"] == []
    held = [row["memory_bytes"]["activations"] for row in rows]
    assert held == sorted(held, reverse=True)
    assert held[2] < 0.6 * held[0]
    work = [row["flops"] for row in rows]
    assert work == sorted(work)
    assert len({row["memory_bytes"]["weights"] for row in rows}) == 1
    printed = capsys.readouterr().out
    assert f"## config, {memories[3]}, micro-batch 2, batch 2" in printed


@pytest.mark.slow
def test_configurations_that_do_not_fit_are_kept(
    small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("sid_lsg.benchmark.sweep.measure", too_large)
    output = tmp_path / "numbers.json"
    benchmark(
        f"--model.teacher {small_sd} --trainer.accelerator cpu --benchmark.output {output} "
        "--benchmark.precisions [fp32] --benchmark.memories [config,lean] "
        "--benchmark.micro_batches [4096]".split()
    )
    result = json.loads(output.read_text())
    assert result["settings"] == []
    assert result["does_not_fit"] == ["fp32, micro-batch 4096", "fp32, lean, micro-batch 4096"]
    written = output.with_suffix(".md").read_text()
    assert written == markdown(result)
    assert "## Does not fit\n\n- fp32, micro-batch 4096\n- fp32, lean" in written


def test_errors() -> None:
    with pytest.raises(UsageError, match=r"--benchmark.memories must be a list of memory options"):
        benchmark(["--model.teacher", "package:demo/fashion", "--benchmark.memories", "[]"])
    with pytest.raises(SystemExit):
        benchmark(["--model.teacher", "package:demo/fashion", "--benchmark.memories", "[thin]"])
