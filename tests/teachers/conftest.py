"""Fixtures of the teacher tests."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_sd: str, tmp_path: Path) -> Path:
    """Return a copy of the teacher's folder that a test may damage."""
    return Path(shutil.copytree(tiny_sd, tmp_path / "model"))
