"""The callback's hooks at a signal, with the parts of a Trainer that they use."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from sid_lsg.callbacks import Checkpoint, Interruption
from sid_lsg.distributed.signals import ending_on_signals
from sid_lsg.messages.errors import Interrupted

pytestmark = pytest.mark.slow


def test_training_in_a_thread_installs_no_handlers() -> None:
    """Python delivers signals only to the main thread."""
    problems: list[BaseException] = []

    def train() -> None:
        try:
            with ending_on_signals():
                run(Interruption(), trainer())
        except BaseException as error:
            problems.append(error)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert problems == []
    assert signal.getsignal(signal.SIGTERM) is before


def trainer(**more: Any) -> Any:
    """Build the parts of a Trainer that the callback uses."""
    connector = SimpleNamespace(cluster_environment=None)
    values = {
        "_signal_connector": SimpleNamespace(),
        "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace()),
        "_accelerator_connector": connector,
        "strategy": SimpleNamespace(launcher=None),
        "callbacks": [],
        "loggers": [],
        "world_size": 1,
        "global_step": 1,
        "is_global_zero": True,
    }
    return SimpleNamespace(**values | more)


def run(interruption: Interruption, trainer: Any, *signals: int) -> None:
    """Call the hooks of a run of one iteration, with signals during the iteration."""
    module: Any = None
    interruption.setup(trainer, module, "fit")
    interruption.on_fit_start(trainer, module)
    try:
        interruption.on_train_start(trainer, module)
        for number in signals:
            signal.raise_signal(number)
        interruption.on_train_batch_start(trainer, module, None, 1)
        interruption.on_trained(trainer, module)
    except BaseException as error:
        interruption.on_exception(trainer, module, error)
        raise
    finally:
        interruption.teardown(trainer, module, "fit")


def test_an_interruption_without_checkpoints_says_so() -> None:
    with pytest.raises(Interrupted, match="SIGTERM after iteration 1: nothing was saved"):
        run(Interruption(), trainer(), signal.SIGTERM)


def test_a_signal_after_the_last_iteration_skips_the_comparison() -> None:
    interruption, only = Interruption(), trainer()
    interruption.setup(only, None, "fit")  # type: ignore[arg-type]
    interruption.on_fit_start(only, None)  # type: ignore[arg-type]
    interruption.on_train_start(only, None)  # type: ignore[arg-type]
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="complete and saved") as end:
        interruption.on_trained(only, None)  # type: ignore[arg-type]
    assert end.value.code == 143


def test_a_signal_during_setup_kills_the_launched_processes() -> None:
    """The child ignores SIGTERM, like a process that waits for others."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); input()"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdin=subprocess.PIPE)
    launcher = SimpleNamespace(procs=[child])
    early = trainer(strategy=SimpleNamespace(launcher=launcher))
    with pytest.raises(Interrupted):  # after an iteration, the other processes know of the signal
        run(Interruption(), early, signal.SIGTERM)
    assert child.poll() is None
    Interruption().on_exception(early, None, Interrupted("", 143))  # type: ignore[arg-type]
    assert child.poll() == -signal.SIGKILL
    assert launcher.procs == []  # Lightning's observer looks there for dead processes


def test_a_requeue_signal_is_handled_between_iterations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning would save in the middle, when only one of the networks has been trained."""
    done: list[str] = []
    checkpoint = Checkpoint()
    monkeypatch.setattr(checkpoint, "save", lambda trainer: done.append("saved") or Path("x.ckpt"))
    environment = SLURMEnvironment(requeue_signal=signal.SIGUSR1)
    connector = SimpleNamespace(cluster_environment=environment)
    slurm = trainer(_accelerator_connector=connector, callbacks=[checkpoint])
    before = signal.signal(signal.SIGUSR1, lambda *_: done.append("requeued"))
    try:
        interruption = Interruption()
        run(interruption, slurm, signal.SIGUSR1)
        assert done == ["saved", "requeued"]
        interruption.on_train_batch_start(slurm, None, None, 2)  # type: ignore[arg-type]
        assert done == ["saved", "requeued"]  # only once
        signal.signal(signal.SIGUSR1, lambda *_: done.append("again"))
        with pytest.raises(Interrupted, match="SIGTERM after iteration 1: the state is saved"):
            run(Interruption(), slurm, signal.SIGUSR1, signal.SIGTERM)
        assert done == ["saved", "requeued", "saved", "again"]
        signal.signal(signal.SIGUSR1, lambda *_: done.append("at the end"))
        interruption = Interruption()
        run(interruption, slurm)
        signal.raise_signal(signal.SIGUSR1)  # in the last iteration
        interruption.on_trained(slurm, None)  # type: ignore[arg-type]
        assert done[4:] == ["saved", "at the end"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_lightning_still_has_the_functions_that_are_replaced() -> None:
    """They are replaced by name: they run collective operations, one in a signal handler."""
    assert callable(_SignalConnector._sigterm_notifier_fn)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_signal_handlers_are_restored() -> None:
    both = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in both]
    run(Interruption(), trainer())
    with pytest.raises(Interrupted):
        run(Interruption(), trainer(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in both] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(both)
