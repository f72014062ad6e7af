"""`--trainer.logger WandbLogger` means this project's logger."""

from pathlib import Path

import pytest
import yaml

from sid_lsg.cli import main
from sid_lsg.options.short_names import named_loggers, named_loggers_text

OURS = "sid_lsg.loggers.WandbLogger"


@pytest.mark.parametrize(
    "given",
    [
        ["--trainer.logger", "WandbLogger"],
        ["--trainer.logger=WandbLogger"],
        ["--trainer.logger+=WandbLogger", "--trainer.logger.project=p"],
        ["--trainer.logger.class_path=WandbLogger"],
        ['--trainer.logger=[{"class_path": "WandbLogger"}]'],
    ],
)
def test_a_short_name_on_the_command_line(given: list[str]) -> None:
    assert named_loggers(given) == [part.replace("WandbLogger", OURS) for part in given]


@pytest.mark.parametrize(
    "given",
    [
        ["--trainer.logger", "lightning.pytorch.loggers.WandbLogger"],
        ["--trainer.logger", OURS],
        ["--metrics.clip_prefix", "WandbLogger"],
        ["--trainer.logger=MyWandbLogger"],
        ["--trainer.logger.name", "WandbLogger"],
    ],
)
def test_other_names_stay(given: list[str]) -> None:
    assert named_loggers(given) == given


@pytest.mark.parametrize(
    "given",
    [
        "logger: [CSVLogger, TensorBoardLogger, 'WandbLogger']\n",
        "logger:\n- TensorBoardLogger\n- CSVLogger  # rows\n- WandbLogger\n",
        "logger: [TensorBoardLogger, {class_path: CSVLogger}, {class_path: WandbLogger}]\n",
    ],
)
def test_all_short_names_of_a_list(given: str) -> None:
    expected = given.replace("Wandb", "sid_lsg.loggers.Wandb").replace("CSV", "sid_lsg.loggers.CSV")
    assert named_loggers_text(given) == expected


def test_a_short_name_in_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "trainer:\n  logger:\n  - class_path: WandbLogger\n  - class_path: CSVLogger\n"
    expected = text.replace("Wandb", "sid_lsg.loggers.Wandb").replace("CSV", "sid_lsg.loggers.CSV")
    assert named_loggers_text(text) == expected
    assert named_loggers_text(expected) == expected
    (tmp_path / "x.yaml").write_text(text)
    line = ["fit", "--config", str(tmp_path / "x.yaml"), "--trainer.logger+=TensorBoardLogger"]
    with pytest.raises(SystemExit):
        main([*line, "--print_config"])
    loggers = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]
    assert [logger["class_path"] for logger in loggers] == [
        OURS, "sid_lsg.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger",
    ]  # fmt: skip
