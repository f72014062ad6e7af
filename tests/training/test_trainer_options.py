"""Trainer options that are rejected before a run starts."""

from typing import Any

import pytest
from jsonargparse import Namespace

from sid_lsg.messages.errors import UsageError
from sid_lsg.training.trainer_options import STRATEGIES, check_trainer


def callbacks(*names: str) -> dict[str, Any]:
    paths = [f"lightning.pytorch.callbacks.{name}" for name in names]
    return {"callbacks": [Namespace(class_path=path, init_args=Namespace()) for path in paths]}


def by_class(name: str) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.strategies.{name}", init_args=Namespace())


@pytest.mark.parametrize(
    ("options", "found", "remedy"),
    [
        ({"gradient_clip_val": 1.0}, "gradient_clip_val", "--model.gradients.clip_val"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_val", "--model.gradients.clip_algo"),
        ({"accumulate_grad_batches": 4}, "accumulate_grad_batches", "--model.micro_batch_size"),
        ({"overfit_batches": 1}, "overfit_batches", "--trainer.max_steps"),
        ({"overfit_batches": 0.5}, "overfit_batches", "--trainer.max_steps"),
        ({"limit_train_batches": 0}, "would train nothing", "--trainer.max_steps"),
        ({"limit_train_batches": 0.0}, "would train nothing", "--trainer.max_steps"),
        ({"fast_dev_run": True}, "--trainer.fast_dev_run", "--trainer.max_steps 1"),
        ({"fast_dev_run": 7}, "--trainer.fast_dev_run", "--trainer.max_steps 1"),
        ({"precision": "bf16-true"}, "precision: in bf16-true", "bf16-mixed"),
        ({"precision": "16-true"}, "precision: in 16-true", "16-mixed"),
        ({"strategy": "fsdp"}, "strategy: 'fsdp'", "ddp_multi"),
        ({"strategy": "deepspeed"}, "strategy: 'deepspeed'", "ddp_multi"),
        ({"strategy": by_class("FSDPStrategy")}, "FSDPStrategy' is not supported", "ddp_multi"),
        ({"strategy": "fsdp"}, "strategy: 'fsdp'", "fsdp2 shards weights"),
        ({"strategy": "deepspeed_stage_2"}, "strategy: 'deepspeed_stage_2'", "fsdp2 shards"),
        ({"strategy": by_class("ModelParallelStrategy")}, "is not supported", "fsdp2 shards"),
        ({"precision": "16-mixed", "strategy": "fsdp2"}, "16-mixed", "bf16-mixed"),
        ({"precision": "16-mixed", "strategy": "fsdp2_sharded"}, "16-mixed", "bf16-mixed"),
        (callbacks("BatchSizeFinder"), "BatchSizeFinder does not", "--benchmark.search"),
        ({"callbacks": callbacks("BatchSizeFinder")["callbacks"][0]}, "BatchSizeF", "--benchmark"),
        (callbacks("Timer", "LearningRateFinder"), "LearningRateFinder does not", "`study`"),
        (callbacks("GradientAccumulationScheduler"), "does not support", "--model.micro_batch"),
        (callbacks("StochasticWeightAveraging"), "does not support", "--model.ema.halflife"),
        (callbacks("WeightAveraging"), "does not support two", "--model.ema.halflife"),
        (callbacks("EMAWeightAveraging"), "does not support two", "--model.ema.halflife"),
    ],
)
def test_options_that_alternating_optimizers_cannot_use_are_rejected(
    options: dict[str, Any], found: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_trainer(Namespace(options))
    message = str(caught.value)
    assert message.startswith(f"--trainer.{next(iter(options))[:13]}")
    assert found in message
    assert remedy in message


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "gradient_clip_val": None,
            "accumulate_grad_batches": 1,
            "overfit_batches": 0.0,
            "limit_train_batches": 1.0,
            "fast_dev_run": False,
        },
        {"accumulate_grad_batches": None, "precision": None, "strategy": "auto"},
        {"callbacks": None},
        callbacks("Timer", "ModelSummary", "LearningRateMonitor"),
        *({"precision": name} for name in ("32-true", "bf16-mixed", "16-mixed", "64-true", 32)),
        *({"strategy": name} for name in STRATEGIES),
        {"strategy": by_class("DDPStrategy")},
        {"strategy": Namespace(class_path="sid_lsg.training.strategies.MultiNetDDPStrategy")},
        {"strategy": Namespace(class_path="sid_lsg.training.strategies.FSDP2Strategy")},
        {"strategy": "fsdp2", "precision": "bf16-mixed"},
    ],
)
def test_all_other_options_are_accepted_unchanged(options: dict[str, Any]) -> None:
    before = Namespace(options).clone()
    given = Namespace(options)
    check_trainer(given)
    assert given == before
