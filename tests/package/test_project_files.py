"""The files around the package agree with it: continuous integration, hooks and the image."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M))
FORMS = sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(path: str | Path) -> Any:
    return yaml.safe_load((REPOSITORY / path).read_text())


def test_the_tested_pythons_are_those_of_the_classifiers() -> None:
    tested = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    promised = [name for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert promised == [f"Programming Language :: Python :: {version}" for version in tested]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_lowest_versions_are_tested_with_all_extras_but_the_apps() -> None:
    text = yaml.safe_dump(read(".github/workflows/ci.yml")["jobs"]["lowest"])
    (extras,) = re.findall(r"-e '+\.\[([\w,-]+)\]", text)
    others = {"app", "dev", "docs"}
    assert {*extras.split(",")} == {*PROJECT["optional-dependencies"]} - others


def test_hooks_use_the_pinned_tools() -> None:
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    used = {name for hook in hooks for name in hook["additional_dependencies"]}
    for tool in ("ruff", "codespell"):
        assert f"{tool}=={PINNED[tool]}" in used


def test_the_image_is_built_of_files_that_are_sent_to_docker() -> None:
    sent = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (.+) \S+$", (REPOSITORY / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert f"!{name}" in sent
        assert (REPOSITORY / name).exists()


def test_the_image_does_not_run_as_root() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1001:1001"]
    assert 'ENTRYPOINT ["sid-lsg"]' in lines


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_what_github_requires(path: Path) -> None:
    form = read(path)
    if path.name == "config.yml":
        return
    assert form["name"]
    assert form["description"]
    ids = [part["id"] for part in form["body"]]
    assert len({*ids}) == len(ids)
    assert all(part["attributes"]["label"] for part in form["body"])
