"""The run directory, and how the strategies start."""

import csv
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sid_lsg.checkpoints.record import _NEEDED
from sid_lsg.cli import main
from sid_lsg.loggers import CSVLogger
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.run_directory import (
    SaveConfig,
    check_files,
    config_of,
    continue_restarted,
    is_of_run,
    put_inside,
    run_directory,
)
from sid_lsg.training.strategies import FSDP2Strategy, MultiNetDDPStrategy, register_strategies


def logger(**options: Any) -> Namespace:
    return Namespace(class_path="a.Logger", init_args=Namespace(options))


def test_a_logger_writes_inside_the_run_directory() -> None:
    trainer = Namespace(default_root_dir="runs/x", logger=logger(save_dir="logs", name="n"))
    put_inside(trainer)
    assert trainer.default_root_dir == "runs/x"
    assert trainer.logger.init_args == Namespace(save_dir="runs/x/logs", name="n")


def test_every_logger_of_a_list_writes_inside_the_run_directory() -> None:
    loggers = [
        logger(save_dir="."),
        logger(save_dir=None),
        logger(save_dir="/elsewhere/logs"),
        logger(project="p"),
        Namespace(class_path="a.Logger"),
    ]
    put_inside(Namespace(default_root_dir="runs/x", logger=loggers))
    places = [entry.init_args.get("save_dir") for entry in loggers[:4]]
    assert places == ["runs/x", "runs/x", "/elsewhere/logs", None]
    assert loggers[4] == Namespace(class_path="a.Logger")


@pytest.mark.parametrize("switch", [True, False, None])
def test_the_logger_option_may_be_a_boolean(switch: bool | None) -> None:
    trainer = Namespace(default_root_dir=None, logger=switch)
    put_inside(trainer)
    assert trainer == Namespace(default_root_dir="runs/default", logger=switch)


# ---------------------------------------------------------------------- checks before the start


@pytest.mark.parametrize("ckpt", [None, "last", "file.ckpt"])
@pytest.mark.parametrize("root", [None, ".", "runs/not/yet"])
def test_usable_files_are_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt: str | None, root: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({name: {} for name in _NEEDED}, "file.ckpt")
    check_files(Namespace(ckpt_path=ckpt, trainer=Namespace(default_root_dir=root)))
    assert [path.name for path in tmp_path.iterdir()] == ["file.ckpt"]


def test_a_missing_checkpoint_is_rejected(tmp_path: Path) -> None:
    path = str(tmp_path / "none.ckpt")
    with pytest.raises(UsageError, match=r"^--ckpt_path: there is no file .*none\.ckpt'. Give a"):
        check_files(Namespace(ckpt_path=path, trainer=Namespace(default_root_dir=".")))


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
@pytest.mark.parametrize(
    ("count", "asked", "own", "expected"),
    [
        (None, None, True, None),
        ("0", None, True, None),
        ("0", "a.ckpt", True, "a.ckpt"),
        ("2", None, False, "last"),
        ("2", None, True, "last"),
        ("1", "last", True, "last"),
        ("2", "a.ckpt", False, "a.ckpt"),  # nothing of its own yet
        ("2", "a.ckpt", True, "last"),
        ("1", "run/checkpoints/0000001.ckpt", True, "last"),
    ],
)
def test_a_restarted_job_continues_its_own_newest_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    count: str | None,
    asked: str | None,
    own: bool,
    expected: str | None,
) -> None:
    monkeypatch.delenv(name, raising=False)
    if count:
        monkeypatch.setenv(name, count)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    if own:
        (tmp_path / "run/checkpoints/0000003.ckpt").touch()
    trainer = Namespace(default_root_dir=str(tmp_path / "run"))
    config = Namespace(ckpt_path=asked, trainer=trainer)
    continue_restarted(config)
    assert config.ckpt_path == expected


@pytest.mark.parametrize("earlier", [None, "41"])
@pytest.mark.parametrize("job", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_a_restarted_job_does_not_continue_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, earlier: str | None
) -> None:
    """A job may be restarted before it has moved the earlier run in its directory aside."""
    root, config = tmp_path / "run", Namespace(ckpt_path=None)
    config.trainer = Namespace(default_root_dir=str(root))
    monkeypatch.delenv(job, raising=False)
    if earlier:
        monkeypatch.setenv(job, earlier)
    with run_directory(root, resumes=False):
        (root / "config.yaml").write_text("")
        (root / "checkpoints").mkdir()
        (root / "checkpoints/last.ckpt").write_text("")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv(job, "42")
    continue_restarted(config)
    assert config.ckpt_path is None
    with run_directory(root, resumes=False):
        assert (tmp_path / "run.1/checkpoints/last.ckpt").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")  # its own directory now
    continue_restarted(config)
    assert config.ckpt_path == "last"


