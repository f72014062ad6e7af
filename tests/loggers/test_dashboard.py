"""The workspace views name what a run logs; the command saves them."""

import atexit
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_workspaces.workspaces as ws
from wandb_workspaces.workspaces import internal

from sid_lsg.cli import main
from sid_lsg.loggers.dashboard import run_view, sweep_view
from tests.helpers import forked
from tests.helpers.wandb_files import records

VIEWS = [run_view, sweep_view]


def panels(view: ws.Workspace) -> list[dict[str, Any]]:
    """Serialize a view as W&B receives it; return the settings of its panels."""
    spec = json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True))["spec"]
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"]]


def named(view: ws.Workspace) -> Iterator[str]:
    """Yield the keys that the panels of a view name: history, summary: and config: ones."""
    for panel in panels(view):
        yield from panel.get("metrics", [])
        yield from panel.get("mediaKeys", [])
        yield from (panel[axis] for axis in ("xAxis", "yAxis") if axis in panel)
        yield from (column["accessor"] for column in panel.get("columns", []))


def logged(folder: Path) -> set[str]:
    """Return what an offline run logged, as panels name it."""
    found: set[str] = set()
    for record in records(folder):
        for item in record.history.item:
            name = item.key or item.nested_key[0]
            found |= {name, f"summary:{name}"}
        for item in (*record.config.update, *record.run.config.update):
            found |= {f"config:{path}" for path in paths(item.key, json.loads(item.value_json))}
    return found


def paths(key: str, value: Any) -> Iterator[str]:
    """Yield the paths into a configuration value, as W&B writes them: `model.value.alpha`."""

    def walk(value: Any) -> Iterator[str]:
        yield ""
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from (f".{name}{rest}" for rest in walk(inner))

    yield from (f"{key}.value{rest}" for rest in walk(value))


def short_demo(folder: str) -> None:
    """Run two iterations of the demo with all its callbacks."""
    options = {
        "trainer.max_steps": 2, "trainer.log_every_n_steps": 1, "data.batch_size": 4,
        "trainer.default_root_dir": folder, "trainer.logger": "sid_lsg.loggers.WandbLogger",
        "image_grid.every_n_steps": 1, "image_grid.num_images": 2, "metrics.num_images": 8,
        "metrics.teacher_steps": 2, "health.every_n_images": 4, "progress.refresh_rate": 0,
    }  # fmt: skip
    main(
        ["fit", "--config", "package:configs/demo.yaml"]
        + [f"--{name}={value}" for name, value in options.items()]
    )
    atexit._run_exitfuncs()  # a forked process skips these; wandb ends its run there


@pytest.mark.slow
def test_every_panel_names_what_a_run_of_the_demo_logs(tmp_path: Path) -> None:
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    root = tmp_path / "run"
    forked.all_end_well(short_demo, [([str(root)], environment)], tmp_path)
    found = logged(root)
    for build in VIEWS:
        missing = set(named(build("p", "e", "clip_8"))) - found
        assert not missing, sorted(found)
        assert len(set(named(build("p", "e", "clip_8")))) > 10


@pytest.mark.parametrize("build", VIEWS)
def test_a_view_survives_the_way_to_wandb_and_back(build: Any) -> None:
    view = build("project", "team", "inception_5k")
    again = ws.Workspace._from_model(view._to_model())
    assert (again.project, again.entity, again.name) == ("project", "team", view.name)
    assert [section.name for section in again.sections] == [s.name for s in view.sections]
    assert sorted(named(again)) == sorted(named(view))
    assert "fid_inception_5k" in set(named(view))


def test_the_command_saves_both_views(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []

    def save(view: Any) -> dict[str, Any]:
        saved.append((view.entity, view.project, view.display_name))
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(internal, "upsert_view2", save)
    monkeypatch.setattr(ws.Workspace, "url", "https://wandb.ai/team/x")
    monkeypatch.setattr(wandb, "Api", Account)
    main(["dashboard", "--project=x"])
    main(["dashboard", "--project=y", "--entity=us"])
    names = "SiD-LSG: run", "SiD-LSG: sweep"
    assert saved == [(e, p, name) for e, p in (("team", "x"), ("us", "y")) for name in names]


class Account:
    """An account whose default entity is `team`."""

    default_entity = "team"


def test_without_a_key_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as ended:
        main(["dashboard"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.search(r"--project sid-lsg: W&B did not save the views .*wandb login", error)
