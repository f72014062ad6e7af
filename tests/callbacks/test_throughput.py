"""Images per second and memory in the log."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sid_lsg.callbacks.throughput
from sid_lsg.callbacks import Throughput
from tests.helpers.callback_runs import Run, rows


def test_throughput_is_logged_with_the_losses(run: Run) -> None:
    losses = [row for row in rows(run) if row["loss_fake"]]
    assert all(float(row["images_per_s"]) > 0 for row in losses)
    assert all(0.05 < float(row["peak_memory_gib"]) < 100 for row in losses)


def test_throughput_counts_all_processes_and_only_iterations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        device=torch.device("cpu"), log=lambda name, value, **_: logged.update({name: value})
    )
    trainer: Any = SimpleNamespace(world_size=2, log_every_n_steps=2, global_step=0)
    batch = SimpleNamespace(fake=[*"abcdefgh"], generator=[*"abcd"])  # two steps of the fake score
    now = 0.0
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(sid_lsg.callbacks.throughput, "time", clock)
    throughput = Throughput()
    throughput.on_train_start(trainer, module)  # type: ignore[arg-type]
    for seconds in (1.0, 3.0, 0.5, 0.5):
        throughput.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
        now, trainer.global_step = now + seconds, trainer.global_step + 1
        throughput.on_train_batch_end(trainer, module, None, batch, 0)
        now += 100  # an evaluation
        if trainer.global_step == 2:
            assert logged["images_per_s"] == pytest.approx(2 * 4 * 2 / 4.0)
    assert logged["images_per_s"] == pytest.approx(2 * 4 * 2 / 1.0)
