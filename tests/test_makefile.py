"""`make help` lists every target, and `make browser` asks before it installs outside CI."""

import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def without_chromium(tmp_path: Path) -> dict[str, str]:
    """Make an environment in which apt-get and Python only record their calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("make", "sh", "id", "touch"):
        (folder / name).symlink_to(shutil.which(name) or name)
    for name in ("apt-get", "sudo", "python"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/called\n')
        (folder / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "MAKEFLAGS")}
    return environment | {"PATH": str(folder)}


def browser(environment: dict[str, str], stdin: int = subprocess.DEVNULL) -> tuple[int, str, bool]:
    """Run `make browser`; return its status, its output, and whether it installed chromium."""
    folder = Path(environment["PATH"])
    options = ["-o", ".venv/.installed-dev", f"BIN={folder}", "browser"]
    made = subprocess.run(
        [str(folder / "make"), *options], cwd=REPOSITORY, env=environment, stdin=stdin,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    called = folder.parent / "called"
    calls = called.read_text() if called.exists() else ""
    assert ("pytest" in calls) == (made.returncode == 0)
    return made.returncode, made.stdout, "install" in calls


def test_help_lists_every_target() -> None:
    made = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    phony = re.search(r"\.PHONY: (.*)", MAKEFILE)
    assert phony
    assert {line.split()[0] for line in made.stdout.splitlines()} == {*phony[1].split()}


def test_the_browser_is_installed_in_ci(without_chromium: dict[str, str]) -> None:
    status, _, installed = browser(without_chromium | {"CI": "true"})
    assert (status, installed) == (0, True)


def test_without_a_terminal_the_command_is_printed(without_chromium: dict[str, str]) -> None:
    status, said, installed = browser(without_chromium)
    assert (status, installed) == (2, False)  # make's own status for a failure
    assert "error: this needs chromium. Install it: apt-get install chromium" in said


@pytest.mark.parametrize(("answer", "yes"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_in_a_terminal_it_asks(answer: str, yes: bool, without_chromium: dict[str, str]) -> None:
    keyboard, terminal = pty.openpty()
    os.write(keyboard, answer.encode())
    try:
        status, said, installed = browser(without_chromium, stdin=terminal)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert 'Run "apt-get install chromium"? [y/N]' in said
    assert (status == 0, installed) == (yes, yes)
