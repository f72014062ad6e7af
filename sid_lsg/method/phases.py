"""The two phases of an iteration, from random numbers to the loss.

The caller chooses which parameters require gradients: the fake score's in phase 1, the generator's
in phase 2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sid_lsg.method.adversarial import (
    Adversary,
    Numbers,
    RealSamples,
    fake_score_term,
    generator_term,
)
from sid_lsg.method.choices import Noise, Objective, StepTraining, Weighting
from sid_lsg.method.conditioning import Conditioning, Predict, expand, select
from sid_lsg.method.draws import Draws
from sid_lsg.method.guidance import Guiding, Kappas, predict_guided
from sid_lsg.method.objective import (
    fake_score_loss,
    generator_loss,
    matching_loss,
    mean_over_batch,
)
from sid_lsg.method.sampling import denoiser, sample
from sid_lsg.method.schedule import Schedule
from sid_lsg.method.weighting import loss_divisor


class Networks(NamedTuple):
    """The three networks as functions, and what they share.

    Attributes:
        generator: G_theta.
        fake_score: f_psi.
        teacher: f_phi.
        schedule: The teacher's schedule.
        null: The empty prompt's conditioning, one sample; None if no network is guided.
        adversary: The fake score as a discriminator, for the optional adversarial term.
        guiding: How the fake score and the teacher are guided.
    """

    generator: Predict
    fake_score: Predict
    teacher: Predict
    schedule: Schedule
    null: Conditioning | None = None
    adversary: Adversary | None = None
    guiding: Guiding = Guiding()


class Recipe(NamedTuple):
    """Settings of the method besides networks, prompts and random numbers.

    Attributes:
        kappas: The guidance scales.
        t_init: The generator's first timestep.
        num_steps: K, the steps of the generator's times; by default as many as noises are given.
        noise: The noise of the generator's later steps.
        step_training: The generator's steps that the gradient flows through.
        alpha: Weight of the second term of the generator's loss.
        weighting: Weighting of the generator's loss.
        generator_scale: Factor of the generator's loss (`lsg` in the official code).
        objective: The generator's loss: `sid`, or `dmd`.
    """

    kappas: Kappas
    t_init: int
    num_steps: int | None = None
    noise: Noise = "fresh"
    step_training: StepTraining = "all"
    alpha: float = 1.0
    weighting: Weighting = "sid"
    generator_scale: float = 1.0
    objective: Objective = "sid"


class PhaseInputs(NamedTuple):
    """The inputs of one phase: the samples of a batch or of a micro-batch.

    Attributes:
        condition: The prompts' conditioning.
        draws: The random numbers.
        batch_size: B, the whole batch of this process, which losses are divided by.
        real: Real images for phase 1's adversarial term.
        counted: [b] bool, the samples that count in the loss; by default all.
    """

    condition: Conditioning
    draws: Draws
    batch_size: int
    real: RealSamples | None = None
    counted: Tensor | None = None

    @property
    def size(self) -> int:
        """Return b, the number of samples."""
        return len(self.draws.t)

    def select(self, index: Tensor | slice) -> "PhaseInputs":
        """Select some of the samples; the batch size B does not change."""
        return PhaseInputs(
            select(self.condition, index),
            self.draws.select(index),
            self.batch_size,
            None if self.real is None else self.real.select(index),
            None if self.counted is None else self.counted[index],
        )


class FakeScoreOutput(NamedTuple):
    """The results of phase 1.

    Attributes:
        loss: Scalar, to be differentiated: the share of the batch's mean.
        losses: [b] loss of each sample.
        weight: [b] `Schedule.error_weight`.
        x_g: The generator's samples.
        prediction: The fake score's guided prediction at x_t.
        numbers: Further numbers for the log.
    """

    loss: Tensor
    losses: Tensor
    weight: Tensor
    x_g: Tensor
    prediction: Tensor
    numbers: Numbers


class GeneratorOutput(NamedTuple):
    """The results of phase 2.

    Attributes:
        loss: Scalar, to be differentiated: the share of the batch's mean, times the scale.
        losses: [b] loss of each sample, without the scale.
        weight: [b] w, `weighting.loss_divisor`.
        x_g: The generator's samples.
        y_fake_2: The fake score's x_0-estimate guided at kappa_2.
        y_fake_3: The fake score's x_0-estimate guided at kappa_3.
        y_real: The teacher's x_0-estimate guided at kappa_4.
        numbers: Further numbers for the log.
    """

    loss: Tensor
    losses: Tensor
    weight: Tensor
    x_g: Tensor
    y_fake_2: Tensor
    y_fake_3: Tensor
    y_real: Tensor
    numbers: Numbers


def fake_score_phase(networks: Networks, inputs: PhaseInputs, recipe: Recipe) -> FakeScoreOutput:
    """Evaluate phase 1: the fake score denoises the generator's samples (method.md, phase 1).

    The samples carry no gradient. Prompts have been dropped before (`drop_prompts`), so the
    generator also sees the empty prompt.
    """
    schedule, condition, (_, eps, t, _) = networks.schedule, inputs.condition, inputs.draws
    kappa_1 = recipe.kappas.train_fake
    with torch.no_grad():
        x_g = _generated(networks, inputs, recipe)
    x_t = schedule.add_noise(x_g, eps, t)
    (prediction,) = predict_guided(
        networks.fake_score, x_t, t, condition, networks.null, [kappa_1], networks.guiding
    )
    weight = schedule.error_weight(t)
    losses, numbers = fake_score_loss(prediction, schedule.target(x_g, eps, t), weight), Numbers()
    if networks.adversary and (real := inputs.real):
        if kappa_1 == 0 and networks.null is not None:  # real images are judged as generated ones
            real = real._replace(condition=expand(networks.null, len(real.images)))
        term, numbers = fake_score_term(networks.adversary, schedule, real)
        losses = losses + term
    loss = mean_over_batch(losses, inputs.batch_size, inputs.counted)
    return FakeScoreOutput(loss, losses, weight, x_g, prediction, numbers)


def generator_phase(networks: Networks, inputs: PhaseInputs, recipe: Recipe) -> GeneratorOutput:
    """Evaluate phase 2: the score identity loss of the generator (method.md, phase 2).

    Gradients reach x_g directly, and through the fake score and the teacher. With the objective
    `dmd` they reach it directly only.
    """
    schedule, condition, (_, eps, t, _) = networks.schedule, inputs.condition, inputs.draws
    kappas = recipe.kappas
    x_g = _generated(networks, inputs, recipe)
    through_networks = recipe.objective == "sid"
    x_t = schedule.add_noise(x_g if through_networks else x_g.detach(), eps, t)

    def estimates(predict: Predict, *scales: float) -> list[Tensor]:
        guiding, null = networks.guiding, networks.null
        predictions = predict_guided(predict, x_t, t, condition, null, scales, guiding)
        return [schedule.x0(prediction, x_t, t) for prediction in predictions]

    # The network that is evaluated last is differentiated first. So if the teacher's activations
    # are recomputed, the fake score's have been freed by then.
    (y_real,) = estimates(networks.teacher, kappas.eval_real)
    y_fake_2, y_fake_3 = estimates(networks.fake_score, kappas.eval_fake_2, kappas.eval_fake_3)
    weight = loss_divisor(recipe.weighting, schedule, t, x_g, y_real)
    if through_networks:
        losses = generator_loss(x_g, y_real, y_fake_2, y_fake_3, weight, recipe.alpha)
    else:
        losses = matching_loss(x_g, y_real, y_fake_2, weight)
    numbers = Numbers()
    if networks.adversary:
        term, numbers = generator_term(networks.adversary, x_g, weight)
        losses = losses + term
    loss = mean_over_batch(losses, inputs.batch_size, inputs.counted) * recipe.generator_scale
    return GeneratorOutput(loss, losses, weight, x_g, y_fake_2, y_fake_3, y_real, numbers)


def _generated(networks: Networks, inputs: PhaseInputs, recipe: Recipe) -> Tensor:
    """Sample the generator with the inputs' prompts and noises."""
    schedule = networks.schedule
    return sample(
        denoiser(networks.generator, schedule, inputs.condition),
        schedule,
        inputs.draws.noises,
        recipe.t_init,
        recipe.num_steps,
        recipe.noise,
        recipe.step_training,
    )
