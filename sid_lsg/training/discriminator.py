"""Use the fake score's features as a discriminator (the term of `method.adversarial`)."""

from typing import Any

from torch import Tensor, nn

from sid_lsg.data.real_images import RealBatch
from sid_lsg.distributed.sharding import gather_root
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning
from sid_lsg.networks.adapted import runs
from sid_lsg.options.real_data import NO_IMAGES, RealData
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.precision import backbone, without_float16


def required(real: RealBatch | None) -> RealBatch:
    """Return a batch's real images, which the adversarial term needs.

    Raises:
        UsageError: If the batch has none.
    """
    if real is None:
        raise UsageError(NO_IMAGES)
    return real


class Discriminator:
    """Provide the features of the fake score: an `Adversary` of the method.

    A forward hook stores the output of `Teacher.end_of_encoder` in the latest evaluation, so one
    evaluation serves both losses of a sample. The hook is never removed, because compiled blocks do
    not see hooks that are registered later. Real images run through the rest of the network too,
    although its output is not used, because the forward pass of a sharded network cannot be stopped
    halfway.
    """

    def __init__(self, options: RealData, teacher: Teacher, fake_score: nn.Module) -> None:
        """Register the hook at the end of the encoder."""
        self.fake_weight, self.generator_weight = options.fake_weight, options.generator_weight
        self.limit, self.encode = teacher.logit_limit, without_float16()(teacher.encode_images)
        self._teacher, self._fake_score = teacher, fake_score
        self._features: Tensor | None = None
        end = teacher.end_of_encoder(backbone(fake_score))

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            # A copy of the network has this hook too, and so do networks that share a base with it.
            if module is end and runs(fake_score):
                self._features = output[0] if isinstance(output, tuple) else output

        end.register_forward_hook(keep)

    def features(self, x_t: Tensor, t: Tensor, condition: Conditioning) -> Tensor:
        """Run the fake score, and return its features [B, C, h, w] or [B, tokens, C]."""
        self._teacher.predict(self._fake_score, x_t, t, condition)
        gather_root(backbone(self._fake_score))
        return self.latest(len(x_t))

    def latest(self, size: int) -> Tensor:
        """Return the features [size, ...] of the samples just evaluated with their prompts.

        With guidance, the stored batch also has the same samples without prompts after them.
        """
        features, self._features = self._features, None
        assert features is not None, "the fake score has not been evaluated"
        return features[:size]
