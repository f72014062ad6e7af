"""The shipped sweeps: wandb reads them, and the commands of its agents run.

wandb's launch code is imported where it is used: beside all that other tests import it takes
seconds.
"""

import atexit
import itertools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonargparse import Namespace

from sid_lsg.cli import main
from sid_lsg.commands.estimate import Estimate, estimate
from sid_lsg.commands.fit_options import reader
from sid_lsg.options.guidance import Guidance, Preset
from sid_lsg.training.run_directory import put_inside
from tests.helpers import forked
from tests.helpers.paths import REPOSITORY
from tests.helpers.wandb_files import records

SWEEP = REPOSITORY / "configs" / "sweep" / "kappa.yaml"
SWEEPS = sorted(SWEEP.parent.glob("*.yaml"))
PARAMETERS = yaml.safe_load(SWEEP.read_text())["parameters"]
READ = reader(estimate, Estimate)
GUIDANCE = PARAMETERS["model.guidance"]["values"]

PRESET = "{preset: lsg, scale: 1.5, train_fake: null, eval_fake: null, eval_real: null}"
EXPLICIT = "{preset: none, scale: null, train_fake: 1.0, eval_fake: [1.5, 1.0], eval_real: 1.5}"
KAPPAS = {PRESET: [1.5, 1.5, 1.5, 1.5], EXPLICIT: [1.0, 1.5, 1.0, 1.5]}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_wandb_accepts_the_sweep(path: Path) -> None:
    """Check what `wandb sweep` checks here and what W&B's server requires."""
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    config = load_sweep_config(str(path))
    assert config is not None
    assert config.keys() <= {
        "program", "project", "name", "method", "metric", "parameters", "command",
    }  # fmt: skip
    assert config["method"] == "grid"
    assert config["metric"] == {"name": "fid_clip_2k", "goal": "minimize"}
    assert (REPOSITORY / config["program"]).is_file()
    assert all(parameter.keys() == {"values"} for parameter in config["parameters"].values())
    for parameter in config["parameters"].values():
        assert len(set(parameter["values"])) == len(parameter["values"]) > 0
    assert config["command"].count("${args}") == 1
    assert all(isinstance(part, str) for part in config["command"])
    assert config["name"] == path.stem


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_fit_accepts_every_value_of_every_sweep(path: Path) -> None:
    """Each value is parsed as the agent writes it, and no two are the same point."""
    config = yaml.safe_load(path.read_text())
    command = config["command"]
    given = [part for part in command[command.index("fit") + 1 :] if not part.startswith("$")]
    given = [str(REPOSITORY / part) if part.startswith("configs/") else part for part in given]
    for name, values in config["parameters"].items():
        read = [READ([*given, f"--{name}={value}"]).as_dict() for value in values["values"]]
        assert all(one != other for one, other in itertools.combinations(read, 2))


@pytest.mark.parametrize("base", ["demo.yaml", "lsg.yaml"])
@pytest.mark.parametrize("value", GUIDANCE)
@pytest.mark.slow
def test_a_point_replaces_the_guidance_of_the_config(
    value: str, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(REPOSITORY / "configs" / base)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config, f"--model.guidance={value}", "--print_config"])
    assert end.value.code == 0
    guidance = yaml.safe_load(capsys.readouterr().out)["model"]["guidance"]
    assert guidance == asdict(Guidance()) | yaml.safe_load(value)


def test_the_points_cover_the_papers_strategies() -> None:
    kappas = [Guidance(**yaml.safe_load(value)).kappas for value in GUIDANCE]
    assert len(set(kappas)) == len(kappas)  # no two are the same run
    with_real_images = {"zero", "anti"}
    presets = set(get_args(Preset)) - with_real_images
    assert {yaml.safe_load(value)["preset"] for value in GUIDANCE} == presets
    assert [list(kappas[GUIDANCE.index(value)]) for value in KAPPAS] == list(KAPPAS.values())
    for index in range(4):
        assert len({four[index] for four in kappas}) > 1


