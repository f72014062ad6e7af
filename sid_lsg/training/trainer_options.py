"""Reject Trainer options that alternating optimization does not support."""

from typing import Any

from sid_lsg.messages.errors import UsageError

STRATEGIES = ("auto", "ddp", "ddp_multi", "fsdp2", "fsdp2_sharded", "single_device")
_CLASSES = ("DDPStrategy", "FSDP2Strategy", "SingleDeviceStrategy")
_EMA = "The generator has an EMA: see --model.ema.halflife_images."
# Lightning's callbacks that would change the method, or search without an end; and what to use.
_CALLBACKS = {
    "BatchSizeFinder": "`benchmark --benchmark.search true` finds the largest micro-batch.",
    "LearningRateFinder": "Compare learning rates with the command `study`.",
    "GradientAccumulationScheduler": "Accumulate with --model.micro_batch_size.",
    "StochasticWeightAveraging": _EMA,
    "WeightAveraging": _EMA,
    "EMAWeightAveraging": _EMA,
}


def check_trainer(trainer: Any) -> None:
    """Reject Trainer options that manual optimization does not support.

    Args:
        trainer: The configuration's `trainer` section.

    Raises:
        UsageError: For the first such option.
    """
    if trainer.get("gradient_clip_val") or trainer.get("gradient_clip_algorithm"):
        raise UsageError(
            "--trainer.gradient_clip_val does not support two alternating optimizers. Use "
            "--model.gradients.clip_val and --model.gradients.clip_algorithm."
        )
    if trainer.get("accumulate_grad_batches", 1) not in (None, 1):
        raise UsageError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} does not support "
            "two alternating optimizers. Set --data.batch_size to the whole batch and "
            "--model.micro_batch_size to what fits on the device."
        )
    for name in ("max_epochs", "min_epochs"):
        if trainer.get(name) not in (None, -1):
            raise UsageError(
                f"--trainer.{name} {trainer[name]}: a run has no epochs. Set its length with "
                "--trainer.max_steps; one pass over the prompts is their number divided by "
                "--data.batch_size."
            )
    if trainer.get("barebones"):
        raise UsageError(
            "--trainer.barebones would disable checkpoints, the log and all callbacks of a run. "
            "To measure speed, use the command `benchmark`."
        )
    if trainer.get("overfit_batches"):
        raise UsageError(
            "--trainer.overfit_batches would change the order of the prompts. For a short trial, "
            "use --trainer.max_steps and a small prompts file."
        )
    if trainer.get("limit_train_batches") == 0:
        raise UsageError(
            "--trainer.limit_train_batches 0 would train nothing. Set the length of a run with "
            "--trainer.max_steps."
        )
    if trainer.get("fast_dev_run"):
        raise UsageError(
            "--trainer.fast_dev_run would write neither the config nor the log. For a trial use "
            "--trainer.max_steps 1."
        )
    if trainer.get("enable_checkpointing") is False:
        raise UsageError(
            "--trainer.enable_checkpointing: a run always saves a checkpoint at its end. Leave the "
            "option out. --checkpoint.keep 0 keeps only the newest checkpoint, and "
            "--checkpoint.every_n_steps sets how often one is saved."
        )
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(callback.get("class_path", "")).rpartition(".")[2]
        if remedy := _CALLBACKS.get(name):
            raise UsageError(
                f"--trainer.callbacks: {name} does not support two alternating optimizers. {remedy}"
            )
    precision = str(trainer.get("precision"))
    if precision in ("bf16-true", "16-true"):
        raise UsageError(
            f"--trainer.precision: in {trainer.precision}, steps of 1e-6 are lost to rounding. Use "
            "bf16-mixed, 16-mixed or 32-true."
        )
    strategy = trainer.get("strategy", "auto")
    name = strategy if isinstance(strategy, str) else strategy.get("class_path", "")
    if name not in STRATEGIES and not name.endswith(_CLASSES):
        raise UsageError(
            f"--trainer.strategy: {name!r} is not supported. Choose {', '.join(STRATEGIES)}; "
            "fsdp2 shards weights and optimizers over all processes."
        )
    if "fsdp2" in name.lower() and precision in ("16", "16-mixed"):
        raise UsageError(
            "--trainer.precision: fsdp2 does not support the loss scaling of 16-mixed. Use "
            "bf16-mixed or 32-true."
        )
