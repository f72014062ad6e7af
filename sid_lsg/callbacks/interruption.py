"""End a run between two iterations, saved: at a signal, or when a foreign callback failed."""

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

from sid_lsg.distributed.failures import Place, place_of, share_failure, watch
from sid_lsg.distributed.processes import gather
from sid_lsg.distributed.signals import NAMES, install, interrupted, leave_terminal
from sid_lsg.messages.errors import Interrupted, UsageError
from sid_lsg.training.bad_samples import Reading
from sid_lsg.training.callback import Leaver, Saver, find
from sid_lsg.training.foreign import Guard


class Interruption(Leaver):
    """At SIGTERM, Ctrl-C and similar signals, finish the iteration, save and end the run.

    The iteration is saved. Its evaluations are skipped, or left before their next batch; a
    continued run makes up for them, so its log is complete.
    All processes stop after the same iteration, whichever of them received the signal. They run one
    more iteration, because exchanging signals without waiting for the devices takes one. A second
    Ctrl-C ends the program at once; the last checkpoint stays valid. At a signal to requeue the job
    (SLURM) a checkpoint is saved before Lightning handles the signal, between two iterations.
    SIGHUP (a closed terminal), SIGUSR2, SIGXCPU (the limit of CPU time) and, outside SLURM, SIGUSR1
    end a run as SIGTERM does.

    A run also ends in this way after a callback of another package has raised an error. Such an
    error after the last iteration is reported when the results are complete.

    List this callback before the others, so that an interrupted training skips their last work.
    """

    def __init__(self) -> None:
        """Start without signals."""
        self._ending = 0  # the received signal that ends the run
        self._interrupts = 0  # how many SIGINT were received
        self._requeuing = 0  # the received signal to requeue the job
        self._requeue: Any = None  # Lightning's handler of that signal
        self._told: Reading | None = None  # the last exchange between the processes
        self._over = False  # whether the training has ended
        self._checked = False  # whether the last signals have been handled
        self._agreed_on = False  # whether all processes know that the run ends
        self._previous: dict[int, Any] = {}  # the handlers before the training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Disable Lightning's handling of SIGTERM, and watch for failures of other processes.

        Its handler starts a collective operation at any point of an iteration, and ends the run
        without saving. Before each iteration it also makes several processes wait for their devices
        to learn whether the first one has received the signal.
        """
        trainer._signal_connector._sigterm_notifier_fn = _nothing
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing
        self._pid, self._trainer = os.getpid(), trainer
        self._guard, self._signals = Guard(trainer), tuple(NAMES)
        if trainer.world_size > 1 and (place := _place(trainer)):
            launched = getattr(trainer.strategy.launcher, "procs", [])
            watch(place, launched.clear)  # Lightning's observer would kill this process

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Block the signals until the training starts.

        The data loader's workers start meanwhile and keep the signals blocked. A scheduler or a
        terminal signals them too, but they have to live until the training ends.
        """
        if threading.current_thread() is threading.main_thread():
            requeue = _requeue_signal(trainer)
            self._signals = tuple(number for number in NAMES if number != requeue)
            signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
            self._previous = {number: signal.getsignal(number) for number in self._signals}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the handlers of this callback."""
        self._guard.active = True
        if not self._previous:
            return
        if requeue := _requeue_signal(trainer):
            self._requeue = signal.getsignal(requeue)
            install(self._note, (requeue,))  # the Trainer restores the handler
        install(self._note, self._signals)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Handle the received signals, now that an iteration is complete and logged.

        Raises:
            Interrupted: To end the run.
            UsageError: If a foreign callback has failed.
        """
        ending, requeuing, failed, due, written = self._agreed(trainer)
        if failed and not ending:
            self._fail(trainer)
        self._handle(trainer, ending, requeuing)
        saver = find(trainer, Saver)
        if due and saver:
            saver.ask()
        if written and saver:
            saver.conclude(trainer)
        self._tell(trainer)  # after handling them, so that no signal is sent twice

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that a signal now skips the rest."""
        self._over = True

    def on_iterated(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Skip the last evaluations too, if a signal came after the last iteration."""
        if self._over:
            self.on_trained(trainer, pl_module)
            self._checked = True

    def leave(self, trainer: L.Trainer) -> None:
        """End the run if any process has received a signal, between two batches of an evaluation.

        Raises:
            Interrupted: To end the run.
        """
        if self._over or not self._previous:  # other handlers end the run at once
            return
        numbers = torch.tensor([self._ending, self._requeuing], device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        ending, requeuing = numbers.tolist()
        self._agreed_on = bool(ending)
        self._handle(trainer, ending, requeuing)

    def _handle(self, trainer: L.Trainer, ending: int, requeuing: int) -> None:
        """Save and requeue or end the run, as all processes have agreed.

        Raises:
            Interrupted: To end the run.
        """
        saved = self._save(trainer) if ending or requeuing else None
        if requeuing:
            self._answer(requeuing, trainer, saved)
        if ending:
            when = f"{NAMES[ending]} after iteration {trainer.global_step}"
            hint = "Continue with the same command and --ckpt_path last."
            what = f"the state is saved, {saved}. {hint}" if saved else "nothing was saved."
            raise interrupted(f"{when}: {what}", ending, together=True)

    def on_trained(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Skip the final comparison if a signal came after the last iteration.

        Raises:
            Interrupted: To end the run.
        """
        if self._checked:
            return
        self._release()
        self._tell(trainer)
        ending, requeuing, *_ = self._agreed(trainer)
        if requeuing:
            self._answer(requeuing, trainer, self._save(trainer))
        if ending:
            when = f"{NAMES[ending]} after the last iteration, {trainer.global_step}"
            rest = "--ckpt_path last makes up for the final comparison"
            what = f"the training is complete and saved; {rest}."
            raise interrupted(f"{when}: {what}", ending, together=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Restore the handlers; end processes that do not know of the end."""
        self._release()
        share_failure(exception)
        if isinstance(exception, Interrupted) and not self._agreed_on:
            _kill_launched(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the handlers."""
        self._release()

    def on_checkpoint(self, trainer: L.Trainer) -> None:
        """Try loggers that have failed again."""
        self._guard.loggers.revive()

    def on_ended(self, trainer: L.Trainer) -> None:
        """Report a foreign callback that failed after the last iteration, or a foreign logger.

        Raises:
            UsageError: If there is one.
        """
        self._guard.check()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal; end the program at the second Ctrl-C."""
        if os.getpid() != self._pid:  # in a process that a library has forked
            raise interrupted("", signum)
        if signum not in self._signals:
            self._requeuing = signum
            return
        leave_terminal(signum)
        self._ending = self._ending or signum
        if signum != signal.SIGINT:
            return
        self._interrupts += 1
        if self._interrupts > 1:
            _kill_launched(self._trainer)
            os._exit(128 + signum)  # an exception could wait for other processes
        if self._trainer.is_global_zero:
            # print() is not reentrant, and the signal may have interrupted one.
            os.write(2, b"\nCtrl-C: finishing the iteration; once more to end at once.\n")

    def _tell(self, trainer: L.Trainer) -> None:
        """Send the received signals to all processes. For all ranks."""
        if trainer.world_size == 1:
            return
        device = trainer.strategy.root_device
        own = self._own(trainer)
        mine = torch.tensor(own, pin_memory=device.type == "cuda")
        shared = mine.to(device, non_blocking=True)  # asynchronous from pinned memory only
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        self._told = Reading(shared)

    def _own(self, trainer: L.Trainer) -> list[int]:
        """Return what this process has met; the first one's clock decides when to save."""
        saver = find(trainer, Saver) if trainer.is_global_zero else None
        due = saver is not None and saver.wants_to_save
        written = saver is not None and saver.has_written(trainer)
        failed = bool(self._guard.failure)
        return [self._ending, self._requeuing, int(failed), int(due), int(written)]

    def _agreed(self, trainer: L.Trainer) -> list[int]:
        """Return what any process has met, 0 for nothing.

        A signal to end, one to requeue, a failed callback, whether a checkpoint is due, and whether
        one is written.

        Several processes use the exchange of the previous iteration, which is the same on all of
        them and has already arrived.
        """
        if trainer.world_size > 1:
            agreed = self._told.tolist() if self._told else [0] * 5
        else:
            agreed = self._own(trainer)
        ending, _, failed, *_ = agreed
        self._agreed_on = bool(ending or failed)
        return agreed

    def _fail(self, trainer: L.Trainer) -> None:
        """Save, and end the run because of a foreign callback. For all ranks.

        Raises:
            UsageError: Always.
        """
        failures = [failure for failure in gather([self._guard.failure]) if failure]
        hint = "Correct or remove it, and continue with --ckpt_path last."
        try:
            saved = self._save(trainer)
            what = f"The state is saved, {saved}."
            if not saved:
                what, hint = "Nothing was saved.", "Correct or remove it."
        except UsageError as error:
            what = str(error)
        raise UsageError(f"{failures[0]} {what} {hint}")

    def _answer(self, requeuing: int, trainer: L.Trainer, saved: Path | None) -> None:
        """Let Lightning requeue the job once."""
        self._requeuing = 0
        if callable(self._requeue):
            if saved:  # Lightning would save another file, which is never deleted
                trainer.save_checkpoint = _nothing
            self._requeue(requeuing, None)
            vars(trainer).pop("save_checkpoint", None)

    def _save(self, trainer: L.Trainer) -> Path | None:
        """Save a checkpoint, if there is anything to save, and return the file."""
        checkpoint = find(trainer, Saver)
        return checkpoint.save(trainer) if checkpoint and trainer.global_step else None

    def _release(self) -> None:
        """Restore the handlers from before the training."""
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)


def _place(trainer: L.Trainer) -> Place | None:
    """Return where the processes' store is; None without one, for example with MPI."""
    environment = trainer._accelerator_connector.cluster_environment
    if not dist.is_initialized() or environment is None:
        return None
    return place_of(environment, trainer.is_global_zero, trainer.world_size)


def _requeue_signal(trainer: L.Trainer) -> int | None:
    """Return the signal at which SLURM's job is requeued; None outside SLURM."""
    environment = trainer._accelerator_connector.cluster_environment
    requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    return environment.requeue_signal if requeues else None


def _kill_launched(trainer: L.Trainer) -> None:
    """Kill the processes that Lightning has launched, which have nothing to finish.

    They may be waiting for this process with the signals blocked, and would print long errors when
    it ends. They are removed from the list of Lightning's observer, which would kill this process.
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