@pytest.mark.parametrize("inside", [".", "run", "runs/x"])
def test_a_directory_that_cannot_be_created_is_rejected(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    root = str(tmp_path / "file" / inside)
    with pytest.raises(UsageError) as caught:
        check_files(Namespace(ckpt_path=None, trainer=Namespace(default_root_dir=root)))
    message = str(caught.value)
    assert message.startswith(f"--trainer.default_root_dir: cannot write to {root!r}, since")
    assert f"{str(tmp_path / 'file')!r} is not a directory" in message
    assert "Choose another directory" in message


# ---------------------------------------------------------------------- the run directory


def begin(root: Path, ckpt_path: str | None = None) -> L.Trainer:
    """Prepare a run directory as a run does before training."""
    parser = LightningArgumentParser()
    parser.add_argument("--ckpt_path", type=str | None)
    config = parser.parse_object({"ckpt_path": ckpt_path})
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=root, logger=False, enable_checkpointing=False
    )
    with run_directory(root, resumes=is_of_run(ckpt_path, root)):
        own = SaveConfig(parser, config, overwrite=True)
        trainer.callbacks.append(own)
        own.setup(trainer, L.LightningModule(), "fit")
    return trainer


def test_the_directory_contains_the_configuration(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "x"
    begin(root)
    assert {path.name for path in root.iterdir()} == {"config.yaml", ".job", ".lock"}
    assert "ckpt_path: null" in (root / "config.yaml").read_text()


def test_checkpoints_hold_the_configuration_also_if_its_file_is_lost(tmp_path: Path) -> None:
    trainer = begin(tmp_path)
    (tmp_path / "config.yaml").unlink()
    found = config_of(trainer)
    assert found is not None
    assert found["ckpt_path"] is None


def test_new_runs_move_earlier_ones_aside(tmp_path: Path) -> None:
    root = tmp_path / "x"
    for number in range(3):
        begin(root)
        assert not (root / "result.txt").exists()
        (root / "result.txt").write_text(str(number))
    found = {path.name: (path / "result.txt").read_text() for path in tmp_path.iterdir()}
    assert found == {"x": "2", "x.1": "0", "x.2": "1"}
    assert (tmp_path / "x.1" / "config.yaml").is_file()
    with run_directory(root, resumes=False):
        locks = {
            Path(f"/proc/self/fd/{number}").resolve() for number in os.listdir("/proc/self/fd")
        }
    assert {path for path in locks if path.name == ".lock"} == {root / ".lock"}


def test_a_run_from_another_runs_checkpoint_moves_the_earlier_one_aside(tmp_path: Path) -> None:
    root = tmp_path / "x"
    begin(root)
    (root / "result.txt").touch()
    begin(root, ckpt_path=str(tmp_path / "y" / "checkpoints" / "last.ckpt"))
    assert not (root / "result.txt").exists()
    assert (tmp_path / "x.1" / "result.txt").exists()


def test_a_run_is_continued_by_a_checkpoint_inside_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("x")
    begin(root)
    for name in ("x/checkpoints/0000002.ckpt", str(tmp_path / "x/checkpoints/good.ckpt")):
        begin(root, ckpt_path=name)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_continued_run_keeps_its_directory(tmp_path: Path) -> None:
    root = tmp_path / "x"
    begin(root)
    (root / "result.txt").touch()
    begin(root, ckpt_path="last")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (root / "result.txt").exists()
    assert "ckpt_path: last" in (root / "config.yaml").read_text()


def test_a_directory_without_a_run_is_not_moved(tmp_path: Path) -> None:
    root = tmp_path / "x"
    root.mkdir()
    (root / "notes.txt").touch()
    begin(root)
    assert sorted(path.name for path in root.iterdir()) == [
        ".job",
        ".lock",
        "config.yaml",
        "notes.txt",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("inside", [".", "run", "runs/x"])
def test_an_unwritable_directory_is_rejected(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("precious")
    root = tmp_path / "file" / inside
    with pytest.raises(UsageError) as caught:
        begin(root)
    message = str(caught.value)
    assert message.startswith(f"--trainer.default_root_dir: cannot write to {str(root)!r} (")
    assert "choose another folder" in message
    assert (tmp_path / "file").read_text() == "precious"


# ---------------------------------------------------------------------- command line


@pytest.fixture
def command(small_sd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command of a run of two iterations into runs/x."""
    monkeypatch.setattr(sys, "argv", ["sid_lsg"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command line sets it; monkeypatch restores it
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red cat\ntwo dogs\nsomething else\n")
    options = {
        "model.teacher": small_sd,
        "data.prompts": "prompts.txt",
        "data.batch_size": 1,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": "runs/x",
        "image_grid.every_n_steps": 0,
    }
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


def logged_steps(folder: str) -> list[int]:
    with Path(folder, "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["loss_fake"]]


def results(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


@pytest.mark.slow
def test_a_second_run_keeps_the_first_one(command: list[str]) -> None:
    main(command)
    first = results("runs/x")
    assert {"config.yaml", "checkpoints", "metrics.csv", "summary.json"} <= first
    main(command)
    assert results("runs") == {"x", "x.1"}
    assert results("runs/x") == first
    assert results("runs/x.1") == first
    assert logged_steps("runs/x.1") == logged_steps("runs/x") == [1, 2]


@pytest.mark.slow
def test_a_continued_run_adds_to_its_directory(command: list[str]) -> None:
    main(command)
    first = results("runs/x")
    main([*command, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert results("runs") == {"x"}
    assert results("runs/x") == first
    assert Path("runs/x/checkpoints/last.ckpt").readlink() == Path("0000003.ckpt")
    assert logged_steps("runs/x") == [1, 2, 3]


@pytest.mark.slow
def test_continuing_with_another_batch_size_is_rejected(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    first = results("runs/x")
    with pytest.raises(SystemExit) as end:
        main([*command, "--ckpt_path=last", "--data.batch_size=4", "--trainer.max_steps=3"])
    assert end.value.code == 2
    assert "--data.batch_size: the run started with 1, not 4" in capsys.readouterr().err
    assert results("runs/x") == first


@pytest.mark.slow
def test_continuing_to_fewer_iterations_is_rejected(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    with pytest.raises(SystemExit) as end:
        main([*command, "--ckpt_path=last", "--trainer.max_steps=1"])
    assert end.value.code == 2
    assert "max_steps is 1, but this checkpoint already has 2 iterations" in capsys.readouterr().err


@pytest.mark.slow
def test_continuing_with_another_seed_warns(command: list[str]) -> None:
    main(command)
    with pytest.warns(UserWarning, match="the run started with 0 and continues with 3") as said:
        main([*command, "--ckpt_path=last", "--seed_everything=3", "--trainer.max_steps=3"])
    assert sum("--seed_everything" in str(warning.message) for warning in said) == 1


@pytest.mark.slow
def test_a_configuration_that_cannot_be_written_keeps_the_earlier_one(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    config = Path("runs/x/config.yaml").read_text()

    def full(*args: Any, **options: Any) -> None:
        Path(args[2]).write_text("half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jsonargparse.ArgumentParser.save", full)
    with pytest.raises(SystemExit) as end:
        main([*command, "--ckpt_path=last", "--trainer.max_steps=3"])
    assert end.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert Path("runs/x/config.yaml").read_text() == config


@pytest.mark.slow
def test_restarting_a_finished_run_keeps_its_log(command: list[str]) -> None:
    main(command)
    first = results("runs/x")
    main([*command, "--ckpt_path=last"])
    assert results("runs/x") == first
    assert logged_steps("runs/x") == [1, 2]


@pytest.mark.slow
def test_a_continued_run_that_fails_early_keeps_the_log(command: list[str]) -> None:
    main(command)
    logged = Path("runs/x/metrics.csv").read_text()
    assert CSVLogger("runs/x").experiment is not None  # what a run does before its first row
    assert Path("runs/x/metrics.csv").read_text() == logged


@pytest.mark.slow
def test_a_second_run_moves_the_first_aside_with_lightnings_default_logger(
    command: list[str],
) -> None:
    """That logger's folder, with the configuration, is inside the run directory."""
    for _ in range(2):
        main([*command, "--trainer.logger=true", "--trainer.max_steps=1"])
    assert results("runs") == {"x", "x.1"}
    assert results("runs/x") == results("runs/x.1")


# ---------------------------------------------------------------------- strategies


def filled(rank: int) -> nn.Module:
    """Return a network in which all weights, frozen weights and statistics are the rank plus 1."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(rank == 0)
    network.to(memory_format=torch.channels_last)
    for tensor in network.state_dict().values():
        tensor.fill_(rank + 1)
    return network


def configure(rank: int, folder: Path) -> None:
    """Run as one of two processes."""
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    strategy = MultiNetDDPStrategy()
    strategy.model = filled(rank)
    strategy.configure_ddp()
    assert not isinstance(strategy.model, DistributedDataParallel)
    torch.save(strategy.model.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_every_process_starts_from_the_weights_of_rank_0(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    processes = [
        context.Process(target=configure, args=(rank, tmp_path), daemon=True) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    expected = filled(0).state_dict()
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_the_strategies_are_registered_by_name() -> None:
    register_strategies()
    register_strategies()  # as when the command line is used twice in a process
    assert StrategyRegistry["ddp_multi"]["strategy"] is MultiNetDDPStrategy
    assert isinstance(StrategyRegistry.get("ddp_multi"), MultiNetDDPStrategy)
    assert isinstance(StrategyRegistry.get("fsdp2"), FSDP2Strategy)
