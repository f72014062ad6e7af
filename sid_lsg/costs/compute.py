"""The FLOPs of an iteration by part, and the time that they take."""

from functools import lru_cache

import torch

from sid_lsg.costs.evaluation import call_cost
from sid_lsg.costs.plan import PlannedRun


@lru_cache(maxsize=1)
def iteration_flops(run: PlannedRun) -> dict[str, float]:
    """Count an iteration's FLOPs per image, by part.

    With K steps of the generator and g = 2 for a guided network, else 1: phase 1 evaluates the
    generator K and the fake score g times, and goes back to the weights of the latter; phase 2
    evaluates the generator K, fake score and teacher g times each, and goes back through both to
    their inputs and to the generator's weights; `balanced` and `lean` evaluate some once more.
    """
    plan, (fake_1, fake_2, real) = run.plan, run.plan.kappas.evaluations
    trained = run.evaluation("fake_score", "weights")
    fake, teacher = (run.evaluation(name, "inputs") for name in ("fake_score", "teacher"))
    first = run.evaluation("generator", "weights")
    backward = first.backward
    if plan.num_steps > 1:  # later steps lead back to earlier ones
        later = run.evaluation("generator", "both").backward
        backward += later * (plan.num_steps - 1)
    through = fake.backward * fake_2 + teacher.backward * real
    text, _ = call_cost(lambda: run.encode(1))
    real_images = {}
    if plan.real_data:
        image = torch.empty(1, 3, *run.teacher.image_size, dtype=torch.uint8, device="meta")
        vae, _ = call_cost(lambda: run.teacher.encode_images(image))
        whole = trained.forward + trained.backward  # less the decoder's backward pass
        real_images = {"real images, at most": text + vae + whole}
    return real_images | {
        "text encoder": 2 * text,
        "phase 1: generator": first.forward * plan.num_steps,
        "phase 1: fake score": trained.forward * fake_1,
        "phase 1: backward": trained.backward * fake_1,
        "phase 2: generator": first.forward * plan.num_steps * run.evaluated("generator"),
        "phase 2: fake score": fake.forward * fake_2,
        "phase 2: teacher": teacher.forward * real * run.evaluated("teacher"),
        "phase 2: backward to x_g": through,
        "phase 2: backward to weights": backward,
    }


def iteration_seconds(run: PlannedRun, speed: float, micro_batch_size: int | None = None) -> float:
    """Return the time of an iteration: its FLOPs, or its launches where these take longer.

    A device computes one micro-batch's kernels while the host launches the next ones; at small
    micro-batches it waits for the host. Optimizers and averages are left out: they move some 60
    bytes per weight and iteration, which takes 17 ms for Stable Diffusion 1.5 on an H100.

    Args:
        run: The run.
        speed: FLOP/s that a device reaches.
        micro_batch_size: By default the plan's.
    """
    size = micro_batch_size or run.plan.micro_batch_size
    computing = size * sum(iteration_flops(run).values()) / speed
    return run.plan.share / size * max(computing, launching_seconds(run))


# Seconds in which a host launches a weight's share of a pass forward or backward. Measured on an
# H200's: 0.75 s for the 9 passes of Stable Diffusion 1.5, which has 686 tensors of weights, at
# micro-batches of 1 and of 8 (docs/benchmarks/sd15_h200_*). Compiled networks need less; how much
# has not been measured.
_PER_WEIGHT_S = 0.75 / 9 / 686


def launching_seconds(run: PlannedRun) -> float:
    """Return the time in which the host launches a micro-batch's kernels, whatever its size."""
    plan = run.plan
    forward = {
        "generator": plan.num_steps * (1 + run.evaluated("generator")),
        "fake_score": 2 + plan.real_data,
        "teacher": run.evaluated("teacher"),
    }
    # Of real images too, though they go back through the encoder alone.
    backward = {"generator": plan.num_steps, "fake_score": forward["fake_score"], "teacher": 1}
    seconds = 0.0
    for name, passes in forward.items():
        again = backward[name] if name in plan.gradient_checkpointing else 0
        weights = len(list(run.network(name).parameters()))
        seconds += (passes + backward[name] + again) * weights * _PER_WEIGHT_S
    return seconds
