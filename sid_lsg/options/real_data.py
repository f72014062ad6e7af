"""The optional adversarial term on real images."""

import math
from dataclasses import dataclass

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError


@dataclass(frozen=True)
class RealData:
    """An adversarial term on real images (SiDA), which --data.real_images names; not data-free.

    Args:
        fake_weight: Weight of the discriminator's loss beside the fake score's denoising loss,
            which is a sum over the latent; 1 in SiDA's runs, times some 20 to 200 that depend on
            its noise levels.
        generator_weight: Weight of the generator's adversarial loss, per number of the latent,
            beside the score-identity loss; 0.0001 in SiDA's runs.
    """

    fake_weight: float = 1.0
    generator_weight: float = 1e-4


NO_IMAGES = (
    "--model.real_data needs real images: name a folder of them, with captions, by "
    "--data.real_images; or leave --model.real_data out, which is data-free."
)


def check_weights(options: RealData | None) -> None:
    """Refuse weights that are none.

    Raises:
        UsageError: Naming the first one.
    """
    for name in ("fake_weight", "generator_weight") if options else ():
        if not 0 <= (value := getattr(options, name)) < math.inf:
            refuse(f"model.real_data.{name}", value, "a finite number of at least 0")


def check_real_data(options: RealData | None, real_images: str | None) -> None:
    """Refuse the term without images, images without the term, and weights that are none.

    Args:
        options: `--model.real_data`.
        real_images: `--data.real_images`.

    Raises:
        UsageError: For the first of them.
    """
    check_weights(options)
    if options is not None and not real_images:
        raise UsageError(NO_IMAGES)
    if real_images and options is None:
        raise UsageError(
            f"--data.real_images is {real_images!r}, but no term uses them: add "
            "--model.real_data.fake_weight 1, or leave the images out."
        )
