"""The bytes of a run on each device, by what holds them."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import nn

from sid_lsg.costs.evaluation import Meter, call_cost
from sid_lsg.costs.plan import PlannedRun
from sid_lsg.distributed.sharding import blocks
from sid_lsg.networks.lora import trainable
from sid_lsg.training.optimizer_options import MakeOptimizer


def standing_bytes(run: PlannedRun) -> dict[str, int]:
    """Count what is there all the time.

    One network has gradients at a time. Of a sharded run each device holds a share of the UNets'
    weights, gradients and optimizers, and the text encoder and the VAE whole.
    DistributedDataParallel holds a copy of both networks' gradients.
    """
    plan, seen = run.plan, set[int]()
    parts = plan.devices if plan.sharded else 1
    networks = {
        "teacher": run.teacher.network,
        "fake score": run.fake_score,
        "generator": run.generator,
        "average (EMA)": run.ema,
    }
    found = {name: _stored([network], seen) // parts for name, network in networks.items()}
    if plan.ema_device:
        found["average (EMA)"] = 0
    others = [part for part in run.teacher.children() if part is not run.teacher.network]
    found["VAE, text encoder"] = _stored(others, seen)
    trained = [_numbers(trainable(network)) for network in (run.fake_score, run.generator)]
    found["gradients"] = 4 * max(trained) // parts
    held = [optimizer_bytes(make)[0] for make in (plan.optimizer_fake, plan.optimizer_generator)]
    found["optimizers"] = round(trained[0] * held[0] + trained[1] * held[1]) // parts
    if plan.devices > 1 and plan.strategy in ("auto", "ddp", "DDPStrategy"):
        found["copy of the gradients (ddp)"] = 4 * sum(trained)
    if plan.sharded:
        found["gathered blocks (fsdp2)"] = _gathered(run)
    return found


def _gathered(run: PlannedRun) -> int:
    """Count what FSDP2 gathers: two blocks' weights, and their whole gradients.

    The next block is on its way while one computes. With several micro-batches, or evaluations of
    a network, all of its gradients are whole until the last one.
    """
    plan, network = run.plan, run.fake_score
    two = sum(sorted(_numbers(block.parameters()) for block in blocks(network))[-2:])
    several = plan.share > plan.micro_batch_size or plan.num_steps > 1
    gradients = _numbers(trainable(network)) if several else two
    return (2 if plan.half else 4) * two + 4 * gradients


def passing_bytes(run: PlannedRun, micro_batch_size: int | None = None) -> dict[str, int]:
    """Count what comes and goes, at its most, by what needs it; one after the other.

    Args:
        run: The run.
        micro_batch_size: By default the plan's.
    """
    return _phase_bytes(run, micro_batch_size or run.plan.micro_batch_size) | _other_bytes(run)


def _phase_bytes(run: PlannedRun, size: int) -> dict[str, int]:
    """Count what the phases of a micro-batch of this size hold.

    Phase 1 holds the graph of the fake score. Phase 2 holds those of the generator and the teacher,
    unless they are computed again, and that of the fake score, which is the first to go; what is
    computed again has its graph when its turn comes, the teacher's before the generator's.
    """
    plan = run.plan
    fake_1, fake_2, real = (size * times for times in plan.kappas.evaluations)
    trained = run.evaluation("fake_score", "weights")
    fake, teacher = (run.evaluation(name, "inputs") for name in ("fake_score", "teacher"))
    generator = run.evaluation("generator", "weights" if plan.num_steps == 1 else "both")
    steps = plan.num_steps * generator.kept(size)
    held = steps if run.evaluated("generator") == 1 else 0
    beside = teacher.kept(real) if run.evaluated("teacher") == 1 else 0
    phase_2 = (
        held + beside + fake.peak(fake_2),
        held + teacher.peak(real),
        steps - generator.kept(size) + generator.peak(size),
    )
    phase_1 = trained.peak(fake_1 + size * plan.real_data)  # the real images' decoder as well
    return {"phase 1": phase_1, "phase 2": max(phase_2)}


@lru_cache(maxsize=1)
def _other_bytes(run: PlannedRun) -> dict[str, int]:
    """Count what does not depend on the micro-batch.

    Of text encoder and pictures, what exceeds the gradients: these are not there then.
    """
    plan, teacher = run.plan, run.teacher
    parts = plan.devices if plan.sharded else 1
    _, text = call_cost(lambda: run.encode(plan.share))
    steps = [
        optimizer_bytes(make)[1] * _numbers(trainable(network)) / parts
        for network, make in (
            (run.fake_score, plan.optimizer_fake),
            (run.generator, plan.optimizer_generator),
        )
    ]
    gradients = standing_bytes(run)["gradients"]
    found = {"text encoder": max(text - gradients, 0), "an optimizer's step": round(max(steps))}
    if plan.pictures:
        latents = torch.empty(plan.pictures, *teacher.latent_shape, device="meta")
        _, decoding = call_cost(lambda: teacher.decode(latents))  # sampling them takes less
        borrowed = _stored([run.ema], set()) if plan.ema_device else 0
        found[f"{plan.pictures} pictures"] = max(borrowed + decoding - gradients, 0)
    return found


def total_bytes(run: PlannedRun, micro_batch_size: int | None = None) -> int:
    """Count the most bytes on a device at a time."""
    return sum(standing_bytes(run).values()) + max(passing_bytes(run, micro_batch_size).values())


def largest_micro_batch(run: PlannedRun, capacity: float) -> int | None:
    """Find the largest micro-batch that fits into so many bytes and divides a device's share."""
    share, others = run.plan.share, max(_other_bytes(run).values())
    room = capacity - sum(standing_bytes(run).values())
    for size in (size for size in range(share, 0, -1) if share % size == 0):
        if max(others, *_phase_bytes(run, size).values()) <= room:
            return size
    return None


@lru_cache(maxsize=8)
def optimizer_bytes(make: MakeOptimizer) -> tuple[float, float]:
    """Measure an optimizer: bytes that it holds, and needs for a moment, per number it trains.

    Adam holds 8, two moments in float32, and its step on a CUDA device needs 4 more, unless it is
    fused. Any optimizer is measured so, on a small tensor; one that works in pieces needs less
    for a moment than that.
    """
    p = nn.Parameter(torch.zeros(1024, 1024))
    optimizer = make([p])
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True  # the default on CUDA devices
    p.grad = torch.ones_like(p)
    optimizer.step()  # which makes the states
    with Meter() as meter:
        optimizer.step()
    states = [s for s in optimizer.state[p].values() if torch.is_tensor(s) and s.numel() > 1]
    held = sum(s.untyped_storage().nbytes() for s in states)
    return held / p.numel(), meter.peak_of_all / p.numel()


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _stored(networks: Iterable[nn.Module], seen: set[int]) -> int:
    """Count the bytes of parameters and buffers that are not in `seen`, and add them to it."""
    size = 0
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            storage = tensor.untyped_storage()
            size += 0 if storage._cdata in seen else storage.nbytes()
            seen.add(storage._cdata)
    return size
