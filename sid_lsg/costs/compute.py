"""The FLOPs of an iteration by part, and the time that they take."""

import torch

from sid_lsg.costs.evaluation import Flops, call_cost
from sid_lsg.costs.plan import PlannedRun


def iteration_flops(run: PlannedRun) -> dict[str, Flops]:
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
        backward = backward.plus(later.times(plan.num_steps - 1))
    through = fake.backward.times(fake_2).plus(teacher.backward.times(real))
    text, _ = call_cost(lambda: run.encode(1))
    real_images = {}
    if plan.real_data:
        image = torch.empty(1, 3, *run.teacher.image_size, dtype=torch.uint8, device="meta")
        vae, _ = call_cost(lambda: run.teacher.encode_images(image))
        whole = trained.forward.plus(trained.backward)  # less the decoder's backward pass
        real_images = {"real images, at most": text.plus(vae).plus(whole)}
    return real_images | {
        "text encoder": text.times(2),
        "phase 1: generator": first.forward.times(plan.num_steps),
        "phase 1: fake score": trained.forward.times(fake_1),
        "phase 1: backward": trained.backward.times(fake_1),
        "phase 2: generator": first.forward.times(plan.num_steps * run.evaluated("generator")),
        "phase 2: fake score": fake.forward.times(fake_2),
        "phase 2: teacher": teacher.forward.times(real * run.evaluated("teacher")),
        "phase 2: backward to x_g": through,
        "phase 2: backward to weights": backward,
    }


def iteration_seconds(run: PlannedRun, peaks: Flops, efficiency: float) -> float:
    """Return the time of an iteration: its FLOPs at a share of the devices' peak.

    Optimizers and averages are left out: they move some 60 bytes per weight and iteration, which
    takes 17 ms for Stable Diffusion 1.5 on an H100.

    Args:
        run: The run.
        peaks: FLOP/s of a device, for convolutions and for other products.
        efficiency: The share of it that is reached.
    """
    parts = iteration_flops(run).values()
    convolutions = sum(flops.convolutions for flops in parts) / peaks.convolutions
    others = sum(flops.others for flops in parts) / peaks.others
    return run.plan.share * (convolutions + others) / efficiency
