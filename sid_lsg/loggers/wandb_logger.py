"""Log to Weights & Biases: online if possible, otherwise offline, never waiting for input.

Importing wandb takes as long as importing torch, so only runs that use it import it.
"""

import http.client
import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from sid_lsg.files.run_files import CONFIG
from sid_lsg.loggers.sweep import sweep_run
from sid_lsg.messages.errors import UsageError

_DATA = "WANDB_DATA_DIR"
service_died = False  # wandb then blocks the end of the program
_ONLINE = re.compile(r"run-\d{8}_\d{6}-(.+)")  # the folder of an online run, with its id
_PATIENCE = 4.0  # seconds to wait for any answer from W&B's server


class WandbLogger(LightningWandbLogger):
    """Log curves over the images seen, images and the configuration to Weights & Biases.

    Without an API key, or if W&B's server does not answer, the run is logged offline, and a warning
    says how to send it later. Nothing asks for input. If WANDB_MODE (online, offline, disabled) is
    set, it decides instead.
    """

    _experiment: Any

    def __init__(
        self,
        project: str = "sid-lsg",
        name: str | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        notes: str | None = None,
        entity: str | None = None,
        save_dir: str = ".",
        offline: bool = False,
        id: str | None = None,
    ) -> None:
        """Set the options of the W&B run; it starts when something is logged.

        Args:
            project: W&B project. In a sweep, project, entity and id are the sweep's.
            name: Name of the run; by default the run directory's name, in a sweep W&B's.
            tags: Tags of the run.
            group: Group of runs that W&B shows together.
            notes: Description of the run.
            entity: User or team; by default the account's default.
            save_dir: Parent of the folder `wandb`; a relative path starts at the run directory.
            offline: Log only to this folder, for `wandb sync` later.
            id: W&B id of a run to continue. By default a resumed run (--ckpt_path) continues its
                last W&B run that was online.
        """
        super().__init__(
            project=project,
            name=name or None,
            save_dir=save_dir,
            id=id,
            tags=tags,
            group=group,
            notes=notes,
            entity=entity,
        )
        del self._wandb_init["anonymous"]  # wandb warns that it no longer has an effect
        self._asked_offline = offline
        self._images_per_step: float | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the W&B run; start it on first use."""
        import wandb

        attached = wandb.run is not None or getattr(self, "_attach_id", None) is not None
        if self._experiment is None and not attached:
            self._experiment = self._start()
            # "*" stands for every other metric: all are plotted over the images seen.
            self._experiment.define_metric("images_seen")
            self._experiment.define_metric("*", step_metric="images_seen", step_sync=True)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row; derive `images_seen` from the step if it is missing."""
        row = dict(metrics)
        if step and "images_seen" in row:
            self._images_per_step = row["images_seen"] / step
        elif step is not None and self._images_per_step is not None:
            row["images_seen"] = step * self._images_per_step
        super().log_metrics(row, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration, and read the images per iteration from it."""
        with suppress(KeyError, TypeError):
            self._images_per_step = float(params["data"]["batch_size"])
        super().log_hyperparams(params)

    def restart(self) -> None:
        """Start W&B's service and the run again, after the service has died."""
        import wandb
        from wandb.sdk.lib import module

        global service_died
        service_died = True
        with suppress(Exception):  # it cannot reach the service
            wandb.teardown(exit_code=0)
        os.environ.pop("WANDB_SERVICE", None)  # the address of the dead service
        module.unset_globals()
        self._experiment = None
        _ = self.experiment

    # ------------------------------------------------------------------ start of the run

    def _start(self) -> Any:
        """Start the run in the requested mode; by default online, or offline if that fails."""
        import wandb

        # Keep images of tables with the run, because an offline run is sent later. Set this first:
        # wandb warns about later changes of its environment variables.
        os.environ.setdefault(_DATA, str(Path(self._save_dir).absolute() / "wandb"))
        requested = "offline" if self._asked_offline else _requested_mode()
        if requested is not None:
            try:
                return self._init(requested)
            except (wandb.errors.Error, ValueError, OSError) as error:
                raise UsageError(
                    f"WANDB_MODE is {requested!r}, but W&B did not start a run ({_line(error)}). "
                    "`wandb login` stores an API key; WANDB_MODE=offline logs without W&B's server."
                ) from error
        url = wandb.setup().settings.base_url
        reason = None if _answers(url, _PATIENCE) else f"{url} does not answer"
        if reason is None:
            try:
                return self._init("online")
            except (wandb.errors.Error, ValueError, OSError) as error:
                reason = _line(error)
        try:
            run = self._init("offline")
        except (wandb.errors.Error, ValueError, OSError) as error:
            raise UsageError(
                f"--trainer.logger WandbLogger: W&B did not start a run ({_line(error)}). Correct "
                "the logger's options or the WANDB_* variables."
            ) from error
        rank_zero_warn(
            f"W&B logs this run offline: {reason}. To send it later, run `wandb login` and "
            f"`wandb sync {Path(run.dir).parent}`. Set WANDB_MODE=offline to avoid this warning."
        )
        return run

    def _init(self, mode: str) -> Any:
        """Start the run in a mode."""
        import wandb

        options = self._wandb_init | {"mode": mode, "resume": None}
        if sweep_run():
            options |= {"project": None, "entity": None, "id": None}  # the agent sets these
        else:
            options["name"] = options["name"] or Path(self._save_dir).absolute().name
        if mode == "online":
            options["id"] = options["id"] or self._earlier_run()
            options["resume"] = "allow"
        with _no_input():
            return wandb.init(**options)

    def _earlier_run(self) -> str | None:
        """Return the id of the run directory's newest online run; only a resumed run has one.

        An offline run is not continued: when both parts are sent, the second would replace the
        first.
        """
        folder = Path(self._save_dir)
        if not (folder / CONFIG).is_file():
            return None
        names = sorted(path.name for path in (folder / "wandb").glob("run-*"))
        found = [match[1] for name in names if (match := _ONLINE.fullmatch(name))]
        return found[-1] if found else None


def _requested_mode() -> str | None:
    """Return the mode that the environment or W&B's settings request; None if there is none.

    Raises:
        UsageError: If wandb rejects the settings.
    """
    import wandb

    try:
        mode = wandb.setup().settings.mode
    except (ValueError, wandb.errors.Error) as error:
        found = {name for name in os.environ if name.startswith("WANDB_")} - {_DATA}
        given = ", ".join(sorted(found))
        raise UsageError(
            f"wandb rejects its settings (variables {given or 'WANDB_*'}, "
            f"~/.config/wandb/settings): {_line(error)}. Correct them."
        ) from error
    # wandb keeps the settings that it read first in this process; the environment may be newer.
    return os.environ.get("WANDB_MODE") or (mode if mode != "online" else None)


def _answers(url: str, seconds: float) -> bool:
    """Return True if a server answers in time; a hanging name server counts as no answer."""
    answers = []

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):
            try:
                request = urllib.request.Request(url, method="HEAD")
                urllib.request.urlopen(request, timeout=seconds).close()
            except urllib.error.URLError as error:
                # An HTTP status or a certificate that Python cannot verify is an answer.
                certificate = isinstance(error.reason, ssl.SSLCertVerificationError)
                if not (certificate or isinstance(error, urllib.error.HTTPError)):
                    return
            answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


@contextmanager
def _no_input() -> Iterator[None]:
    """Hide the terminal, so that wandb raises an error instead of waiting for a key."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin


def _line(error: Exception) -> str:
    """Return an error's message in one line, without the final full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
