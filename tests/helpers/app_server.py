"""Run the app in a separate process."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.helpers.interpreter import interpreter
from tests.helpers.paths import REPOSITORY


class Served(NamedTuple):
    """A running app and its URL."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def served(*options: str) -> Iterator[Served]:
    """Start the app on a free port, wait until it prints its URL, and kill it at the end."""
    environment = os.environ | {
        # An unreachable proxy: the app must not use one, not even to connect to itself.
        "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    process = subprocess.Popen(
        [interpreter(), "-m", "sid_lsg.cli", "app", "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("The page is at "):
                yield Served(process, line.split()[4])
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.kill()
        process.communicate()
