"""Where the repository and the recorded data of its tests are."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
GOLDEN = TESTS / "golden"  # the official code's numbers
DATA = TESTS / "data"
CONFIGS = REPOSITORY / "configs"
