"""Fixtures of the tests of `evaluate`."""

from pathlib import Path

import pytest

from tests.helpers.evaluations import Files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, small_sd: str) -> Files:
    return Files(tmp_path_factory.mktemp("evaluate"), small_sd)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the cached files of one test apart from those of others."""
    monkeypatch.delenv("SID_LSG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"
