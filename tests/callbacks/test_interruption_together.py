"""Processes of one run stop after the same iteration, without waiting for each other's signals."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch import Tensor

from sid_lsg.callbacks import Checkpoint, Interruption, interruption
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.messages.errors import Interrupted
from sid_lsg.training.bad_samples import Reading
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.strategies import register_strategies
from tests.helpers import forked
from tests.helpers.operations import Operations, step_counters

pytestmark = pytest.mark.slow

STEPS = 4


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
