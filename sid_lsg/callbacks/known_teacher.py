"""Describe what a run's teacher samples, to recognise it in other runs."""

from collections.abc import Sequence
from typing import Any

import lightning as L

from sid_lsg.distributed.sharding import is_sharded
from sid_lsg.metrics.kept_scores import sampled
from sid_lsg.teachers.identity import teacher_hash


def sampled_by_teacher(
    trainer: L.Trainer, module: Any, prompts: Sequence[str], num_steps: int, guidance: float
) -> dict[str, Any] | None:
    """Describe images of the teacher, of which image i has seed i.

    Args:
        trainer: The Trainer.
        module: The module with the teacher.
        prompts: The prompt of each image.
        num_steps: The teacher's steps.
        guidance: Its guidance scale.

    Returns:
        The description; None if the teacher's weights are spread over processes, or its text
        encoders were dropped.
    """
    if is_sharded(module.teacher.network) or module.teacher.remembered is not None:
        return None
    identity = teacher_hash(module.teacher, prompts)
    precision = str(trainer.precision)
    return sampled(identity, prompts, num_steps, guidance, module.device, precision)
