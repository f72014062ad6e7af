"""The optional adversarial term on real images, after SiDA (Zhou et al., arXiv 2410.14919).

With it the method is no longer data-free. The fake score is a discriminator too: what its encoder
makes of an x_t, averaged over channels, is a logit for each place of the lowest resolution, and the
generator's samples are to look real to it (Diffusion-GAN, Wang et al., arXiv 2206.02262). It adds
no weights: phase 1 teaches the encoder to tell real from generated, and the gradient of phase 2
passes through it as it passes through the fake score anyway.

SiDA's formulas are from its official code (github.com/mingyuanzhou/SiD, branch sida:
sida_training/sida_loss.py, sida_networks.py, sida_training_loop.py, run_sida.sh). The differences:

- There, all samples' losses are averaged over the device's batch before they are weighted, so that
  samples share one loss. Here each sample has its own, so that micro-batches, the number of
  devices and a sample that is left out change no other's gradient.
- There, phase 1's term is multiplied by the batch's mean weight of the denoising loss of x_0, which
  is about 200 at EDM's noise levels and 20 at EDM2's. Here `fake_weight` is all.
- There, a real image shares label and noise with a generated one. Here it has its own caption,
  noise and time.
- There, phase 2 clips logits at 10, and the term and the generator join after 200,000 and 100,000
  images. Here no logit is clipped, and both join from the start.
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
    """

    fake_weight: float
    generator_weight: float

    @property
    def encode(self) -> Callable[[Tensor], Tensor]:
        """Map real images [B, 3, H, W] uint8 to their latents, without gradient."""

    def features(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """Evaluate the fake score; return what its encoder made of x_t: [B, C, h, w]."""

    def latest(self, size: int) -> Tensor:
        """Return the same of the first `size` samples that the fake score has just evaluated.

        These are the samples with their prompts.
        """


def discriminator_logits(features: Tensor) -> Tensor:
    """Return D = mean over channels of the encoder's output, at least in float32 (SiDA).

    Positive where x_t looks real; `return_flag="encoder"` of SiDA's networks.

    Args:
        features: [B, C, h, w].

    Returns:
        [B, h, w].
    """
    return features.to(torch.promote_types(features.dtype, torch.float32)).mean(dim=1)


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Return the discriminator's loss (SiDA, `fakescore_discriminator_share_encoder_loss`).

        mean over places of  (softplus(-D(x_t of real images)) + softplus(D(x_t of x_g))) / 2

    Binary cross-entropy: ln 2 where the logits are 0.

    Args:
        real: [B, h, w] logits of noised real images.
        generated: [B, h, w] logits of noised samples of the generator.

    Returns:
        [B] loss of each pair.
    """
    return (F.softplus(-real) + F.softplus(generated)).mean(dim=each_sample(real)) / 2


def adversarial_loss(generated: Tensor) -> Tensor:
    """Return the generator's adversarial loss (SiDA, `generator_share_encoder_loss`).

        mean over places of  softplus(-D(x_t of x_g))

    It does not saturate where the discriminator is sure.

    Args:
        generated: [B, h, w] logits.

    Returns:
        [B] loss of each sample.
    """
    return F.softplus(-generated).mean(dim=each_sample(generated))


def fake_score_term(
    adversary: Adversary, schedule: Schedule, real: RealSamples
) -> tuple[Tensor, Numbers]:
    """Return phase 1's term [B]: fake_weight * `discriminator_loss`.

    The generated samples are those that the fake score has just evaluated.
    """
    generated = discriminator_logits(adversary.latest(len(real.images)))
    x_0, (_, eps, t, _) = adversary.encode(real.images), real.draws
    x_t = schedule.add_noise(x_0, eps, t)
    found = discriminator_logits(adversary.features(x_t, t, real.condition))
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

    The score identity loss is a sum over C, H, W divided by w as well: one number says how fake a
    sample is, and counts at each place of the latent.

    Args:
        adversary: The discriminator.
        x_g: [B, ...], the samples.
        weight: [B] w, `generator_weight`.
    """
    loss = adversarial_loss(discriminator_logits(adversary.latest(len(x_g))))
    scale = adversary.generator_weight * x_g[0].numel()
    return scale * loss / weight, {"loss_adversarial_generator": loss}
