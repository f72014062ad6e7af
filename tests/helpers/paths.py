"""Paths of the repository and of the tests' data."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
GOLDEN = TESTS / "golden"  # the official code's numbers
GOLDEN_FLOW = TESTS / "golden_flow"  # the same for flow-matching teachers, SDXL and PixArt
DATA = TESTS / "data"
CONFIGS = REPOSITORY / "configs"
