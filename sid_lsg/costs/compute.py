"""FLOPs of an iteration by part, and the time of an iteration."""

from functools import lru_cache

import torch

from sid_lsg.costs.evaluation import call_cost
from sid_lsg.costs.plan import PlannedRun


@lru_cache(maxsize=1)
def iteration_flops(run: PlannedRun) -> dict[str, float]:
    """Count an iteration's FLOPs per image, by part.

    Let K be the generator's number of steps, and g be 2 for a network with guidance, else 1.
    Phase 1 runs the generator K times and the fake score g times, and backpropagates to the weights
    of the fake score; it is repeated for each step of the fake score. Phase 2 runs the generator K
    times and the fake score and the teacher g times each, and backpropagates through both to their
    inputs and to the generator's weights. If only the last step is trained, the generator runs
    (1 + K) / 2 times on average, and the backward pass goes through one of them. The memory modes
    `balanced` and `lean` run some of these forward passes a second time.
    """
    plan, (fake_1, fake_2, real) = run.plan, run.evaluations
    trained = run.evaluation("fake_score", "weights")
    fake, teacher = (
        run.evaluation(name, run.through_networks) for name in ("fake_score", "teacher")
    )
    first = run.evaluation("generator", "weights")
    backward, repeats = first.backward, plan.fake_steps
    if run.steps_with_gradient > 1:  # later steps also backpropagate to earlier ones
        later = run.evaluation("generator", "both").backward
        backward += later * (run.steps_with_gradient - 1)
    again = (run.evaluated("generator") - 1) * run.steps_with_gradient
    through = fake.backward * fake_2 + teacher.backward * real
    # Elsewhere, or before the first iteration.
    text = 0.0 if plan.text.device else call_cost(lambda: run.encode(1))[0]
    real_images = {}
    if plan.real_data:
        image = torch.empty(1, 3, *run.teacher.image_size, dtype=torch.uint8, device="meta")
        vae, _ = call_cost(lambda: run.teacher.encode_images(image))
        # An upper bound: real images need no backward pass through the network's decoder.
        whole = trained.forward + trained.backward
        real_images = {"real images, at most": repeats * (text + vae + whole)}
    return real_images | {
        "text encoder": (1 + repeats) * text,
        "phase 1: generator": first.forward * run.steps * repeats,
        "phase 1: fake score": trained.forward * fake_1 * repeats,
        "phase 1: backward": trained.backward * fake_1 * repeats,
        "phase 2: generator": first.forward * (run.steps + again),
        "phase 2: fake score": fake.forward * fake_2,
        "phase 2: teacher": teacher.forward * real * run.evaluated("teacher"),
        "phase 2: backward to x_g": through,
        "phase 2: backward to weights": backward,
    }


def iteration_seconds(run: PlannedRun, speed: float, micro_batch_size: int | None = None) -> float:
    """Return the seconds of an iteration: computing, or launching kernels if that takes longer.

    The device computes one micro-batch's kernels while the host launches the next; at small
    micro-batches the device waits for the host. Optimizers and EMA are not counted: they move about
    60 bytes per weight and iteration, which takes 17 ms for Stable Diffusion 1.5 on an H100.

    Args:
        run: The run.
        speed: FLOP/s that a device reaches.
        micro_batch_size: Samples per micro-batch; by default the plan's.
    """
    size = micro_batch_size or run.plan.micro_batch_size
    computing = size * sum(iteration_flops(run).values()) / speed
    return run.plan.share / size * max(computing, launching_seconds(run))


# Seconds to launch the kernels of a forward or backward pass, per weight tensor. Measured on the
# host of an H200: 0.75 s for the 9 passes of Stable Diffusion 1.5, which has 686 weight tensors, at
# micro-batches of 1 and 8 (results/benchmarks/sd15_h200_*). Compiled networks need less; how much
# has not been measured.
_PER_WEIGHT_S = 0.75 / 9 / 686


def launching_seconds(run: PlannedRun) -> float:
    """Return the seconds to launch a micro-batch's kernels, which do not depend on its size."""
    plan = run.plan
    again = (run.evaluated("generator") - 1) * run.steps_with_gradient
    forward = {
        "generator": run.steps * (1 + plan.fake_steps) + again,
        "fake_score": 1 + plan.fake_steps * (1 + plan.real_data),
        "teacher": run.evaluated("teacher"),
    }
    # Real images count as a full backward pass, although they need only the network's encoder.
    through = run.through_networks != "none"
    backward = {
        "fake_score": forward["fake_score"] - 1 + through,
        "teacher": int(through),
        "generator": run.steps_with_gradient,
    }
    seconds = 0.0
    for name, passes in forward.items():
        checkpointed = backward[name] if name in plan.checkpointing else 0
        weights = len(list(run.network(name).parameters()))
        seconds += (passes + backward[name] + checkpointed) * weights * _PER_WEIGHT_S
    return seconds
