"""The documentation's pages are short, and name only what exists."""

import re
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest

from sid_lsg.commands.table import COMMANDS
from tests.helpers.pages import (
    PAGES,
    anchors,
    links,
    name,
    named_options,
    our_commands,
    prose,
    shell_lines,
)
from tests.helpers.paths import REPOSITORY

each_page = pytest.mark.parametrize("page", PAGES, ids=name)

# Of other programs.
OTHERS = {
    "--golden", "--nodes", "--signal", "--max", "--shutdown", "--kill", "--cpus",
    "--change",  # of sid_lsg.demo.images
}  # fmt: skip
OFFICIAL = {  # of the official codes
    "--sd_model", "--tmin", "--tmax", "--init_timestep", "--num_steps", "--cfg_train_fake",
    "--cfg_eval_fake", "--cfg_eval_real", "--alpha", "--batch", "--lr", "--glr", "--ema",
    "--duration", "--ls", "--lsg", "--fp16", "--gradient_checkpointing", "--fake_score_use_lora",
}  # fmt: skip


def test_the_readme_is_short() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    assert len(text.split()) < 1400


@each_page
def test_no_page_is_long(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= 200


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_on_the_site() -> None:
    site = (REPOSITORY / "mkdocs.yml").read_text()
    listed = set(re.findall(r"(?<![*/\w-])[\w/-]+\.md", site))
    pages = {page.relative_to(REPOSITORY / "docs").as_posix() for page in PAGES[1:]}
    tables = {page for page in pages if re.fullmatch(r"results/\w+/results\.md", page)}
    assert listed == pages - tables


def test_the_reference_has_every_command() -> None:
    page = (REPOSITORY / "docs/reference/cli.md").read_text()
    assert re.findall(r"^<!-- help: ([\w-]+) -->$", page, re.M) == re.findall(
        r"^## ([\w-]+)$", page, re.M
    )
    assert set(re.findall(r"^## ([\w-]+)$", page, re.M)) == set(COMMANDS)


@each_page
def test_targets_extras_and_tests_exist(page: Path) -> None:
    text = page.read_text()
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = {
        target for code in re.findall(r"`make ([a-z -]+)`", prose(page)) for target in code.split()
    }
    named |= {
        word
        for words in shell_lines(page)
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word
    }
    assert named <= targets
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {
        extra
        for group in re.findall(r"(?:sid-lsg|'\.)\[([\w,-]+)\]", text)
        for extra in group.split(",")
    }
    assert extras <= set(project["optional-dependencies"])
    for path in re.findall(r"(?<![\w/.-])((?:configs|tests|sid_lsg)/[\w/.-]+\.(?:py|yaml))", text):
        assert (REPOSITORY / path).exists(), path


COMMAND_LINES = sorted(
    {tuple(line): name(page) for page in PAGES for line in our_commands(page)}.items()
)


class Parsed(Exception):
    """The arguments have been accepted, and nothing has been run."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    from sid_lsg.commands import parser
    from sid_lsg.commands.fit import SiDCLI
    from sid_lsg.commands.fit_options import FitOptions

    def accepted(*_: object) -> None:
        raise Parsed

    monkeypatch.setattr(parser, "_prepare", accepted)
    for command_line in (SiDCLI, FitOptions):
        monkeypatch.setattr(command_line, "before_instantiate_classes", accepted)
    monkeypatch.setattr(sys, "argv", ["sid-lsg"])  # Lightning warns of arguments there
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.slow
@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize(
    "line", [line for line, _ in COMMAND_LINES], ids=lambda line: " ".join(line)[:80]
)
def test_commands_are_accepted(line: tuple[str, ...]) -> None:
    from sid_lsg.cli import main

    if line == ("--version",):
        return main([*line])
    with pytest.raises(Parsed):
        main([*line])


@pytest.mark.slow
def test_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from sid_lsg.cli import main

    for command in ("", *COMMANDS):
        with pytest.raises(SystemExit) if command else nullcontext():
            main([command, "--help"] if command else ["--help"])
    known = set(re.findall(r"--[a-z][\w.]*", capsys.readouterr().out))

    def exists(option: str) -> bool:
        parts = option.split(".")
        return any(".".join(parts[:n]) in known for n in range(min(2, len(parts)), len(parts) + 1))

    unknown = {}
    for page in PAGES:
        others = OTHERS | (OFFICIAL if page.name in ("method.md", "flow.md") else set())
        wrong = {each for each in named_options(page) - others if not exists(each)}
        if wrong:
            unknown[name(page)] = wrong
    assert unknown == {}


@pytest.mark.slow
def test_the_example_of_the_python_api_trains_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs/reference/python-api.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0]
    for long, short in (("batch_size=64", "batch_size=2"), ("max_steps=240", "max_steps=2")):
        assert code.count(long) == 1
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "python-api.md", "exec"), {})
    assert (tmp_path / "runs/api/generator/model_index.json").is_file()
