"""The memory of a run."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from sid_lsg.benchmark.runs import fit
from sid_lsg.costs.compute import iteration_flops
from sid_lsg.costs.memory import (
    largest_micro_batch,
    optimizer_bytes,
    passing_bytes,
    standing_bytes,
    total_bytes,
)
from sid_lsg.costs.plan import Plan, PlannedRun
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.lora import LoRA
from sid_lsg.options.text import Text, TextDevice
from sid_lsg.options.training import EMA, Adapters, Memory
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from sid_lsg.training.module import SiDLSG
from tests.helpers.counted_costs import GUIDED, allocations


class Iteration(L.Callback):
    """Record what the second iteration allocates."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            self._measuring = allocations()
            self.found = self._measuring.__enter__()

    def on_before_optimizer_step(self, trainer: Any, module: Any, _: Any) -> None:
        self.gradients = max(
            getattr(self, "gradients", 0),
            sizes(*(p.grad for p in module.parameters() if p.grad is not None)),
        )

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            self._measuring.__exit__(None, None, None)
            self.found["gradients"] = self.gradients


@pytest.fixture
def trained(tiny_sd: str) -> Callable[..., tuple[SiDLSG, dict[str, int]]]:
    """Return a function that runs two iterations and returns the module and its allocations."""

    def run(**options: Any) -> tuple[SiDLSG, dict[str, int]]:
        module, iteration = SiDLSG(tiny_sd, **options), Iteration()
        fit(module, 32, 2, [iteration], accelerator="cpu")
        return module, iteration.found

    return run


def sizes(*tensors: torch.Tensor) -> int:
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "options"),
    [
        (Guidance("lsg", 1.5), {}),
        (Guidance("lsg", 1.5), {"memory": Memory("balanced")}),
        (Guidance("lsg", 1.5), {"memory": Memory("lean")}),
        (Guidance("none"), {"num_steps": 2, "memory": Memory(checkpointing=["generator"])}),
        (Guidance("long"), {"lora": Adapters(generator=LoRA(4))}),
        (
            Guidance("long"),
            {"lora": Adapters(generator=LoRA(4)), "memory": Memory(frozen_precision="bf16")},
        ),
    ],
)
def test_a_run_allocates_the_predicted_bytes(
    plan: Callable[..., PlannedRun],
    trained: Callable[..., tuple[SiDLSG, dict[str, int]]],
    guidance: Guidance,
    options: dict[str, Any],
) -> None:
    """Weights, gradients and optimizer states match to the byte, temporary memory within 10 %."""
    module, found = trained(guidance=guidance, micro_batch_size=16, **options)
    run = plan(kappas=guidance.kappas, micro_batch_size=16, **options)
    standing = standing_bytes(run)

    weights = ("teacher", "fake score", "generator", "EMA", "VAE, text encoder")
    networks = (module.teacher, module.fake_score, module.generator, module.ema)
    tensors = [t for net in networks for t in (*net.parameters(), *net.buffers())]
    assert sum(standing[name] for name in weights) == sizes(*tensors)
    assert standing["gradients"] == found["gradients"]
    states = [s for o in module.trainer.optimizers for p in o.state.values() for s in p.values()]
    assert standing["optimizers"] == sizes(*(s for s in states if s.numel() > 1))

    # Gradients are freed after each step and so are allocated in every iteration too.
    most = standing["gradients"] + max(passing_bytes(run).values())
    if run.plan.frozen_half:  # autocast on the CPU keeps norms in 16 bits, so it stores less
        assert 0.7 * most < found["peak"] < most
    else:
        assert found["peak"] == pytest.approx(most, rel=0.1)


@pytest.mark.slow
def test_each_mode_saves_the_activations_of_one_network(plan: Callable[..., PlannedRun]) -> None:
    fast, balanced, lean = (
        passing_bytes(plan(memory=Memory(mode)))["phase 2"] for mode in ("fast", "balanced", "lean")
    )
    teacher = plan().evaluation("teacher", "inputs").kept(8)
    generator = plan().evaluation("generator", "weights").kept(4)
    assert fast - balanced == teacher
    assert balanced - lean == generator
    assert lean < 0.6 * fast
    assert passing_bytes(plan(objective="dmd"))["phase 2"] < lean


