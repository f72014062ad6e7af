"""Bytes of a run on each device, by part."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
from torch import nn
from transformers import PreTrainedModel

from sid_lsg.costs.evaluation import Meter, call_cost
from sid_lsg.costs.plan import PlannedRun
from sid_lsg.distributed.sharding import blocks
from sid_lsg.method.post_hoc_ema import WIDTHS
from sid_lsg.networks.adapted import Adapted
from sid_lsg.teachers.precision import backbone
from sid_lsg.teachers.remembered import AT_ONCE
from sid_lsg.training.optimizer_options import MakeOptimizer


@lru_cache(maxsize=1)
def standing_bytes(run: PlannedRun) -> dict[str, int]:
    """Count the bytes that are held during the whole run.

    One network has gradients at a time. In a sharded run each device holds a shard of the networks'
    weights, gradients and optimizer states, and all of the adapters, the text encoder and the VAE.
    Networks with adapters share one base. DistributedDataParallel holds a copy of both networks'
    gradients.
    """
    plan, seen = run.plan, set[int]()
    parts = plan.devices if plan.sharded else 1
    networks = {
        "teacher": run.teacher.network,
        "fake score": run.fake_score,
        "generator": run.generator,
        "EMA": run.ema,
    }
    found = {
        name: _stored([backbone(network)], seen, parts) + _stored([network], seen)  # adapters
        for name, network in networks.items()
    }
    if plan.ema.snapshot_images:
        found["EMA"] *= 1 + len(WIDTHS)
    if plan.ema.device:
        found["EMA"] = 0
    others = [part for part in run.teacher.children() if part is not run.teacher.network]
    found["VAE, text encoder"] = _stored(others, seen)
    if plan.text.device is None:
        found["VAE, text encoder"] -= _rounded_off(run)
    trained = [_trained(run, network) for network in (run.fake_score, run.generator)]
    found["gradients"] = 4 * max(trained)
    held = [optimizer_bytes(make)[0] for make in (plan.optimizer_fake, plan.optimizer_generator)]
    found["optimizers"] = round(trained[0] * held[0] + trained[1] * held[1])
    if plan.devices > 1 and plan.strategy in ("auto", "ddp", "DDPStrategy"):
        found["copy of the gradients (ddp)"] = 4 * sum(trained)
    if plan.sharded:
        found["gathered blocks (fsdp2)"] = _gathered(run)
    return found


def _gathered(run: PlannedRun) -> int:
    """Count the bytes that FSDP2 gathers: two blocks' weights and their unsharded gradients.

    FSDP2 prefetches the next block while one computes. With several micro-batches or generator
    steps, all gradients of the network stay unsharded until the last backward pass.
    """
    plan, size = run.plan, 2 if run.plan.half else 4
    base = backbone(run.fake_score)
    two = sorted(_numbers(block.parameters()) for block in blocks(base))[-2:]
    trained = [n for n in (run.fake_score, run.generator) if not isinstance(n, Adapted)]
    if not trained:
        stored = _stored(sorted(blocks(base), key=lambda b: _numbers(b.parameters()))[-2:], set())
        return min(stored, size * sum(two))
    several = plan.share > plan.micro_batch_size or run.steps_with_gradient > 1
    gradients = _numbers(trained[0].parameters()) if several else sum(two)
    return size * sum(two) + 4 * gradients


def _trained(run: PlannedRun, network: nn.Module) -> int:
    """Count the trained numbers of a network that each device holds."""
    sharded = run.plan.sharded and not isinstance(network, Adapted)
    return _numbers(network.parameters()) // (run.plan.devices if sharded else 1)


def passing_bytes(run: PlannedRun, micro_batch_size: int | None = None) -> dict[str, int]:
    """Count the peak bytes of each part of an iteration; the parts run one after the other.

    Args:
        run: The run.
        micro_batch_size: Samples per micro-batch; by default the plan's.
    """
    return _phase_bytes(run, micro_batch_size or run.plan.micro_batch_size) | _other_bytes(run)


def _phase_bytes(run: PlannedRun, size: int) -> dict[str, int]:
    """Count the peak bytes of both phases for a micro-batch of this size.

    Phase 1 holds the graph of the fake score. Phase 2 holds those of the generator, the teacher and
    the fake score; the backward pass frees the fake score's first. A network that is recomputed has
    a graph only during its own backward pass: the teacher's comes before the generator's, and a
    generator of several steps has one step's at a time.
    """
    plan = run.plan
    fake_1, fake_2, real = (size * times for times in run.evaluations)
    trained = run.evaluation("fake_score", "weights")
    fake, teacher = (
        run.evaluation(name, run.through_networks) for name in ("fake_score", "teacher")
    )
    graphs = run.steps_with_gradient
    generator = run.evaluation("generator", "weights" if graphs == 1 else "both")
    stored = run.evaluated("generator") == 1
    held = graphs * generator.kept(size) if stored else 0
    earlier = held - generator.kept(size) if stored else 0
    beside = teacher.kept(real) if run.evaluated("teacher") == 1 else 0
    phase_2 = (
        held + beside + fake.peak(fake_2),
        held + teacher.peak(real),
        earlier + generator.peak(size),
    )
    # An upper bound with real images: their decoder's graph is not kept.
    phase_1 = trained.peak(fake_1 + size * plan.real_data)
    inputs = _input_bytes(run)
    return {
        "phase 1": (1 + plan.real_data) * inputs + phase_1,
        "phase 2": inputs + max(phase_2),
    }


def _input_bytes(run: PlannedRun) -> int:
    """Count the bytes of a phase's conditioning and noises, which all micro-batches share."""
    features = sum(v[0].nbytes for v in run.teacher.null_condition().values())
    return run.plan.share * features + _noise_bytes(run)


