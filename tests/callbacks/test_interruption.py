"""SIGTERM, Ctrl-C and SLURM's signals, sent to real processes."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import Tensor

from sid_lsg.callbacks import Checkpoint, Interruption, interruption
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.cli import main
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.distributed.signals import NAMES, ending_on_signals
from sid_lsg.messages.errors import Interrupted
from sid_lsg.training.bad_samples import Reading
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.strategies import register_strategies
from tests.helpers import forked
from tests.helpers.operations import Operations, step_counters
from tests.helpers.runs import command, finish, rows, start, temporary, wait, workers

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture
def arguments(small_sd: str, tmp_path: Path) -> list[str]:
    """Return the arguments of a run without scores and without checkpoints on schedule."""
    return [
        *command(small_sd, tmp_path), "--metrics.every_n_images=0", "--health.every_n_images=0",
        "--metrics.clip=null", "--metrics.reference=null", "--checkpoint.every_n_steps=1000000",
        "--trainer.max_steps=1000000",
    ]  # fmt: skip


def saved_step(root: Path) -> int:
    return int(torch.load(root / "checkpoints/last.ckpt", weights_only=True)["global_step"])


def assert_saved(root: Path, said: str, name: str) -> int:
    """Check that the last logged iteration was saved and the run was not finished."""
    step = saved_step(root)
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 1))
    expected = {".job", ".lock", "checkpoints", "config.yaml", "grids", "metrics.csv"}
    found = {path.name for path in root.iterdir()}
    # The first snapshot is due after iteration 5, unless the run ends there.
    assert found == expected | ({"ema_snapshots"} if step > 5 else found & {"ema_snapshots"})
    assert temporary(root) == []
    lines = [line for line in said.splitlines() if line.startswith("interrupted:")]
    path = root / f"checkpoints/{step:07d}.ckpt"
    assert lines == [
        f"interrupted: {name} after iteration {step}: the state is saved, {path}. Continue with "
        "the same command and --ckpt_path last."
    ]
    return step


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGUSR1, "SIGUSR1"),
     (signal.SIGHUP, "SIGHUP (closed terminal)"), (signal.SIGUSR2, "SIGUSR2"),
     (signal.SIGXCPU, "SIGXCPU (limit of CPU time)")],
)  # fmt: skip
def test_a_signal_ends_a_run_between_iterations(
    arguments: list[str], tmp_path: Path, number: signal.Signals, name: str
) -> None:
    """The data workers receive the signal too, as they do from a scheduler or a terminal."""
    root = tmp_path / "run"
    processes = start(arguments, root, 1)
    wait(processes, root / "metrics.csv", 3)
    (pid,) = [process.pid for process in processes]
    assert pid
    for worker in workers(pid):
        os.kill(worker, number)
    time.sleep(0.5)
    assert processes[0].is_alive()  # the data workers ignore the signal
    os.kill(pid, number)
    said = finish(processes, root, 128 + number)
    step = assert_saved(root, said, name)
    said = finish(
        start([*arguments, "--ckpt_path=last", f"--trainer.max_steps={step + 1}"], root, 1), root
    )
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 2))
    assert (root / "generator").is_dir()


def test_a_closed_terminal_ends_a_run_saved(arguments: list[str], tmp_path: Path) -> None:
    """Writing to the terminal fails from then on; the progress bar does in each iteration."""
    root, (master, slave) = tmp_path / "run", pty.openpty()
    shown = [a for a in arguments if "refresh_rate" not in a]
    line = [*shown, "--progress.refresh_rate=1", f"--trainer.default_root_dir={root}"]
    process = forked.start(in_terminal, os.ttyname(slave), line, log=tmp_path / "log")
    reader = threading.Thread(target=drain, args=(master, slave, root / "metrics.csv"), daemon=True)
    reader.start()
    process.join(60)
    process.kill()
    process.join()
    reader.join(10)
    assert process.exitcode == 128 + signal.SIGHUP, (tmp_path / "log").read_text()
    assert [int(row["step"]) for row in rows(root)] == list(range(1, saved_step(root) + 1))


def in_terminal(terminal: str, line: list[str]) -> None:
    """Run a command as the leader of a terminal's session."""
    os.setsid()
    descriptor = os.open(terminal, os.O_RDWR)  # becomes the controlling terminal
    for number in (0, 1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    main(line)


def drain(master: int, slave: int, metrics: Path) -> None:
    """Read what a terminal shows, and close it after three iterations."""
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        if select.select([master], [], [], 0.1)[0]:
            os.read(master, 4096)
    os.close(slave)
    os.close(master)


def test_a_second_ctrl_c_ends_the_run_at_once(arguments: list[str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    big = [a for a in arguments if "batch_size" not in a and "every_n_steps" not in a]
    big += ["--data.batch_size=256", "--model.micro_batch_size=256", "--checkpoint.every_n_steps=1"]
    processes = start(big, root, 1)  # its iterations take seconds
    wait(processes, root / "checkpoints", 2)
    assert processes[0].pid
    os.kill(processes[0].pid, signal.SIGINT)
    time.sleep(0.2)
    assert processes[0].is_alive()
    os.kill(processes[0].pid, signal.SIGINT)
    begin = time.perf_counter()
    said = finish(processes, root, 130)
    assert time.perf_counter() - begin < 1
    assert said.count("once more to end at once") == 1
    assert saved_step(root) >= 1


def test_two_processes_stop_after_the_same_iteration(arguments: list[str], tmp_path: Path) -> None:
    """Only the second process receives the signal; only the first one prints."""
    root = tmp_path / "run"
    processes = start(arguments, root, 2)
    wait(processes, root / "metrics.csv", 3)
    assert processes[1].pid
    os.kill(processes[1].pid, signal.SIGTERM)
    said = finish(processes, root, 143, 0)
    assert_saved(root, said, "SIGTERM")


class Signalled(L.Callback):
    """Send this process a signal during an iteration; 0 means before the first one.

    Count the reads of unsent values from the start of the second iteration to the third's.
    """

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration
        self.counting = ExitStack()
        self.unsent: int | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.iteration == 0:
            signal.raise_signal(signal.SIGTERM)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            operations = Operations(step_counters(trainer.optimizers))
            self.operations = self.counting.enter_context(operations)
        elif trainer.global_step == 2:
            self.counting.close()
            self.unsent = self.operations.reads

    def on_exception(self, *_: Any) -> None:
        self.counting.close()

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.iteration - 1:
            signal.raise_signal(signal.SIGTERM)


def fit(
    folder: Path, teacher: str, strategy: str, iteration: int, signalled: list[int], every: int
) -> None:
    """Train until some ranks receive a signal in an iteration; write a report of this rank."""
    rank, read = int(os.environ["RANK"]), []
    callback = Signalled(iteration if rank in signalled else -1)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        callbacks=[Interruption(), callback, Checkpoint(every_n_steps=every, keep=-1)],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )

    class Dated(Reading):
        """Record the iteration counts at which the numbers are sent and read."""

        def __init__(self, numbers: Tensor) -> None:
            super().__init__(numbers)
            self.sent = trainer.global_step

        def tolist(self) -> list[int]:
            read.append((self.sent, trainer.global_step))
            return super().tolist()

    interruption.Reading = Dated  # type: ignore[attr-defined]
    data = PromptDataModule(str(folder.parent / "prompts.txt"), batch_size=4, num_workers=1)
    with pytest.raises(Interrupted) as end:
        trainer.fit(SiDLSG(teacher), data)
    report = {"said": str(end.value), "step": trainer.global_step, "read": read}
    path = folder / f"report{rank}.json"
    path.write_text(json.dumps(report | {"unsent": callback.unsent}))


def fit_all(folder: Path, teacher: str) -> None:
    register_strategies()
    for number, case in enumerate([*CASES, *SAVING]):
        (folder / str(number)).mkdir(exist_ok=True)
        fit(folder / str(number), teacher, *case)


CASES: list[tuple[str, int, list[int], int]] = [
    *(("ddp_multi", iteration, [iteration % 2], 1000) for iteration in range(STEPS + 1)),
    ("ddp_multi", 2, [1], 1000),
    ("ddp_multi", 2, [0, 1], 1000),
    ("ddp", 2, [1], 1000),
    ("fsdp2", 2, [1], 1000),
]  # strategy, iteration in which the signal comes, ranks that receive it, checkpoints' interval
SAVING = [(strategy, 2, [1], 1) for strategy in ("ddp_multi", "fsdp2", "fsdp2_sharded")]


@pytest.fixture(scope="module")
def ended(small_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all cases in two processes that are started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "prompts.txt").write_text("a red cat\ntwo dogs\na blue bird\nthe moon\nan old book")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(forked.free_port())}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    jobs = [([folder, small_sd], common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    forked.all_end_well(fit_all, jobs, folder)
    return folder


@pytest.mark.parametrize("number", range(len(CASES) + len(SAVING)), ids=map(str, [*CASES, *SAVING]))
def test_all_processes_stop_after_a_signal_to_any(ended: Path, number: int) -> None:
    """They stop after the iteration in which the signal arrives there, and save the state."""
    _, iteration, _, every = [*CASES, *SAVING][number]
    root = ended / str(number)
    first, second = (json.loads((root / f"report{rank}.json").read_text()) for rank in "01")
    if every == 1:
        del first["unsent"], second["unsent"]  # saving sends objects, which are read on arrival
    assert first == second
    step = min(iteration + 1, STEPS)
    content = SafeCheckpointIO().load_checkpoint(root / "checkpoints/last.ckpt")
    assert first["step"] == content["global_step"] == step
    found = sorted(path.name for path in (root / "checkpoints").iterdir())
    saved = range(1, step + 1) if every == 1 else [step]
    assert found == [*(f"{number:07d}.ckpt" for number in saved), "last.ckpt"]
    last = iteration >= STEPS - 1  # a signal in the last two iterations is read after the last one
    when = f"SIGTERM after {'the last iteration, ' if last else 'iteration '}{step}: "
    assert first["said"].startswith(when)


@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
def test_processes_do_not_wait_for_each_others_messages(ended: Path, number: int) -> None:
    """A message is read after the next iteration; only the last one is read immediately.

    Neither this project nor Lightning reads anything that was not sent before.
    """
    report = json.loads((ended / str(number) / "report0.json").read_text())
    last, step = CASES[number][1] >= STEPS - 1, report["step"]
    expected = [[told, told + 1] for told in range(step - last)]
    assert report["read"] == (expected if not last else [*expected, [step, step]])
    assert report["unsent"] == (0 if step > 2 else None)  # None: the run did not get so far


def test_processes_launched_by_lightning_stop_too(arguments: list[str], tmp_path: Path) -> None:
    """A terminal signals all of them at once; the command returns the first one's status."""
    root, log = tmp_path / "run", tmp_path / "log"
    options = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        f"--trainer.default_root_dir={root}",
    ]
    run = forked.start(forked.launch, [*arguments, *options], log=log)
    while not rows(root):
        assert run.is_alive(), log.read_text()[-3000:]
        time.sleep(0.05)
    assert run.pid
    os.killpg(run.pid, signal.SIGINT)
    run.join(60)
    assert run.exitcode == 130
    assert "Traceback" not in log.read_text()
    assert_saved(root, log.read_text(), "Ctrl-C")


LATE = """
import os, time
if os.environ.get("LOCAL_RANK") == "1":
    open({!r}, "w").close()
    time.sleep(3)
"""


def test_a_signal_while_processes_connect_ends_the_run(
    arguments: list[str], tmp_path: Path
) -> None:
    """The first process cannot react while it waits; the other one has only begun to start."""
    root, log, began = tmp_path / "run", tmp_path / "log", tmp_path / "began"
    (tmp_path / "sitecustomize.py").write_text(LATE.format(str(began)))
    options = ["--trainer.devices=2", "--trainer.strategy=ddp_multi"]
    options += [f"--trainer.default_root_dir={root}"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = forked.start(
        forked.launch, [*arguments, *options], log=log, environment={"PYTHONPATH": path}
    )
    while not began.exists() or "GLOBAL_RANK: 0" not in log.read_text():
        assert run.is_alive()
        time.sleep(0.05)
    assert run.pid
    os.killpg(run.pid, signal.SIGTERM)
    run.join(120)
    assert run.exitcode == 143, log.read_text()[-3000:]
    end = log.read_text().splitlines()[-1]
    assert end.startswith("interrupted: SIGTERM. The same command begins or continues what was")
    assert not any(sign in log.read_text() for sign in ("Traceback", "frame #", "interrupted: \n"))


def test_slurm_requeues_a_job(arguments: list[str], tmp_path: Path) -> None:
    """SIGUSR1 announces the time limit: save, requeue and continue. SIGTERM ends the run."""
    root, log, calls = tmp_path / "run", tmp_path / "run.log", tmp_path / "calls"
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    common = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
        "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
        "MASTER_PORT": str(forked.free_port()),
    }  # fmt: skip
    options = ["--trainer.devices=2", "--trainer.strategy=ddp_multi"]
    options += [f"--trainer.default_root_dir={root}"]

    def job(*more: str, **environment: str) -> list[ForkServerProcess]:
        """Start the tasks as srun does."""
        started = []
        for rank in ("0", "1"):
            task = common | environment | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
            line = [*arguments, *options, *more]
            started.append(forked.start(main, line, log=log, environment=task))
        return started

    def send(processes: list[ForkServerProcess], number: signal.Signals) -> None:
        for process in processes:
            assert process.pid
            os.kill(process.pid, number)

    processes = job()
    wait(processes, root / "metrics.csv", 2)
    send(processes, signal.SIGUSR1)
    wait(processes, calls, 1)
    saved = saved_step(root)
    assert saved >= 2
    wait(processes, root / "metrics.csv", 2)
    send(processes, signal.SIGTERM)
    said = finish(processes, root, 143, 143)
    assert calls.read_text() == "requeue 17\n"
    step = assert_saved(root, said, "SIGTERM")
    assert step > saved
    finish(job(f"--trainer.max_steps={step + 1}", SLURM_RESTART_COUNT="1"), root)
    assert [int(row["step"]) for row in rows(root)] == list(range(1, step + 2))


def test_a_signal_during_the_setup_ends_the_run_at_once(
    arguments: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    processes = start(arguments, root, 1)
    wait(processes, root / "config.yaml", 1)
    assert processes[0].pid
    os.kill(processes[0].pid, signal.SIGTERM)
    said = finish(processes, root, 143)
    assert said.count("interrupted: SIGTERM") == 1
    assert not (root / "checkpoints/last.ckpt").exists() or saved_step(root)


@pytest.mark.parametrize("number", NAMES)
def test_outside_training_a_signal_raises_with_its_status(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted) as end, ending_on_signals():
        signal.raise_signal(number)
    assert end.value.code == 128 + number
    assert "--ckpt_path last" in str(end.value)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_ignored_signals_stay_ignored() -> None:
    """Ctrl-C does not end a background job of a script or of nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending_on_signals():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


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
