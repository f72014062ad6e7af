"""Callbacks find each other by their roles and do not import each other."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

import sid_lsg.callbacks
from sid_lsg.callbacks import Checkpoint, Export, ImageGrid, Metrics
from sid_lsg.training.callback import RunCallback, Saver, Scorer, find, run_callbacks

FOLDER = Path(sid_lsg.callbacks.__file__).parent
MODULES = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


def imported(path: Path) -> set[str]:
    """Return the callback modules that a file imports."""
    return {
        node.module.rpartition(".")[2]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sid_lsg.callbacks.")
    }


@pytest.mark.parametrize("name", sorted(MODULES))
def test_callbacks_do_not_import_each_other(name: str) -> None:
    callbacks = imported(FOLDER / "__init__.py")
    assert {"checkpoint", "export", "metrics"} < callbacks
    assert not imported(FOLDER / f"{name}.py") & callbacks


def test_callbacks_are_found_by_role() -> None:
    plain, grid, saver, scorer = L.Callback(), ImageGrid(), Checkpoint(), Metrics()
    trainer: Any = SimpleNamespace(callbacks=[plain, grid, scorer, saver])
    assert find(trainer, Saver) is saver
    assert find(trainer, Scorer) is scorer
    assert run_callbacks(trainer) == [grid, scorer, saver]
    assert find(SimpleNamespace(callbacks=[plain]), Saver) is None  # type: ignore[arg-type]


def test_a_callback_adds_nothing_by_default() -> None:
    trainer: Any = None
    assert RunCallback().summary() == {}
    assert RunCallback().on_trained(trainer, None) is None  # type: ignore[func-returns-value]
    assert Export().summary() == {"export": "generator"}
