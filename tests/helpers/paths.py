"""Paths of the repository and of the tests' data."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
GOLDEN = TESTS / "golden"  # the official code's numbers
DATA = TESTS / "data"
CONFIGS = REPOSITORY / "configs"