def test_sharding_divides_trained_weights(plan: Callable[..., PlannedRun]) -> None:
    whole, sharded, copied = (
        standing_bytes(plan(strategy=name, devices=8)) for name in ("ddp_multi", "fsdp2", "ddp")
    )
    for name in ("teacher", "generator", "gradients", "optimizers"):
        assert sharded[name] == pytest.approx(whole[name] / 8, abs=8)
    assert sharded["VAE, text encoder"] == whole["VAE, text encoder"]
    assert copied["copy of the gradients (ddp)"] == 2 * whole["gradients"]


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_multi", "fsdp2", "fsdp2_sharded"])
@pytest.mark.parametrize("frozen", ["32", "bf16"])
def test_networks_with_adapters_share_one_base(
    plan: Callable[..., PlannedRun], strategy: str, frozen: Any
) -> None:
    """Sharding divides the base; each device holds all adapters with what trains them."""
    lora, devices = Adapters(LoRA(4), LoRA(2)), 1 if strategy == "auto" else 8
    options = {"lora": lora, "memory": Memory(frozen_precision=frozen)}
    whole, own = (
        standing_bytes(plan()),
        standing_bytes(plan(strategy=strategy, devices=devices, **options)),
    )
    base = whole["teacher"] / (devices if "fsdp2" in strategy else 1)
    if frozen == "32":
        assert own["teacher"] == pytest.approx(base, abs=8)
    else:
        assert 0.5 * base < own["teacher"] < 0.6 * base
    run = plan(**options)
    sizes = [
        4 * sum(p.numel() for p in net.parameters()) for net in (run.fake_score, run.generator)
    ]
    assert sizes[0] == 2 * sizes[1] < 0.1 * whole["teacher"]
    assert [own[name] for name in ("fake score", "generator", "EMA")] == [*sizes, sizes[1]]
    assert own["gradients"] == sizes[0]
    assert own["optimizers"] == sum(sizes)  # Adam without the first moment
    assert own.get("copy of the gradients (ddp)", 0) == (sum(sizes) if strategy == "ddp" else 0)
    gathered = own.get("gathered blocks (fsdp2)", 0)
    assert gathered < whole["teacher"]
    assert bool(gathered) == ("fsdp2" in strategy)


def test_the_largest_micro_batch_fits_and_divides(plan: Callable[..., PlannedRun]) -> None:
    run = plan()
    room = total_bytes(run, 8)
    assert largest_micro_batch(run, room) == 8
    assert largest_micro_batch(run, room - 1) == 4
    assert largest_micro_batch(run, 1e6) is None


def test_image_decoding_counts_without_gradients(plan: Callable[..., PlannedRun]) -> None:
    few, many, elsewhere = (
        passing_bytes(plan(images_at_once=n, ema=EMA(device=device)))[f"{n} images"]
        for n, device in ((1, None), (64, None), (64, "cpu"))
    )
    standing = standing_bytes(plan())
    assert few == 0
    decoding = (many + standing["gradients"]) / 64
    assert 3 * 4 * 64**2 < decoding < 100 * 4 * 64**2
    assert elsewhere - many == standing["EMA"]


@pytest.mark.parametrize("device", ["cpu", "drop"])
def test_text_encoders_elsewhere_take_no_memory(
    plan: Callable[..., PlannedRun], device: TextDevice
) -> None:
    run, usual = plan(text=Text(device=device)), plan()
    name = "VAE, text encoder"
    text = sum(p.nbytes for part in run.teacher.text_parts.values() for p in part.parameters())
    saved = standing_bytes(usual)[name] - standing_bytes(run)[name]
    assert text <= saved < 1.01 * text
    assert "text encoder" not in passing_bytes(run)
    assert iteration_flops(run)["text encoder"] == 0  # on the device


def test_optimizer_states_are_measured() -> None:
    adam, sgd = torch.optim.Adam, torch.optim.SGD
    assert optimizer_bytes(adam) == (8, 4)
    assert optimizer_bytes(lambda p: adam(p, fused=True))[0] == 8
    assert optimizer_bytes(lambda p: adam(p, fused=True))[1] < 0.1
    assert optimizer_bytes(lambda p: sgd(p, lr=1e-6))[0] == 0
    assert optimizer_bytes(lambda p: sgd(p, lr=1e-6, momentum=0.9))[0] == 4


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_cuda_device_allocates_the_predicted_bytes(precision: str) -> None:
    module = SiDLSG("architecture:sd15-small", resolution=512, micro_batch_size=8)
    torch.cuda.reset_peak_memory_stats()
    fit(module, 16, 2, [], accelerator="gpu", precision=precision)
    options = {"batch_size": 16, "micro_batch_size": 8, "precision": precision}
    run = PlannedRun(Plan(GUIDED, **options), StableDiffusion.build("sd15-small", "meta", 512))
    assert torch.cuda.max_memory_allocated() == pytest.approx(total_bytes(run), rel=0.1)
