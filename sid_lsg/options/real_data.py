"""Options of the adversarial term on real images."""

import math
from dataclasses import dataclass

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError

NO_IMAGES = (
    "--model.real_data needs real images: give a folder of images with captions as "
    "--data.real_images, or leave --model.real_data out to train without data."
)


@dataclass(frozen=True)
class RealData:
    """An adversarial term on the real images of --data.real_images (SiDA); no longer data-free.

    Args:
        fake_weight: Weight of the discriminator's loss, which is added to the fake score's
            denoising loss (a sum over the latent). SiDA's runs use 1, times a factor of about 20 to
            200 that depends on the noise levels; SiD-DiT's runs the elements of a latent, C·H·W.
        generator_weight: Weight of the generator's adversarial loss per element of the latent,
            which is added to the score-identity loss; --model.gradients.generator_scale multiplies
            both. 0.0001 in SiDA's runs, 0.01 in SiD-DiT's with its scale of 100.
    """

    fake_weight: float = 1.0
    generator_weight: float = 1e-4

    def __post_init__(self) -> None:
        """Validate the weights.

        Raises:
            UsageError: If a weight is negative or not finite.
        """
        for name in ("fake_weight", "generator_weight"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                refuse(f"model.real_data.{name}", value, "a finite number of at least 0")


def check_objective(options: RealData | None, objective: str) -> None:
    """Reject the adversarial term beside an objective whose x_t has no gradient.

    Raises:
        UsageError: If the objective is not the score identity loss.
    """
    if options is not None and objective != "sid":
        raise UsageError(
            f"--model.objective {objective}: the adversarial term of --model.real_data would not "
            "reach the generator. Leave one of the two out."
        )


def check_real_data(options: RealData | None, real_images: str | None) -> None:
    """Reject the adversarial term without real images, and real images without the term.

    Args:
        options: `--model.real_data`.
        real_images: `--data.real_images`.

    Raises:
        UsageError: If one of the two is missing.
    """
    if options is not None and not real_images:
        raise UsageError(NO_IMAGES)
    if real_images and options is None:
        raise UsageError(
            f"--data.real_images is {real_images!r}, but no loss uses them: add "
            "--model.real_data.fake_weight 1, or leave --data.real_images out."
        )
