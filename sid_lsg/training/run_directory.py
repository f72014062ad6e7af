"""The run directory: one run, one folder, and nothing of a run outside it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from sid_lsg.checkpoints.resume import check_resume
from sid_lsg.files.locks import check_free, held
from sid_lsg.files.replacing import check_writable, remove_leftovers, replacing, writing
from sid_lsg.messages.errors import UsageError

STRATEGIES = ("auto", "ddp", "ddp_multi", "fsdp2", "fsdp2_sharded", "single_device")
_CLASSES = ("DDPStrategy", "FSDP2Strategy", "SingleDeviceStrategy")
CONFIG_OPTIONS = ("--config", "-c")
_OPTION = "trainer.default_root_dir"
CONFIG = "config.yaml"  # where it is, a run has been


def check_trainer(trainer: Any) -> None:
    """Refuse Trainer options that manual optimization cannot serve, by name.

    Args:
        trainer: The configuration's `trainer` section.

    Raises:
        UsageError: For the first such option.
    """
    if trainer.get("gradient_clip_val") or trainer.get("gradient_clip_algorithm"):
        raise UsageError(
            "--trainer.gradient_clip_val cannot serve two optimizers that take turns. Use "
            "--model.gradient_clip_val and --model.gradient_clip_algorithm."
        )
    if trainer.get("accumulate_grad_batches", 1) not in (None, 1):
        raise UsageError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches} cannot serve two "
            "optimizers that take turns. Set --data.batch_size to the whole batch and "
            "--model.micro_batch_size to what fits on the device."
        )
    if trainer.get("overfit_batches"):
        raise UsageError(
            "--trainer.overfit_batches replaces the order of the prompts. For a short trial use "
            "--trainer.max_steps and a small prompts file."
        )
    if trainer.get("fast_dev_run"):
        raise UsageError(
            "--trainer.fast_dev_run would leave a run without its config and its curves. For a "
            "trial use --trainer.max_steps 1."
        )
    if trainer.get("enable_checkpointing") is False:
        raise UsageError(
            "--trainer.enable_checkpointing: a run always saves its end, from which it may go on. "
            "Leave the option out; --checkpoint.keep 0 keeps that alone, and "
            "--checkpoint.every_n_steps says how often it is saved before."
        )
    precision = str(trainer.get("precision"))
    if precision in ("bf16-true", "16-true"):
        raise UsageError(
            f"--trainer.precision: in {trainer.precision} a step of 1e-6 is lost to rounding. Use "
            "bf16-mixed, 16-mixed or 32-true."
        )
    strategy = trainer.get("strategy", "auto")
    name = strategy if isinstance(strategy, str) else strategy.get("class_path", "")
    if name not in STRATEGIES and not name.endswith(_CLASSES):
        raise UsageError(
            f"--trainer.strategy: {name!r} is not served. Choose one of {', '.join(STRATEGIES)}; "
            "fsdp2 spreads weights and optimizers over all processes."
        )
    if "fsdp2" in name.lower() and precision in ("16", "16-mixed"):
        raise UsageError(
            "--trainer.precision: fsdp2 cannot scale losses for 16-mixed. Use bf16-mixed or "
            "32-true."
        )


def pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """List each argument with what follows it, which is its value if it is an option."""
    return pairwise([*(part for arg in args for part in arg.split("=", 1)), ""])


def check_config_files(args: Sequence[str]) -> None:
    """Refuse a `--config` file that is missing or is not YAML, by its name.

    Raises:
        UsageError: For the first such file.
    """
    for option, value in pairs(args):
        if option not in CONFIG_OPTIONS:
            continue
        if not value or value.startswith("-"):
            raise UsageError("--config names no file. Give one, for example configs/lsg.yaml.")
        try:
            yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--config: cannot read {value!r} ({error}).") from error
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"--config: {value!r} is not valid YAML ({reason}).") from error


def continue_requeued(config: Any) -> None:
    """Let a job that SLURM starts again continue, though its command does not say so.

    Args:
        config: The configuration of `fit`, changed in place.
    """
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" and not config.get("ckpt_path"):
        config.ckpt_path = "last"


def check_files(config: Any) -> None:
    """Refuse a checkpoint that cannot be used, and a run directory that cannot be made or is used.

    Args:
        config: The configuration of `fit`.

    Raises:
        UsageError: For the first of them.
    """
    root = Path(config.trainer.default_root_dir or ".").absolute()
    if rank_zero_only.rank == 0:
        with writing(root, _OPTION):
            check_free(root, _in_use(root))
    check_resume(config.get("ckpt_path"), root / "checkpoints")
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UsageError(
            f"--{_OPTION}: cannot write to {str(root)!r}, since {str(nearest)!r} "
            "is not a directory that can be written to. Choose another directory."
        )


def sweep_run() -> str | None:
    """Return the id of the run that a W&B sweep agent has started this process for."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def put_inside(trainer: Any) -> None:
    """Place the loggers' relative folders inside the run directory.

    In a W&B sweep the run directory is a folder of its own, named by W&B's id of the run, inside
    the one that is configured: agents that work side by side would move each other's aside.

    Args:
        trainer: The configuration's `trainer` section, changed in place.
    """
    root = Path(trainer.get("default_root_dir") or "runs/default", sweep_run() or "")
    trainer.default_root_dir = str(root)
    for options in _with_folders(trainer):
        options.save_dir = str(root / (options.save_dir or "."))


