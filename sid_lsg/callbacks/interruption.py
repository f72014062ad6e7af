"""SIGTERM and Ctrl-C end a run between two iterations, with everything saved."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment

from sid_lsg.distributed.signals import ENDING, NAMES, install, interrupted
from sid_lsg.messages.errors import Interrupted
from sid_lsg.training.bad_samples import Reading
from sid_lsg.training.callback import RunCallback, Saver, find


class Interruption(RunCallback):
    """At SIGTERM or Ctrl-C finish the iteration, save a checkpoint and end the run.

    Evaluation and saving belong to an iteration: they are finished too, so that a continued run
    lacks nothing. All processes stop after the same iteration, whichever of them had the signal;
    to learn of it without a wait for their devices, they finish the next one too. A second Ctrl-C
    ends the program at once; the last checkpoint stays valid. A signal to requeue the job (SLURM)
    saves a checkpoint first and is then answered by Lightning, between iterations.

    List it before other callbacks: the end of a training that has been interrupted is its too.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._ending = 0  # the signal that came and ends the run, SIGTERM or Ctrl-C
        self._interrupts = 0  # how often Ctrl-C came
        self._requeuing = 0  # the signal that came and asks to requeue the job
        self._requeue: Any = None  # who answers that
        self._told: Reading | None = None  # what several processes have told each other last
        self._agreed_on = False  # whether all processes know that the run ends
        self._previous: dict[int, Any] = {}  # who handled the signals before the training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep Lightning from answering SIGTERM, and from asking for it.

        Its handler starts a collective operation in the middle of whatever the processes are doing,
        and ends the run without saving. Before each iteration it lets several processes wait for
        their devices, to hear whether the first one has had the signal.
        """
        trainer._signal_connector._sigterm_notifier_fn = _nothing
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing
        self._pid, self._trainer = os.getpid(), trainer

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Block the signals until the training begins.

        The processes that read the data start meanwhile and stay deaf: a scheduler, or a terminal,
        signals them too, and they are to end with the training, not before it.
        """
        if threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            self._previous = {number: signal.getsignal(number) for number in ENDING}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over from whatever handles the signals."""
        if not self._previous:
            return
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = signal.getsignal(environment.requeue_signal)
            install(self._note, (environment.requeue_signal,))  # handed back by the Trainer
        install(self._note, ENDING)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Answer what came before, now that an iteration is complete and logged.

        Raises:
            Interrupted: To end the run.
        """
        ending, requeuing = self._agreed(trainer)
        saved = self._save(trainer) if ending or requeuing else None
        if requeuing:
            self._answer(requeuing, trainer, saved)
        if ending:
            when = f"{NAMES[ending]} after iteration {trainer.global_step}"
            hint = "Continue with the same command and --ckpt_path last."
            what = f"the state is saved, {saved}. {hint}" if saved else "nothing was saved."
            raise interrupted(f"{when}: {what}", ending)
        self._tell(trainer)  # after the answer: what has been answered is not told again

    def on_trained(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the final comparison, if a signal came too late to end the training.

        Raises:
            Interrupted: To end the run.
        """
        self._release()
        self._tell(trainer)
        ending, requeuing = self._agreed(trainer)
        if requeuing:
            self._answer(requeuing, trainer, self._save(trainer))
        if ending:
            when = f"{NAMES[ending]} after the last iteration, {trainer.global_step}"
            rest = "--ckpt_path last makes up for the final comparison"
            raise interrupted(f"{when}: the training is complete and saved; {rest}.", ending)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Hand the signals back; end the processes that Lightning has launched, if they go on."""
        self._release()
        if isinstance(exception, Interrupted) and not self._agreed_on:
            _kill_launched(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Hand the signals back."""
        self._release()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        """Remember a signal; at the second Ctrl-C, end the program."""
        if os.getpid() != self._pid:  # a process that some library has forked
            raise interrupted("", signum)
        if signum not in ENDING:
            self._requeuing = signum
            return
        self._ending = self._ending or signum
        if signum != signal.SIGINT:
            return
        self._interrupts += 1
        if self._interrupts > 1:
            _kill_launched(self._trainer)
            os._exit(128 + signum)  # an exception might be waited for, in other processes
        if self._trainer.is_global_zero:
            # print() must not be entered twice, and this may be in the middle of one.
            os.write(2, b"\nCtrl-C: finishing the iteration; once more to end at once.\n")

    def _tell(self, trainer: L.Trainer) -> None:
        """Let all processes know what this one has received. For all processes."""
        if trainer.world_size == 1:
            return
        device = trainer.strategy.root_device
        mine = torch.tensor([self._ending, self._requeuing], pin_memory=device.type == "cuda")
        shared = mine.to(device, non_blocking=True)  # from pinned memory: others' copies wait
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        self._told = Reading(shared)

    def _agreed(self, trainer: L.Trainer) -> tuple[int, int]:
        """Return the signals that any process has received, 0 for none: to end, to requeue.

        Several processes go by what they told each other an iteration ago: that is the same for
        all of them, and has long arrived.
        """
        ending, requeuing = self._ending, self._requeuing
        if trainer.world_size > 1:
            ending, requeuing = self._told.tolist() if self._told else (0, 0)
        self._agreed_on = bool(ending)
        return ending, requeuing

    def _answer(self, requeuing: int, trainer: L.Trainer, saved: Path | None) -> None:
        """Let Lightning requeue the job, once."""
        self._requeuing = 0
        if callable(self._requeue):
            if saved:  # Lightning would save once more, into a file that is never deleted
                trainer.save_checkpoint = _nothing
            self._requeue(requeuing, None)
            vars(trainer).pop("save_checkpoint", None)

    def _save(self, trainer: L.Trainer) -> Path | None:
        """Save a checkpoint, if there is anything to save; return the file."""
        checkpoint = find(trainer, Saver)
        return checkpoint.save(trainer) if checkpoint and trainer.global_step else None

    def _release(self) -> None:
        """Restore who handled the signals before the training."""
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _kill_launched(trainer: L.Trainer) -> None:
    """End the processes that Lightning has launched at once: they have nothing to finish.

    They may be waiting for this one, deaf to other signals, and would complain at length when it is
    gone. Lightning's observer, which answers a death with death, does not see them any more.
    """
    launched = getattr(trainer.strategy.launcher, "procs", [])
    processes = [*launched]
    launched.clear()
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _nothing(*_: Any) -> None:
    """Do nothing."""
