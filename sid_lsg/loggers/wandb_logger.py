"""Weights & Biases: online where that is possible, offline where not, and never waiting.

Importing wandb takes as long as importing torch, so it is left to the runs that use it.
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

_PATIENCE = 4.0  # seconds for W&B's server to answer at all


class WandbLogger(LightningWandbLogger):
    """Log curves over the images seen, pictures and the configuration to Weights & Biases.

    Without an API key, or where W&B's server does not answer, the run is logged offline, with a
    warning that says how to send it later; nothing ever asks for input. WANDB_MODE (online,
    offline, disabled), where it is set, decides instead.
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
        """Describe the run; W&B is not touched before the run begins.

        Args:
            project: W&B project. In a sweep, project, entity and id are the sweep's.
            name: Name of the run; by default that of the run directory, in a sweep W&B's.
            tags: Tags of the run.
            group: Group of runs that W&B shows together.
            notes: A description of the run.
            entity: User or team; by default the account's.
            save_dir: Where the folder `wandb` is written; a relative one lies inside the run
                directory.
            offline: Log to that folder only, for `wandb sync` later.
            id: W&B's identifier of a run to continue. By default a run directory that is continued
                (--ckpt_path) continues its own run, if that was online.
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
        """Return the W&B run; the first use begins it."""
        import wandb

        attached = wandb.run is not None or getattr(self, "_attach_id", None) is not None
        if self._experiment is None and not attached:
            self._experiment = self._begin()
            # "*" is every other metric: each is drawn over the images seen.
            self._experiment.define_metric("images_seen")
            self._experiment.define_metric("*", step_metric="images_seen", step_sync=True)
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row; one that does not say how many images the run has seen is told by its step."""
        row = dict(metrics)
        if step and "images_seen" in row:
            self._images_per_step = row["images_seen"] / step
        elif step is not None and self._images_per_step is not None:
            row["images_seen"] = step * self._images_per_step
        super().log_metrics(row, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Store the configuration, and learn from it how many images an iteration sees."""
        with suppress(KeyError, TypeError):
            self._images_per_step = float(params["data"]["batch_size"])
        super().log_hyperparams(params)

    # ------------------------------------------------------------------ how the run begins

    def _begin(self) -> Any:
        """Begin the run: as it was asked for, or else online if that works."""
        import wandb

        # Where tables' pictures wait to be sent: with the run, for an offline run is sent later.
        # Before anything else, for wandb warns of what its environment says later.
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(self._save_dir).absolute() / "wandb"))
        asked = "offline" if self._asked_offline else _asked_mode()
        if asked is not None:
            try:
                return self._init(asked)
            except wandb.errors.Error as error:
                raise UsageError(
                    f"WANDB_MODE is {asked!r}, but W&B did not begin a run ({_line(error)}). "
                    "`wandb login` stores an API key; WANDB_MODE=offline logs without W&B's server."
                ) from error
        url = wandb.setup().settings.base_url
        reason = None if _answers(url, _PATIENCE) else f"{url} does not answer"
        if reason is None:
            try:
                return self._init("online")
            except wandb.errors.Error as error:
                reason = _line(error)
        run = self._init("offline")
        rank_zero_warn(
            f"W&B logs this run offline, since {reason}. To send it later: `wandb login`, then "
            f"`wandb sync {Path(run.dir).parent}`. WANDB_MODE=offline makes this the choice."
        )
        return run

    def _init(self, mode: str) -> Any:
        """Begin the run in one mode."""
        import wandb

        options = self._wandb_init | {"mode": mode, "resume": None}
        if sweep_run():
            options |= {"project": None, "entity": None, "id": None}  # the agent's environment
        else:
            options["name"] = options["name"] or Path(self._save_dir).absolute().name
        if mode == "online":
            options["id"] = options["id"] or self._earlier_run()
            options["resume"] = "allow"
        with _no_input():
            return wandb.init(**options)

    def _earlier_run(self) -> str | None:
        """Find the online run of this run directory: only a continued run finds one here.

        An offline run is not continued: sending its two parts would make the second replace the
        first.
        """
        folder = Path(self._save_dir)
        latest = (folder / "wandb" / "latest-run").resolve().name
        found = re.fullmatch(r"run-\d{8}_\d{6}-(.+)", latest)
        return found[1] if found and (folder / CONFIG).is_file() else None


def _asked_mode() -> str | None:
    """Return the mode that the environment or W&B's settings ask for.

    Raises:
        UsageError: If they hold what wandb does not accept.
    """
    import wandb

    try:
        mode = wandb.setup().settings.mode
    except ValueError as error:
        raise UsageError(
            f"W&B's settings (WANDB_* variables, ~/.config/wandb/settings) are refused by wandb: "
            f"{_line(error)}. Correct them."
        ) from error
    return mode if os.environ.get("WANDB_MODE") or mode != "online" else None


def _answers(url: str, seconds: float) -> bool:
    """Ask a server for anything at all; a name server that hangs counts as no answer too."""
    answers = []

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):
            try:
                request = urllib.request.Request(url, method="HEAD")
                urllib.request.urlopen(request, timeout=seconds).close()
            except urllib.error.URLError as error:
                # A status, or a certificate that Python cannot check, is an answer.
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
    """Hide the terminal, so that wandb raises an error where it would ask for a key and wait."""
    stdin = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = stdin


def _line(error: Exception) -> str:
    """Say an error in one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