def _with_folders(trainer: Any) -> Iterator[Any]:
    """Find the options of the loggers that have a folder."""
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        options = logger.get("init_args") if hasattr(logger, "get") else None
        if options is not None and "save_dir" in options:
            yield options


def is_of_run(ckpt_path: str | None, root: Path) -> bool:
    """Tell whether a run that begins from this checkpoint continues the one in a run directory."""
    if ckpt_path in (None, "last", "hpc"):
        return ckpt_path is not None
    return Path(ckpt_path).resolve().is_relative_to(root.resolve())


@contextmanager
def run_directory(root: Path, resumes: bool) -> Iterator[None]:
    """Make the run directory, which no other run can use meanwhile.

    An earlier run, with which a fresh one would mix, is moved aside. The first of several processes
    does all this for them.

    Raises:
        UsageError: If the directory cannot be written, or another run uses it.
    """
    if rank_zero_only.rank != 0:
        yield
        return
    check_writable(root, _OPTION)
    with ExitStack() as lock:
        with writing(root, _OPTION):
            lock.enter_context(held(root, _in_use(root)))
            remove_leftovers(root)
            if (root / CONFIG).exists() and not resumes:
                aside = next(path for i in count(1) if not (path := Path(f"{root}.{i}")).exists())
                root.rename(aside)
                rank_zero_info(f"{root} held an earlier run: it is now {aside}.")
                root.mkdir()
                with lock.pop_all():  # the earlier run may be continued beside this one
                    lock.enter_context(held(root, _in_use(root)))
        yield


def _in_use(root: Path) -> str:
    return (
        f"--{_OPTION}: another run is writing to {str(root)!r}. Wait for it, end it, or choose "
        "another directory."
    )


class SaveConfig(SaveConfigCallback):
    """Save the resolved configuration in the run directory, and give it to the loggers."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save it as a config that runs in any directory; log it with kappa_1..kappa_4."""
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        config = self.config.clone()
        for options in _with_folders(config.get("trainer") or {}):
            if Path(options.save_dir).is_relative_to(root):
                options.save_dir = str(Path(options.save_dir).relative_to(root))
        with writing(root, _OPTION), replacing(root / CONFIG) as temporary:
            self.parser.save(config, temporary, skip_none=False, overwrite=True, multifile=False)
        values = yaml.safe_load((root / CONFIG).read_text(encoding="utf-8"))
        kappas = getattr(pl_module, "kappas", ())
        values |= {f"kappa_{i}": float(kappa) for i, kappa in enumerate(kappas, start=1)}
        for logger in trainer.loggers:
            logger.log_hyperparams(values)
