"""Create, lock and describe the run directory, which holds all files of a run."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from sid_lsg.checkpoints.opening import OpenCheckpoint
from sid_lsg.checkpoints.resume import open_resumed
from sid_lsg.files.locks import check_free, held
from sid_lsg.files.replacing import check_writable, remove_leftovers, replacing, writing
from sid_lsg.files.run_files import CONFIG
from sid_lsg.loggers.sweep import sweep_run
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.reading import read_yaml

_OPTION = "trainer.default_root_dir"
_JOB = ".job"  # names the job that wrote to the directory last
_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")

# The parser cannot save a class's default that is a choice, such as that of Lightning's Timer.
yaml.SafeDumper.add_multi_representer(
    Enum, lambda dumper, value: dumper.represent_data(value.value)
)


def continue_restarted(config: Any) -> None:
    """Set --ckpt_path last for a job that SLURM or torchrun has restarted.

    The run's own checkpoints come before the one that the command names: that one would undo the
    progress since the first start. Until the run has one, the command's is used. The checkpoints of
    an earlier job in the same directory are not its own.

    Args:
        config: The configuration of `fit`, changed in place.
    """
    counts = (os.environ.get(name, "0") for name in _RESTARTS)
    if all(count == "0" for count in counts):
        return
    root = Path(config.trainer.default_root_dir)
    if (before := _read_job(root)) and _job() not in ("", before):
        return
    folder = root / "checkpoints"
    given, own = config.get("ckpt_path"), any(folder.glob("*.ckpt"))
    if not given or (given != "last" and own):
        config.ckpt_path = "last"
        if given:
            rank_zero_info(
                f"--ckpt_path: this job was restarted, so the run continues from its own newest "
                f"checkpoint instead of {str(given)!r}."
            )


def check_files(config: Any) -> OpenCheckpoint | None:
    """Open the checkpoint to continue from, and check that the run directory can be used.

    Args:
        config: The configuration of `fit`.

    Returns:
        The checkpoint; None for a new run.

    Raises:
        UsageError: If another run uses the directory, it cannot be written to, or the checkpoint
            cannot be used.
    """
    root = Path(config.trainer.default_root_dir or ".").absolute()
    if rank_zero_only.rank == 0:
        with writing(root, _OPTION):
            check_free(root, _in_use(root))
    found = open_resumed(config.get("ckpt_path"), root / "checkpoints")
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UsageError(
            f"--{_OPTION}: cannot write to {str(root)!r}, since {str(nearest)!r} "
            "is not a directory or cannot be written to. Choose another directory."
        )
    return found


def put_inside(trainer: Any) -> None:
    """Place the loggers' relative folders inside the run directory.

    In a W&B sweep the run directory is a subfolder of the configured one, named by W&B's run id.
    Otherwise agents that run at the same time would rename each other's run directory.

    Args:
        trainer: The configuration's `trainer` section, changed in place.
    """
    root = Path(trainer.get("default_root_dir") or "runs/default", sweep_run() or "")
    trainer.default_root_dir = str(root)
    for options in _with_folders(trainer):
        options.save_dir = str(root / (options.save_dir or "."))


def _with_folders(trainer: Any) -> Iterator[Any]:
    """Yield the options of the loggers that write to a folder."""
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        options = logger.get("init_args") if hasattr(logger, "get") else None
        if options is not None and "save_dir" in options:
            yield options


def is_of_run(ckpt_path: str | None, root: Path) -> bool:
    """Return True if resuming from this checkpoint continues the run in a run directory."""
    if ckpt_path in (None, "last", "hpc"):
        return ckpt_path is not None
    return Path(ckpt_path).resolve().is_relative_to(root.resolve())


@contextmanager
def run_directory(root: Path, resumes: bool) -> Iterator[None]:
    """Create the run directory, and lock it for this run.

    The directory of an earlier run is renamed, unless this run continues it. Only the first process
    does this.

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
                with lock.pop_all():  # the earlier run may be continued at the same time
                    lock.enter_context(held(root, _in_use(root)))
            (root / _JOB).write_text(f"{_job() or '-'}\n")
        yield


def _job() -> str:
    """Return the name of the job of SLURM or torchrun; "" if there is none."""
    torchrun = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # "none" without an option
    return os.environ.get("SLURM_JOB_ID") or ("" if torchrun == "none" else torchrun)


def _read_job(root: Path) -> str:
    """Return the job that wrote to a run directory last; "" if it is unknown."""
    try:
        return (root / _JOB).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _in_use(root: Path) -> str:
    return (
        f"--{_OPTION}: another run is writing to {str(root)!r}. Wait for it, stop it, or choose "
        "another directory."
    )


def config_of(trainer: L.Trainer) -> dict[str, Any] | None:
    """Return the configuration that the first process has saved for this run.

    Returns:
        The configuration; None on other processes, and without the command line.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfig) and callback.saved:
            return cast(dict[str, Any], read_yaml(callback.saved))
    return None


class SaveConfig(SaveConfigCallback):
    """Save the resolved configuration in the run directory, and log it.

    Attributes:
        saved: The text of the saved file; "" on processes that do not save it.
    """

    saved = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save the configuration with relative logger folders; log it with kappa_1..kappa_4.

        Options that were left out and follow the teacher are saved with its values.
        """
        if not trainer.is_global_zero:
            return
        root = Path(trainer.default_root_dir)
        config = self.config.clone()
        for name, value in getattr(pl_module, "chosen", dict)().items():
            config[f"model.{name}"] = value
        for options in _with_folders(config.get("trainer") or {}):
            if Path(options.save_dir).is_relative_to(root):
                options.save_dir = str(Path(options.save_dir).relative_to(root))
        with writing(root, _OPTION), replacing(root / CONFIG) as temporary:
            self.parser.save(config, temporary, skip_none=False, overwrite=True, multifile=False)
        self.saved = (root / CONFIG).read_text(encoding="utf-8")
        values = read_yaml(self.saved)
        kappas = getattr(pl_module, "kappas", ())
        values |= {f"kappa_{i}": float(kappa) for i, kappa in enumerate(kappas, start=1)}
        for logger in trainer.loggers:
            logger.log_hyperparams(values)