def _noise_bytes(run: PlannedRun) -> int:
    return 4 * run.plan.share * math.prod(run.teacher.latent_shape) * (1 + run.plan.num_steps)


@lru_cache(maxsize=1)
def _other_bytes(run: PlannedRun) -> dict[str, int]:
    """Count the peak bytes of the parts that do not depend on the micro-batch.

    There are no gradients while text is encoded or images are decoded, so only the bytes in excess
    of the gradients count.
    """
    plan, teacher = run.plan, run.teacher
    steps = [
        optimizer_bytes(make)[1] * _trained(run, network)
        for network, make in (
            (run.fake_score, plan.optimizer_fake),
            (run.generator, plan.optimizer_generator),
        )
    ]
    standing = standing_bytes(run)
    gradients = standing["gradients"]
    found = {"an optimizer's step": round(max(steps))}
    if plan.text.device is None:
        _, text = call_cost(lambda: run.encode(plan.share))
        found["text encoder"] = max(_noise_bytes(run) + text - gradients, 0)
    elif plan.text.device == "drop":  # before the optimizers have states
        _, text = call_cost(lambda: run.encode(min(AT_ONCE, plan.share)))
        text += _stored(teacher.text_parts.values(), set()) - _rounded_off(run)
        found["text encoders, at the start"] = max(text - gradients - standing["optimizers"], 0)
    if plan.images_at_once:
        latents = torch.empty(plan.images_at_once, *teacher.latent_shape, device="meta")
        _, decoding = call_cost(lambda: teacher.decode(latents))  # sampling them takes less
        borrowed = _stored([run.ema], set()) if plan.ema.device else 0
        found[f"{plan.images_at_once} images"] = max(borrowed + decoding - gradients, 0)
    return found


def total_bytes(run: PlannedRun, micro_batch_size: int | None = None) -> int:
    """Return the peak bytes on a device."""
    return sum(standing_bytes(run).values()) + max(passing_bytes(run, micro_batch_size).values())


def largest_micro_batch(run: PlannedRun, capacity: float) -> int | None:
    """Return the largest micro-batch that fits into `capacity` bytes and divides a device's share.

    None if none fits.
    """
    share, others = run.plan.share, max(_other_bytes(run).values())
    room = capacity - sum(standing_bytes(run).values())
    for size in (size for size in range(share, 0, -1) if share % size == 0):
        if max(others, *_phase_bytes(run, size).values()) <= room:
            return size
    return None


@lru_cache(maxsize=8)
def optimizer_bytes(make: MakeOptimizer) -> tuple[float, float]:
    """Measure an optimizer's bytes per trained number: its state, and its step's temporary memory.

    Adam's state takes 8 (two moments in float32), and its step on a CUDA device 4 more unless it is
    fused. The step is measured on one small tensor; an optimizer that works through large tensors
    in pieces needs less than that.
    """
    p = nn.Parameter(torch.zeros(1024, 1024))
    optimizer = make([p])
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True  # the default on CUDA devices
    p.grad = torch.ones_like(p)
    optimizer.step()  # creates the states
    with Meter() as meter:
        optimizer.step()
    states = [s for s in optimizer.state[p].values() if torch.is_tensor(s) and s.numel() > 1]
    held = sum(s.untyped_storage().nbytes() for s in states)
    return held / p.numel(), meter.peak_of_all / p.numel()


def _rounded_off(run: PlannedRun) -> int:
    """Count the bytes by which int8 text encoders are smaller than bfloat16 ones.

    A linear layer has a byte per weight and a float32 scale per row. As in transformers, the last
    layer, a head of words, and the layers that a class keeps in float32 are not rounded.
    """
    if run.plan.text.precision != "int8":
        return 0
    saved = 0
    for model in (one for part in run.teacher.text_parts.values() for one in _encoders(part)):
        kept, head = {*(model._keep_in_fp32_modules or ())}, model.get_output_embeddings()
        last = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
        for name, layer in model.named_modules():
            rounded = isinstance(layer, nn.Linear) and layer is not head and name != last
            if rounded and not kept.intersection(name.split(".")):
                saved += layer.weight.numel() - 4 * len(layer.weight)
    return saved


def _encoders(part: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the text encoders in a part of a teacher, which it may wrap."""
    if isinstance(part, PreTrainedModel):
        yield part
        return
    for child in part.children():
        yield from _encoders(child)


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _stored(networks: Iterable[nn.Module], seen: set[int], parts: int = 1) -> int:
    """Count the bytes of parameters and buffers that are not in `seen`, and add them to it.

    Args:
        networks: The networks.
        seen: Storages that are already counted.
        parts: Devices over which the parameters are sharded; buffers are not.
    """
    sizes = [0, 0]
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                sizes[isinstance(tensor, nn.Parameter)] += storage.nbytes()
            seen.add(storage._cdata)
    return sizes[0] + sizes[1] // parts
