"""Errors of other packages: one message that names the option, and the reached state is saved."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sid_lsg.cli import main
from sid_lsg.commands.foreign import explaining
from sid_lsg.messages.errors import UsageError
from tests.helpers.checkpoint_runs import command, load, refused, run

__all__ = ["command", "run"]
HERE = "tests.commands.test_foreign"


class Broken(L.Callback):
    """Cannot be created."""

    def __init__(self, number: int = 1) -> None:
        raise RuntimeError(f"no {number}")


class Raising(L.Callback):
    """Raise in a hook, after so many iterations."""

    def __init__(self, hook: str, step: int = 2, kind: str = "KeyError") -> None:
        def raising(trainer: L.Trainer, *_: Any, **__: Any) -> None:
            if trainer.global_step >= step:
                raise {"KeyError": KeyError("key"), "SystemExit": SystemExit(0)}[kind]

        setattr(self, hook, raising)


def callback(name: str, **options: object) -> list[str]:
    given = [f"--trainer.callbacks.{option}={value}" for option, value in options.items()]
    return [f"--trainer.callbacks+={name}", *given]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trainer.barebones=true"], "--trainer.barebones would disable checkpoints"),
        (["--trainer.max_epochs=1"], "--trainer.max_epochs 1: a run has no epochs"),
        (["--trainer.logger=MLFlowLogger"], "--trainer.logger MLFlowLogger: Requirement 'mlflow"),
        (callback(f"{HERE}.Broken"), "--trainer.callbacks Broken: no 1 (RuntimeError)"),
        (callback(f"{HERE}.Raising", hook="setup", step=0), "--trainer.callbacks Raising: 'key'"),
        (callback(f"{HERE}.Raising", hook="on_fit_start", step=0),
         "--trainer.callbacks: Raising raised KeyError in on_fit_start, after iteration 0"),
        ([*callback("LearningRateMonitor"), "--trainer.logger=false"],
         "--trainer.callbacks: LearningRateMonitor raised MisconfigurationException in"),
        (["--trainer.max_steps=-7"], "--trainer.max_steps: `max_steps` must be a non-negative"),
        (["--trainer.devices=0"], "--trainer.devices: `Trainer(devices='0')` value is not a"),
        (["--trainer.accelerator=mps"], "--trainer.accelerator"),
        (["--trainer.accelerator=tpu"], "--trainer.accelerator tpu: Requirement 'torch_xla"),
        (callback(f"{HERE}.Raising", hook="on_train_batch_start", step=0),
         "--trainer.callbacks: Raising raised KeyError in on_train_batch_start, after iteration 0 "
         "(test_foreign.py, line 31): 'key'. Nothing was saved. Correct or remove it."),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_an_option_that_another_package_rejects_is_named(
    command: list[str], capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    message = refused(command, capsys, *options)
    assert message.startswith(f"error: {said}")
    assert message.count("\n") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "kind", "step"),
    [
        ("on_train_batch_end", "KeyError", 2),
        ("on_before_optimizer_step", "KeyError", 2),
        ("on_train_batch_end", "SystemExit", 2),
        ("on_save_checkpoint", "KeyError", 1),
    ],
)
def test_a_callback_that_raises_during_the_training_loses_nothing(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hook: str,
    kind: str,
    step: int,
) -> None:
    line = [*command, "--trainer.max_steps=6", "--checkpoint.every_n_steps=9"]
    failing = callback(f"{HERE}.Raising", hook=hook, kind=kind, step=step)
    if hook == "on_save_checkpoint":
        failing.append("--checkpoint.every_n_steps=1")
    message = refused(line, capsys, *failing)
    saved = load(tmp_path / "run/checkpoints/last.ckpt")["global_step"]
    assert step <= saved <= step + 1  # a hook within an iteration lets it finish
    assert f"Raising raised {kind} in {hook}, after iteration {step} (test_foreign.py, " in message
    assert f"The state is saved, run/checkpoints/{saved:07d}.ckpt." in message
    main([*line, "--ckpt_path=last"])
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "teardown"])
def test_a_callback_that_raises_at_the_end_loses_no_result(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], hook: str
) -> None:
    message = refused(command, capsys, *callback(f"{HERE}.Raising", hook=hook))
    assert f"Raising raised KeyError in {hook}, after iteration 3 (test_foreign.py, l" in message
    assert message.endswith("The results of the run are complete. Correct or remove it.")
    assert load(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 3
    assert (tmp_path / "run/generator/README.md").exists()
    assert (tmp_path / "run/summary.json").exists()


def test_lightnings_timer_ends_a_run(command: list[str], tmp_path: Path) -> None:
    main([*command, *callback("Timer", duration="00:00:00:00")])
    assert (tmp_path / "run/config.yaml").exists()


@pytest.mark.slow
def test_settings_that_wandb_rejects_are_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    message = refused(command, capsys, "--trainer.logger=WandbLogger", "--trainer.logger.id=a/b")
    assert "W&B did not start a run (" in message


@pytest.mark.parametrize("error", [KeyError("a bug"), AttributeError("x")])
def test_a_bug_of_this_package_keeps_its_traceback(error: Exception) -> None:
    def ours() -> None:
        code = compile("raise error", str(Path(main.__code__.co_filename).parent / "x.py"), "exec")
        exec(code, {"error": error})

    with pytest.raises(type(error)), explaining(dict, dict):
        ours()
    said = "--trainer.precision: `precision` is bad"
    with (
        pytest.raises(UsageError, match=said),
        explaining(lambda: {"precision": 1}, lambda: {"precision": 2}),
    ):
        raise ValueError("`precision` is bad.")
