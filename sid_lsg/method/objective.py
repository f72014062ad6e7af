"""The losses of SiD-LSG (arXiv 2406.01561).

Latents and predictions are [B, ...]. A loss is [B], one sum over channels and pixels per sample,
until `mean_over_batch`.
"""

from torch import Tensor

from sid_lsg.method.shapes import each_sample, per_sample

# Keeps 1/w finite if the generator matches the teacher exactly, so that w = |x_g - y_real| = 0.
WEIGHT_FLOOR = 1e-5


def fake_score_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the denoising loss of the fake score (method.md, phase 1).

        sum over C, H, W of  weight * (f_psi(x_t, t; kappa_1) - target)^2

    Args:
        prediction: The fake score's output guided at kappa_1.
        target: `Schedule.target`.
        weight: [B], `Schedule.error_weight`.

    Returns:
        [B] loss of each sample.
    """
    squares = per_sample(weight, prediction) * (prediction - target).square()
    return squares.sum(dim=each_sample(squares))


def generator_weight(x_g: Tensor, y_real: Tensor) -> Tensor:
    """Return w = mean over C, H, W of |x_g - y_real|, at least 1e-5 (method.md, phase 2).

    The generator's loss is divided by w, which equalizes its scale over times and samples (the
    weighting of DMD, Yin et al., 2023). w carries no gradient.

    Returns:
        [B].
    """
    distance = (x_g - y_real).detach().abs()
    return distance.mean(dim=each_sample(distance)).clamp(min=WEIGHT_FLOOR)


def generator_loss(
    x_g: Tensor, y_real: Tensor, y_fake_2: Tensor, y_fake_3: Tensor, weight: Tensor, alpha: float
) -> Tensor:
    """Return the score identity loss of the generator (method.md, phase 2; SiD, arXiv 2404.04057).

        sum over C, H, W of  (y_real - y_fake_2) * ((y_real - x_g) - alpha (y_real - y_fake_3)) / w

    At alpha = 1 and kappa_2 = kappa_3 this is (y_real - y_fake) * (y_fake - x_g) / w. It may be
    negative. Gradients flow into x_g directly and through both networks.

    Args:
        x_g: The generator's latents.
        y_real: The teacher's guided x_0-estimate at x_t (kappa_4).
        y_fake_2: The fake score's at kappa_2, for the first factor.
        y_fake_3: The fake score's at kappa_3, for the second factor.
        weight: [B] w, `generator_weight`.
        alpha: Weight of the second term.

    Returns:
        [B] loss of each sample.
    """
    toward_teacher = y_real - y_fake_2
    correction = (y_real - x_g) - alpha * (y_real - y_fake_3)
    terms = toward_teacher * correction / per_sample(weight, x_g)
    return terms.sum(dim=each_sample(terms))


def matching_loss(x_g: Tensor, y_real: Tensor, y_fake: Tensor, weight: Tensor) -> Tensor:
    """Return the distribution matching loss of the generator (DMD, arXiv 2311.18828, eq. 7).

        1/2 sum over C, H, W of  (x_g - stop_gradient(x_g - (y_fake - y_real) / w))^2

    Its gradient for x_g is (y_fake - y_real) / w, that of the reverse KL divergence. None flows
    through the networks. DMD also has a regression or an adversarial term; this is for comparison.

    Args:
        x_g: The generator's latents.
        y_real: The teacher's guided x_0-estimate at x_t (kappa_4).
        y_fake: The fake score's (kappa_2).
        weight: [B] w, `generator_weight`.

    Returns:
        [B] loss of each sample.
    """
    target = (x_g - (y_fake - y_real) / per_sample(weight, x_g)).detach()
    return 0.5 * (x_g - target).square().sum(dim=each_sample(x_g))


def mean_over_batch(losses: Tensor, batch_size: int, counted: Tensor | None = None) -> Tensor:
    """Return a micro-batch's share of the mean loss over the batch (method.md, one iteration).

        sum over the micro-batch's samples that count / B

    The shares of a batch's micro-batches add up to its mean. Samples that do not count do not
    change B, so the other samples' gradients do not depend on them.

    Args:
        losses: [b] loss of each sample of the micro-batch.
        batch_size: B, the whole batch of this process.
        counted: [b] bool, the samples that count; by default all.
    """
    if counted is not None:
        losses = losses.where(counted, 0)
    return losses.sum() / batch_size
