"""Modules are found by their names in version 0.1.0, and are the same modules."""

import sys
from importlib import import_module

import pytest

from sid_lsg.files.moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_earlier_names_are_the_same_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{name} is now {MOVED[name]}"):
        found = import_module(name)
    assert found is import_module(MOVED[name])
    assert found.__name__ == MOVED[name]


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("sid_lsg.metrics.corpus")
