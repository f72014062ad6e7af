"""The fake score as a discriminator, for the optional adversarial term (`method.adversarial`)."""

from typing import Any

from torch import Tensor, nn

from sid_lsg.data.real_images import RealBatch
from sid_lsg.distributed.sharding import gather_root
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.options.real_data import NO_IMAGES, RealData
from sid_lsg.teachers.base import Teacher


def required(real: RealBatch | None) -> RealBatch:
    """Return a batch's real images, for a module that has the term.

    Raises:
        UsageError: If there are none.
    """
    if real is None:
        raise UsageError(NO_IMAGES)
    return real


class Discriminator:
    """Give what the fake score's encoder makes of x_t: an `Adversary` of the method.

    A hook keeps the encoder's output of the latest evaluation, so that samples are evaluated once
    for both their losses. It is registered for good: compiled blocks do not see a later one. The
    real images' evaluation runs through the decoder too, whose output is not used: a sharded
    network cannot be left half way.
    """

    def __init__(self, options: RealData, teacher: Teacher, fake_score: nn.Module) -> None:
        """Watch the encoder of a fake score."""
        self.fake_weight, self.generator_weight = options.fake_weight, options.generator_weight
        self.encode = teacher.encode_images
        self._teacher, self._fake_score = teacher, fake_score
        self._features: Tensor | None = None
        end = teacher.end_of_encoder(fake_score)

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if module is end:  # and not the same part of a copy, which has this hook too
                self._features = output[0] if isinstance(output, tuple) else output

        end.register_forward_hook(keep)

    def features(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """Evaluate the fake score; return its encoder's features [B, C, h, w]."""
        self._teacher.predict(self._fake_score, x_t, t, condition)
        gather_root(self._fake_score)
        return self.latest(len(x_t))

    def latest(self, size: int) -> Tensor:
        """Return the features [size, C, h, w] of the samples just evaluated, with their prompts.

        Where the fake score is guided, the same samples without prompts follow them.
        """
        features, self._features = self._features, None
        assert features is not None, "the fake score has not been evaluated"
        return features[:size]
