"""The operations of an iteration on the device: their number, and the waits for them.

A loop over samples would make the number of operations grow with the batch; reading a value on the
host lets a GPU's queue run dry.
"""

import warnings
from typing import Any

import lightning as L
import pytest
import torch

from sid_lsg.benchmark.baseline import Baseline
from sid_lsg.benchmark.runs import fit
from sid_lsg.method.guidance import Kappas
from sid_lsg.options.guidance import Guidance
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from sid_lsg.training.module import SiDLSG
from tests.helpers.operations import Operations, step_counters

# One per phase: whether there is a bad sample, which decides what is computed next. It is sent to
# the host before the phase's last backward pass.
SENT_PER_ITERATION = 2


class Watch(L.Callback):
    """Count the operations of a step in the given iterations."""

    def __init__(self, *iterations: int) -> None:
        self.iterations, self.rows = iterations, {}  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in self.iterations:
            self.rows[trainer.global_step] = Operations(step_counters(trainer.optimizers))
            self.rows[trainer.global_step].__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step - 1 in self.rows:
            self.rows[trainer.global_step - 1].__exit__(None, None, None)


def watched(tiny_sd: str, batch: int, *iterations: int, **options: Any) -> dict[int, Operations]:
    watch = Watch(*iterations)
    module = SiDLSG(tiny_sd, guidance=Guidance(scale=2.0), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, batch, max(iterations) + 1, [watch], accelerator="cpu")
    return watch.rows


@pytest.mark.slow
def test_operations_do_not_grow_with_the_batch(tiny_sd: str) -> None:
    small, medium, large = (watched(tiny_sd, batch, 1)[1].count for batch in (2, 4, 8))
    assert small.total() > 1000
    assert small == medium == large


@pytest.mark.slow
def test_operations_grow_only_with_the_number_of_micro_batches(tiny_sd: str) -> None:
    """Each micro-batch needs the same operations at any size; the counter sees repeated ones."""
    one, two = (watched(tiny_sd, 4, 1, micro_batch_size=size)[1].count for size in (4, 2))
    assert one["convolution"] * 2 == two["convolution"]
    assert one["convolution_backward"] * 2 == two["convolution_backward"]


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.slow
def test_the_host_does_not_wait_for_an_idle_device(tiny_sd: str, size: int) -> None:
    """Every value that an iteration reads, even with logging, was sent before a backward pass."""
    for row in watched(tiny_sd, 4, 1, 9, micro_batch_size=size).values():
        assert row.reads == 0
        order = [name for name in row.order if name in ("sent", "read", "convolution_backward")]
        assert order.count("sent") == SENT_PER_ITERATION
        backward = order.count("convolution_backward")
        while "sent" in order:
            sent, read = order.index("sent"), order.index("read")
            assert read - sent > backward / 8
            order = order[read + 1 :]


@pytest.mark.gpu
def test_training_never_waits_for_a_cuda_device(tiny_sd: str) -> None:
    class Strict(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if trainer.global_step > 1 else "default")

        def on_train_batch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    module = SiDLSG(tiny_sd, guidance=Guidance(scale=2.0))
    fit(module, 4, 4, [Strict()], accelerator="gpu")


@pytest.mark.slow
def test_the_counter_sees_loops_and_reads(tiny_sd: str) -> None:
    """The baseline has a loop over samples that reads values; the counts must show both."""
    baseline = Baseline(StableDiffusion.from_pretrained(tiny_sd), Kappas(2.0, 2.0, 2.0, 2.0))
    baseline.iteration(["a cat"], ["a dog"])  # creates the optimizer states
    counts = []
    for batch in (2, 4):
        with Operations() as operations:
            baseline.iteration(["a cat"] * batch, ["a dog"] * batch)
        counts.append(operations)
    assert counts[0].count.total() < counts[1].count.total()
    assert 0 < counts[0].reads < counts[1].reads