def agent_starts(
    monkeypatch: pytest.MonkeyPatch, folder: Path, run_id: str, point: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Let wandb's own agent build the command and environment of a run."""
    from wandb import wandb_agent
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    started: list[tuple[list[str], dict[str, str]]] = []

    class Started:
        def __init__(self, command: list[str], env: dict[str, str], **options: Any) -> None:
            started.append((command, env))

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)  # including the address of wandb's helper process, if one ran
    for name, value in {
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_DIR": str(folder),
        "WANDB_RUN_ID": "",  # the agent sets these; monkeypatch restores them
        "WANDB_SWEEP_PARAM_PATH": "",
        "WANDB_MODE": "offline",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb_agent, "AgentProcess", Started)
    config = load_sweep_config(str(SWEEP))
    assert config is not None
    agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep1")
    agent._sweep_command = config["command"]
    arguments = {name: {"value": value} for name, value in point.items()}
    agent._command_run({"run_id": run_id, "program": config["program"], "args": arguments})
    return started[0]


def in_repository(arguments: list[str]) -> None:
    """Run the command in the folder in which an agent starts it."""
    os.chdir(REPOSITORY)
    main(arguments)
    atexit._run_exitfuncs()  # a forked process skips these; wandb ends its run there


@pytest.mark.slow
def test_two_agents_run_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run the agents' own commands with small options; both share the configured run directory."""
    small = {
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.max_steps": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": tmp_path / "runs",
        "image_grid.num_images": 1,
        "metrics.clip": "null",
        "metrics.reference": "null",
        "progress.refresh_rate": 0,
    }
    processes = {}
    for run_id, value in {"run-a": PRESET, "run-b": EXPLICIT}.items():
        point = dict(zip(PARAMETERS, (value, 0), strict=True))
        command, environment = agent_starts(monkeypatch, tmp_path, run_id, point)
        assert command[:5] == ["/usr/bin/env", "python", "-m", "sid_lsg.cli", "fit"]
        assert f"--model.guidance={value}" in command
        assert environment["WANDB_RUN_ID"] == run_id
        command += [f"--{name}={option}" for name, option in small.items()]
        log = tmp_path / f"{run_id}.log"
        started = forked.start(in_repository, command[4:], log=log, environment=environment)
        processes[run_id, value] = started
    for (run_id, value), process in processes.items():
        process.join(300)
        output = (tmp_path / f"{run_id}.log").read_text()
        assert process.exitcode == 0, output
        root = tmp_path / "runs" / run_id
        saved = yaml.safe_load((root / "config.yaml").read_text())
        assert list(Guidance(**saved["model"]["guidance"]).kappas) == KAPPAS[value]
        assert saved["trainer"]["default_root_dir"] == str(root)
        assert json.loads((root / "summary.json").read_text())["iterations"] == 1
        assert "Ignoring" not in output  # wandb would warn about options that a sweep sets
        found = records(root)
        (begun,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
        assert (begun.run_id, begun.sweep_id) == (run_id, "sweep1")
        updates = [update for r in found for update in (*r.config.update, *r.run.config.update)]
        values = {update.key: json.loads(update.value_json) for update in updates}
        assert [values[f"kappa_{i}"] for i in (1, 2, 3, 4)] == KAPPAS[value]
        assert values["model.guidance"] == value  # the agent's own entry
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run-a", "run-b"}


@pytest.mark.parametrize(
    ("sweep", "run", "found"),
    [("s", "r", "runs/x/r"), (None, "r", "runs/x"), ("s", None, "runs/x"), ("", "", "runs/x")],
)
def test_only_runs_of_a_sweep_get_their_own_directories(
    monkeypatch: pytest.MonkeyPatch, sweep: str | None, run: str | None, found: str
) -> None:
    for name, value in (("WANDB_SWEEP_ID", sweep), ("WANDB_RUN_ID", run)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    logger = Namespace(class_path="a.Logger", init_args=Namespace(save_dir="."))
    trainer = Namespace(default_root_dir="runs/x", logger=logger)
    put_inside(trainer)
    assert (trainer.default_root_dir, logger.init_args.save_dir) == (found, found)
