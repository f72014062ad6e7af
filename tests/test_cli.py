"""The command line: what users type, and the messages that answer mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.cli import main
from sid_lsg.commands.fit import SiDCLI
from tests.helpers import forked
from tests.helpers.paths import CONFIGS, REPOSITORY


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\ntwo dogs\n\na blue bird\n")
    return path


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must end with a message and no traceback; return the message."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.slow
def test_a_real_process_reports_an_error_in_one_line(tmp_path: Path) -> None:
    """No traceback, status 2, nothing written."""
    line = ["fit", "--model.teacher", "nowhere/at/all", "--data.prompts", __file__]
    line += ["--trainer.default_root_dir", str(tmp_path / "run")]
    entry, log = ["-m", "sid_lsg.cli"], tmp_path / "log"
    process = forked.start(forked.program, entry, line, REPOSITORY, log=log)
    process.join(300)
    assert process.exitcode == 2
    assert log.read_text().splitlines()[-1].startswith("error: --model.teacher")
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"data.prompts": None}, ["--data.prompts is missing", "prompts.txt"]),
        ({"data.prompts": "{tmp}/none.txt"}, ["--data.prompts", "none.txt"]),
        ({"data.prompts": "{tmp}/empty.txt"}, ["--data.prompts", "empty.txt"]),
        ({"data.prompts": "{tmp}/p.jsonl", "data.column": "text"}, ["text", "caption"]),
        ({"data.prompts": "{tmp}/p.jsonl"}, ["--data.column"]),
        ({"model.teacher": "{tmp}/none"}, ["--model.teacher", "{tmp}/none"]),
        ({"model.teacher": "{tmp}"}, ["--model.teacher", "unet", "--model.loading.subfolders"]),
        ({"model.resolution": "100"}, ["--model.resolution", "multiple of 16"]),
        ({"model.micro_batch_size": "3"}, ["--data.batch_size", "--model.micro_batch_size"]),
        ({"model.t_init": "1001"}, ["--model.t_init", "999"]),
        ({"model.alpha": "nan"}, ["--model.alpha", "finite"]),
        ({"model.tmin": "980"}, ["--model.tmin", "--model.tmax"]),
        ({"model.guidance.train_fake": "inf"}, ["guidance.train_fake", "finite"]),
        ({"model.guidance.eval_fake": "[1,2,3]"}, ["guidance.eval_fake", "two"]),
        ({"model.guidance.preset": "loud"}, ["guidance", "loud"]),
        ({"model.no_such_option": "1"}, ["no_such_option", "`python -m sid_lsg.cli fit --help`"]),
        ({"seed_everything": "true"}, ["--seed_everything", "a number from 0"]),
        ({"seed_everything": "-1"}, ["--seed_everything", "a number from 0"]),
        ({"data.batch_size": "0"}, ["--data.batch_size"]),
        ({"data.batch_size": "many"}, ["data.batch_size", "many"]),
        ({"trainer.accumulate_grad_batches": "2"}, ["--model.micro_batch_size"]),
        ({"trainer.gradient_clip_val": "1"}, ["--model.gradients.clip_val"]),
        (
            {"trainer.enable_checkpointing": "false"},
            ["enable_checkpointing", "--checkpoint.keep 0"],
        ),
        ({"trainer.precision": "bf16-true"}, ["--trainer.precision", "bf16-mixed"]),
        ({"trainer.strategy": "fsdp"}, ["--trainer.strategy", "ddp"]),
        ({"trainer.default_root_dir": "{tmp}/empty.txt/run"}, ["--trainer.default_root_dir"]),
        ({"metrics.clip": "{tmp}/none"}, ["--metrics.clip"]),
        ({"ckpt_path": "{tmp}/none.ckpt"}, ["--ckpt_path", "none.ckpt"]),
    ],
)
@pytest.mark.slow
def test_bad_input_is_named(
    options: dict[str, str | None],
    named: list[str],
    prompts: Path,
    tiny_sd: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "p.jsonl").write_text(json.dumps({"caption": "a cat"}) + "\n")
    arguments = {
        "model.teacher": tiny_sd,
        "data.prompts": str(prompts),
        "data.batch_size": "4",
        "trainer.max_steps": "1",
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": str(tmp_path / "run"),
    } | options
    line = [
        part
        for name, value in arguments.items()
        if value is not None
        for part in (f"--{name}", value.replace("{tmp}", str(tmp_path)))
    ]
    error = refused(capsys, "fit", *line)
    for word in named:
        assert word.replace("{tmp}", str(tmp_path)) in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_misspelt_command_gets_a_suggestion_and_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(capsys, "fti", "--model.teacher", "x")
    assert message.startswith(
        "error: 'fti' is not a command. Did you mean fit? The commands are fit, "
    )
    assert "generate, app, export" in message
    assert "'zebra' is not a command. The commands are fit, generate" in refused(capsys, "zebra")
    assert "a command is missing. The commands are fit, generate" in refused(capsys)


@pytest.mark.parametrize("command", ["fit", "generate"])
def test_a_config_option_without_a_file_is_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "error: --config needs a file: give one, for example package:configs/lsg.yaml.\n"
    assert refused(capsys, command, "--config") == said
    assert refused(capsys, command, "--config", "--help") == said


def test_missing_and_unknown_options_refer_to_the_help_of_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "`python -m sid_lsg.cli fit --help` explains every option."
    assert f"required: --model.teacher. {said}" in refused(capsys, "fit")
    (tmp_path / "misspelt.yaml").write_text("model: {teacher: x, guidence: 3}\n")
    message = refused(capsys, "fit", "--config", str(tmp_path / "misspelt.yaml"))
    assert f"'model.guidence'. {said}" in message


def test_a_wrong_part_of_an_option_refers_to_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = refused(capsys, "fit", "--model.optimizer_fake.eps=[1,2]")
    assert "Got value: [1, 2]. `python -m sid_lsg.cli --help` explains" in message


def test_a_value_in_a_message_is_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("model: {teacher: x, num_steps: fit.x}\n")
    assert "Got value: fit.x" in refused(capsys, "fit", "--config", str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    "line",
    [
        ["fit", "--config=package:configs/demo.yaml", "--trainer.default_root_dir", "fit"],
        ["--config", "package:configs/demo.yaml", "fit", "--trainer.default_root_dir", "fit"],
        ["--config=package:configs/demo.yaml", "--trainer.default_root_dir", "fit", "fit"],
    ],
)
def test_the_command_may_follow_options_and_equal_a_value(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*line, "--print_config"])
    assert "default_root_dir: fit\n" in capsys.readouterr().out


def test_numbers_in_a_config_may_stand_for_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "model: {teacher: x, memory: {frozen_precision: 32}, text: {precision: 32}}\n"
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "x.yaml"), "--print_config"])
    found = capsys.readouterr().out
    assert "frozen_precision: '32'\n" in found
    assert "    precision: '32'\n" in found


def test_a_broken_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.yaml" in refused(capsys, "fit", "--config", str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("model: [")
    assert "broken.yaml" in refused(capsys, "fit", "--config", str(tmp_path / "broken.yaml"))
    (tmp_path / "other.yaml").write_text("model: {teachr: x}")
    assert "teachr" in refused(capsys, "fit", "--config", str(tmp_path / "other.yaml"))


class Read(Exception):
    """The options have been read, and nothing has been run."""


def spoil(options: Any) -> None:
    """Change every container in nested options."""
    for value in [*options.values()] if isinstance(options, dict) else options:
        if isinstance(value, dict | list):
            spoil(value)
    options.update(more=1) if isinstance(options, dict) else options.append("more")


@pytest.mark.slow
def test_a_process_builds_the_parser_once_and_reads_each_line_afresh(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, Any]] = []
    built: list[Any] = []
    build = SiDCLI.init_parser

    def read(cli: SiDCLI) -> None:
        found.append(cli.config.clone().as_dict())
        for value in vars(cli.config["fit"]).values():
            if hasattr(value, "as_dict"):
                vars(value).clear()
            elif isinstance(value, dict | list):
                spoil(value)
        raise Read

    monkeypatch.setattr(SiDCLI, "_kept", {})
    monkeypatch.setattr(SiDCLI, "before_instantiate_classes", read)
    monkeypatch.setattr(SiDCLI, "init_parser", lambda *a, **k: built.append(0) or build(*a, **k))
    plain = ["fit", "--model.teacher=x", "--data.prompts=y"]
    lines = [
        ["--trainer.max_steps=3", "--model.guidance.scale=2", "--image_grid.prompts=[a]"],
        ["--config", str(CONFIGS / "lsg.yaml"), "--config", str(CONFIGS / "trainer/cpu.yaml")],
        ["--trainer.logger=[CSVLogger,WandbLogger]", "--model.lora.generator.rank=2"],
    ]
    for line in ([], *lines, *lines, []):
        with pytest.raises(Read):
            main([*plain, *line])
    assert len(built) == 2  # Lightning's own, and that of `fit`
    assert found[:4] == [found[7], *found[4:7]]
    for line in (["--print_config", "--model.nonsense=1"], ["--data.batch_size=many"]):
        refused(capsys, *plain, *line)
        with pytest.raises(Read):
            main(plain)
        assert capsys.readouterr().out == ""
        assert found[-1] == found[0]


def test_help_and_print_config_explain_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    options = [
        "model.teacher", "model.loading.revision", "model.loading.variant",
        "model.init.generator", "model.ema.halflife_images", "model.memory.activations",
        "model.compute.tf32", "model.gradients.clip_val", "model.guidance.preset",
        "model.guidance.train_fake", "model.guidance.eval_fake", "model.guidance.eval_real",
        "model.alpha", "model.t_init", "model.tmin", "model.tmax", "model.num_steps",
        "model.micro_batch_size", "model.optimizer_fake", "model.optimizer_generator",
        "data.prompts", "data.column", "data.batch_size", "trainer.max_steps",
        "trainer.default_root_dir", "checkpoint.every_n_steps", "image_grid.num_images",
        "metrics.clip",
    ]  # fmt: skip
    for option in options:
        described = [" ".join(t.split("\n  --")[0].split()) for t in text.split(f"--{option} ")[1:]]
        assert len(max(described, key=len)) > 30, f"{option}: {described}"
    with pytest.raises(SystemExit) as end:
        main(["fit", "--print_config"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"{option.rsplit('.')[-1]}:" in printed for option in options)
    assert "lr: 1.0e-06" in printed


@pytest.mark.slow
def test_a_run_stays_inside_its_directory(
    prompts: Path,
    tiny_sd: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    line = ["fit", "--model.teacher", tiny_sd, "--data.prompts", str(prompts),
            "--data.batch_size", "2", "--data.num_workers", "0", "--trainer.accelerator", "cpu",
            "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
            "--trainer.default_root_dir", "here"]  # fmt: skip
    main([*line, "--trainer.max_steps", "1"])
    assert "distilling" not in capsys.readouterr().err  # the progress bar is disabled
    assert set(tmp_path.iterdir()) - before == {tmp_path / "here"}
    written = {path.name for path in (tmp_path / "here").iterdir()}
    assert written == {
        ".job", ".lock", "config.yaml", "metrics.csv", "grids", "checkpoints", "generator",
        "summary.json",
    }  # fmt: skip
    summary = json.loads((tmp_path / "here/summary.json").read_text())
    assert (summary["images_seen"], summary["export"]) == (2, "generator")

    main([*line, "--trainer.max_steps", "2", "--ckpt_path", "last"])
    assert json.loads((tmp_path / "here/summary.json").read_text())["images_seen"] == 4

    # The resolved configuration is itself a config; a new run moves the old one aside.
    main(["fit", "--config", "here/config.yaml", "--ckpt_path", "null"])
    assert json.loads((tmp_path / "here.1/summary.json").read_text())["images_seen"] == 4
    assert set(tmp_path.iterdir()) - before == {tmp_path / "here", tmp_path / "here.1"}
