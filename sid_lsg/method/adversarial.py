"""The optional adversarial term on real images, after SiDA (Zhou et al., arXiv 2410.14919).

With this term the method needs data. The fake score is also a discriminator: the output of its
encoder at x_t, averaged over channels, is a logit at each position of the lowest resolution. The
generator is trained to make these logits look real (Diffusion-GAN, Wang et al., arXiv 2206.02262).
The term adds no weights: phase 1 trains the encoder to separate real from generated images, and the
gradient of phase 2 passes through the encoder anyway.

The formulas are from SiDA's official code (github.com/mingyuanzhou/SiD, branch sida:
sida_training/sida_loss.py, sida_networks.py, sida_training_loop.py, run_sida.sh). The differences:

- SiDA averages the losses over the device's batch before they are weighted. Here each sample has
  its own loss, so its gradient does not depend on micro-batches, the number of devices and
  excluded samples.
- SiDA multiplies phase 1's term by the batch's mean weight of the denoising loss of x_0, which is
  about 200 at EDM's noise levels and 20 at EDM2's. Here `fake_weight` is the only factor.
- In SiDA, a real image shares label and noise with a generated one. Here it has its own caption,
  noise and time.
- SiDA clips phase 2's logits at 10, and adds the term after 200,000 images and trains the generator
  after 100,000. Here logits are not clipped, and both start at once.

For transformers the formulas are from SiD-DiT's code (arXiv 2509.25127): the tokens after the final
norm are averaged, each channel is a logit, and logits are clipped at +-10. In SiD-DiT a real image
shares noise and time with a generated one, and its pooled text features are those of the generated
one's prompt. Here it has its own. SiD-DiT multiplies phase 1's term by the elements of a latent;
here `fake_weight` is the only factor. It scales the generator's other loss alone; here
`generator_scale` multiplies both.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_lsg.method.conditioning import Conditioning, select
from sid_lsg.method.draws import Draws
from sid_lsg.method.schedule import Schedule
from sid_lsg.method.shapes import each_sample

Numbers = dict[str, Tensor]
"""Further numbers of a phase's samples for the log, by name: each [B]."""


class RealSamples(NamedTuple):
    """Real images for phase 1: [B, 3, H, W] uint8, with their captions and random numbers."""

    images: Tensor
    condition: Conditioning
    draws: Draws

    def select(self, index: Tensor | slice) -> "RealSamples":
        """Select some of the images."""
        return RealSamples(
            self.images[index], select(self.condition, index), self.draws.select(index)
        )


class Adversary(Protocol):
    """The fake score as a discriminator.

    Attributes:
        fake_weight: Weight of the discriminator's loss in phase 1.
        generator_weight: Weight of the generator's adversarial loss in phase 2.
        limit: Clip logits at +-limit; None does not clip.
    """

    fake_weight: float
    generator_weight: float
    limit: float | None

    @property
    def encode(self) -> Callable[[Tensor], Tensor]:
        """Map real images [B, 3, H, W] uint8 to their latents, without gradient."""

    def features(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """Run the fake score, and return its features at x_t: [B, C, h, w] or [B, tokens, C]."""

    def latest(self, size: int) -> Tensor:
        """Return the features of the first `size` samples of the latest evaluation.

        These are the samples with their prompts; with guidance, the same samples without prompts
        follow them.
        """


def discriminator_logits(features: Tensor, limit: float | None = None) -> Tensor:
    """Return the logits D: the mean of the features over their second dimension, as float32.

    They are positive where x_t looks real. Features of a convolutional network are averaged over
    channels, so each position is a logit (`return_flag="encoder"` of SiDA's networks). Those of a
    transformer are averaged over tokens, so each channel is one (SiD-DiT).

    Args:
        features: [B, C, h, w], or [B, tokens, C].
        limit: Clip the logits at +-limit.

    Returns:
        [B, h, w], or [B, C].
    """
    logits = features.to(torch.promote_types(features.dtype, torch.float32)).mean(dim=1)
    return logits if limit is None else logits.clamp(-limit, limit)


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Return the discriminator's loss (SiDA, `fakescore_discriminator_share_encoder_loss`).

        mean over places of  (softplus(-D(x_t of real images)) + softplus(D(x_t of x_g))) / 2

    Binary cross-entropy: ln 2 where the logits are 0.

    Args:
        real: [B, ...] logits of noised real images.
        generated: [B, ...] logits of noised samples of the generator.

    Returns:
        [B] loss of each pair.
    """
    return (F.softplus(-real) + F.softplus(generated)).mean(dim=each_sample(real)) / 2


def adversarial_loss(generated: Tensor) -> Tensor:
    """Return the generator's adversarial loss (SiDA, `generator_share_encoder_loss`).

        mean over places of  softplus(-D(x_t of x_g))

    It does not saturate where the discriminator is confident.

    Args:
        generated: [B, ...] logits.

    Returns:
        [B] loss of each sample.
    """
    return F.softplus(-generated).mean(dim=each_sample(generated))


def fake_score_term(
    adversary: Adversary, schedule: Schedule, real: RealSamples
) -> tuple[Tensor, Numbers]:
    """Return phase 1's term [B]: fake_weight * `discriminator_loss`.

    The generated samples are those of the fake score's latest evaluation.
    """
    generated = discriminator_logits(adversary.latest(len(real.images)), adversary.limit)
    x_0, (_, eps, t, _) = adversary.encode(real.images), real.draws
    x_t = schedule.add_noise(x_0, eps, t)
    found = discriminator_logits(adversary.features(x_t, t, real.condition), adversary.limit)
    loss = discriminator_loss(found, generated)
    numbers = {
        "loss_adversarial_fake": loss,
        "logit_real": found.mean(dim=each_sample(found)),
        "logit_generated": generated.mean(dim=each_sample(generated)),
    }
    return adversary.fake_weight * loss, numbers


def generator_term(adversary: Adversary, x_g: Tensor, weight: Tensor) -> tuple[Tensor, Numbers]:
    """Return phase 2's term [B] for the samples just evaluated.

        generator_weight * C H W * `adversarial_loss` / w

    This scales the loss like the score identity loss, which is a sum over C, H, W divided by w.

    Args:
        adversary: The discriminator.
        x_g: [B, ...], the samples.
        weight: [B] w, `generator_weight`.
    """
    loss = adversarial_loss(discriminator_logits(adversary.latest(len(x_g)), adversary.limit))
    scale = adversary.generator_weight * x_g[0].numel()
    return scale * loss / weight, {"loss_adversarial_generator": loss}
