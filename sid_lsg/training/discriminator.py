"""The optional adversarial term on real images, after SiDA (Zhou et al., arXiv 2410.14919).

With it the method is no longer data-free. The fake score is a discriminator too: what its encoder
makes of an x_t, averaged over channels, is a logit for each place of the lowest resolution, and the
generator's samples are to look real to it (the Diffusion-GAN of Wang et al., arXiv 2206.02262). It
costs no weights: phase 1 teaches the encoder to tell real from generated, phase 2 goes back through
it as it goes back through the fake score anyhow. In the log, `loss_fake` and `loss_generator`
include it; its own parts are logged without their weights.

What SiDA does is read off its official code (github.com/mingyuanzhou/SiD, branch sida:
sida_training/sida_loss.py, sida_networks.py, sida_training_loop.py, run_sida.sh). Ours differs:

- There, all samples' losses are averaged over the device's batch before they are weighted, so that
  samples share one loss. Here each sample has its own, so that micro-batches, the number of
  devices and a sample that is left out change no other's gradient.
- There, phase 1's term is multiplied by the batch's mean weight of the denoising loss of x_0, which
  is about 200 at EDM's noise levels and 20 at EDM2's. Here `fake_weight` is all.
- There, a real image shares label and noise with a generated one. Here it has its own caption,
  noise and timestep.
- There, phase 2 clips logits at 10, and the term and the generator join after 200,000 and 100,000
  images. Here no logit is clipped, and all begins at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_lsg.data.real_images import RealBatch
from sid_lsg.distributed.sharding import gather_root
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.phases import Parts, RealSamples
from sid_lsg.options.real_data import NO_IMAGES, RealData
from sid_lsg.teachers.base import Teacher

Term = tuple[Tensor, Parts]
"""What is added to a phase's loss [B], and its parts for the log, each [B]."""


def required(real: RealBatch | None) -> RealBatch:
    """Return a batch's real images, for a module that has the term.

    Raises:
        UsageError: If there are none.
    """
    if real is None:
        raise UsageError(NO_IMAGES)
    return real


# ---------------------------------------------------------------------- the mathematics


def discriminator_logits(features: Tensor) -> Tensor:
    """Return D = mean over channels of the encoder's output, at least in float32.

    Positive where x_t looks real. SiDA, `return_flag="encoder"` of its networks.

    Args:
        features: [B, C, h, w].

    Returns:
        [B, h, w].
    """
    return features.to(torch.promote_types(features.dtype, torch.float32)).mean(dim=1)


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Discriminator's loss (phase 1): binary cross-entropy, ln 2 where it knows nothing.

        mean over places of  (softplus(-D(x_t of real images)) + softplus(D(x_t of x_g))) / 2

    SiDA, `fakescore_discriminator_share_encoder_loss`.

    Args:
        real: [B, h, w] logits of noised real images.
        generated: [B, h, w] logits of noised samples of the generator.

    Returns:
        [B] loss of each pair.
    """
    return (F.softplus(-real) + F.softplus(generated)).mean(dim=(1, 2)) / 2


def adversarial_loss(generated: Tensor) -> Tensor:
    """Return the generator's adversarial loss (phase 2): mean over places of softplus(-D(x_t)).

    It does not saturate where the discriminator is sure. SiDA, `generator_share_encoder_loss`.

    Args:
        generated: [B, h, w] logits.

    Returns:
        [B] loss of each sample.
    """
    return F.softplus(-generated).mean(dim=(1, 2))


# ---------------------------------------------------------------------- where it enters


class Discriminator:
    """The fake score's encoder, and its term in the losses of both phases.

    A hook keeps what the encoder made of the latest x_t, so that samples are evaluated once for
    both their losses. It is there for good: compiled blocks do not see one that comes later. The
    real images' evaluation runs through the decoder too, in vain and forward only: a network whose
    weights are spread over devices cannot be left half way.
    """

    def __init__(self, options: RealData, teacher: Teacher, fake_score: nn.Module) -> None:
        """Watch the encoder of a fake score."""
        self.options, self._teacher, self._fake_score = options, teacher, fake_score
        self._features: Tensor | None = None
        end = teacher.end_of_encoder(fake_score)

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if module is end:  # and not the same part of a copy, which has this hook too
                self._features = output[0] if isinstance(output, tuple) else output

        end.register_forward_hook(keep)

    def _latest_logits(self, size: int) -> Tensor:
        """Return the logits [B, h, w] of the samples just evaluated, with their prompts.

        The same samples without prompts stand behind them, where the fake score is guided.
        """
        features, self._features = self._features, None
        assert features is not None, "the fake score has not been evaluated"
        return discriminator_logits(features[:size])

    def fake_score_term(self, real: RealSamples) -> Term:
        """Judge the samples of phase 1, just evaluated, and real images.

        fake_weight * `discriminator_loss`
        """
        generated = self._latest_logits(len(real.images))
        x_0, (_, eps, t, _) = self._teacher.encode_images(real.images), real.draws
        x_t = self._teacher.schedule.add_noise(x_0, eps, t)
        self._teacher.predict(self._fake_score, x_t, t, real.condition)
        gather_root(self._fake_score)
        found = self._latest_logits(len(real.images))
        loss = discriminator_loss(found, generated)
        parts = {
            "loss_adversarial_fake": loss,
            "logit_real": found.mean(dim=(1, 2)),
            "logit_generated": generated.mean(dim=(1, 2)),
        }
        return self.options.fake_weight * loss, parts

    def generator_term(self, x_g: Tensor, weight: Tensor) -> Term:
        """Judge the samples of phase 2, just evaluated.

            generator_weight * C H W * `adversarial_loss` / w

        The score-identity loss is a sum over C, H, W divided by w as well: one number says how fake
        a sample is, and counts at each place of the latent.

        Args:
            x_g: [B, C, H, W], the samples.
            weight: [B, 1, 1, 1] w, `generator_weight`.
        """
        loss = adversarial_loss(self._latest_logits(len(x_g)))
        scale = self.options.generator_weight * x_g[0].numel()
        return scale * loss / weight.flatten(), {"loss_adversarial_generator": loss}
