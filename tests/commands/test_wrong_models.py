"""Wrong model folders give one message in every command: no traceback, and no wrong result.

Three functions open a model's folder for all commands: for training, for sampling, and for an
export. They try many folders; the commands, which turn their error into a message, try some.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sid_lsg.cli import main
from sid_lsg.commands import app
from sid_lsg.commands.export import export
from sid_lsg.generation.models import load_model
from sid_lsg.messages.errors import UsageError
from sid_lsg.teachers import families
from tests.helpers.wrong_configs import FAMILIES
from tests.helpers.wrong_folders import Wrong, wrong_folders

DOORS = ("generate", "evaluate", "export", "fit", "app")
# The folders that each family tries beside loading; others try 15. The last ones sample 1024 px.
NUMBERS = {"tiny_sd": 60, "flux2": 5, "qwen_image": 5, "z_image": 5}
RECORDED = [name for name in FAMILIES if name not in ("flux2", "qwen_image", "z_image")]
SAMPLING = ("--num_steps=2", "--guidance=1", "--accelerator=cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red cat\ntwo dogs\na blue bird\n")
    return path


def fit(teacher: str | Path, root: Path, prompts: Path) -> list[str]:
    """Return a command that trains for one iteration."""
    options = {
        "model.teacher": teacher,
        # Without states, so that its checkpoint opens fast.
        "model.optimizer_fake": "torch.optim.SGD",
        "model.optimizer_fake.lr": 1e-4,
        "model.optimizer_generator": "torch.optim.SGD",
        "model.optimizer_generator.lr": 1e-4,
        "data.prompts": prompts,
        "data.batch_size": 1,
        "data.num_heldout": 0,
        "data.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 1,
        "trainer.default_root_dir": root,
        "trainer.logger": "false",
        "image_grid.every_n_steps": 0,
        "metrics.clip": "null",
        "health.every_n_images": 0,
        "progress.refresh_rate": 0,
    }
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(family: str, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a family's folder and the checkpoint of a run from it."""
    root = tmp_path_factory.mktemp(family)
    folder = Path(shutil.copytree(FAMILIES[family].folder, root / "teacher"))
    main(fit(folder, root / "run", prompts))
    return [folder, root / "run"]


@pytest.fixture
def lines(
    whole: list[Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Path], list[str]]:
    """Return the command line of a door for a model's folder."""

    def ended(self: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(app, "_serve", lambda *_: None)
    monkeypatch.setattr(app._Work, "serve", ended)

    def line(door: str, model: Path) -> list[str]:
        out = tmp_path / f"{door}-{model.name}"
        if door == "fit":
            return fit(model, out, prompts)
        if door == "export":
            checkpoint = f"--ckpt_path={whole[1]}"
            return ["export", checkpoint, f"--teacher={model}", f"--output={out}"]
        if door == "generate":
            more = ["--prompt=a cat", "--progress=false", f"--output={out}"]
        elif door == "evaluate":
            more = [f"--prompts={prompts}", "--num_images=2", "--protocol=fast", "--progress=false"]
            more += ["--clip=package:demo/fashion/clip", f"--output={out}"]
        else:
            more = ["--port=0"]
        return [door, f"--model={model}", *SAMPLING, *more]

    return line


def complaint(line: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Run a command; return what is wrong with its answer to a wrong folder, or None."""
    capsys.readouterr()
    try:
        main(list(line))
    except SystemExit as end:
        error = capsys.readouterr().err
        if end.code != 2:
            return f"status {end.code}"
        if error.count("error: ") != 1 or "Traceback" in error:
            return f"not one message: {error}"
        return None if said.lower() in error.lower() else f"does not say {said!r}: {error}"
    except Exception as error:
        return f"a traceback: {error!r}"
    return "silence"


def spoiled(wrongs: Sequence[Wrong], whole: Path, root: Path) -> Iterator[tuple[Wrong, Path]]:
    """Yield wrong folders; each is removed before the next one is made."""
    for number, wrong in enumerate(wrongs):
        folder = Path(shutil.copytree(whole, root / f"wrong{number}"))
        wrong.spoil(folder)
        yield wrong, folder
        shutil.rmtree(folder)


def chosen(family: str) -> list[Wrong]:
    """Return some of a family's wrong folders."""
    wrongs = list(wrong_folders(FAMILIES[family]))
    return wrongs[:: round(len(wrongs) / NUMBERS.get(family, 15))]


def refusal(call: Callable[[], Any], option: str, said: str) -> str | None:
    """Call a function; return what is wrong with its answer to a wrong folder, or None."""
    try:
        call()
    except UsageError as error:
        right = str(error).startswith(f"--{option}: ") and said.lower() in str(error).lower()
        return None if right else f"does not say {option} and {said!r}: {error}"
    except Exception as error:
        return f"a traceback: {error!r}"
    return "silence"


def sample(folder: Path) -> None:
    """Sample a model as `generate`, `evaluate` and `app` do."""
    load_model(str(folder), num_steps=2, guidance=1).sample(["a cat"], [0])


@pytest.mark.slow
def test_every_wrong_folder_is_refused_when_it_is_loaded(family: str, tmp_path: Path) -> None:
    wrongs = list(wrong_folders(FAMILIES[family]))
    assert len({wrong.name for wrong in wrongs}) == len(wrongs) >= 60
    found = {
        wrong.name: refusal(lambda: families.load(str(folder), option="base"), "base", wrong.said)  # noqa: B023
        for wrong, folder in spoiled(wrongs, FAMILIES[family].folder, tmp_path)
    }
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.slow
def test_wrong_folders_are_refused_when_they_are_sampled(family: str, tmp_path: Path) -> None:
    whole = FAMILIES[family].folder
    found = {
        wrong.name: refusal(lambda: sample(folder), "model", wrong.said)  # noqa: B023
        for wrong, folder in spoiled(chosen(family), whole, tmp_path)
    }
    assert {name: what for name, what in found.items() if what} == {}
    if family in RECORDED:
        sample(whole)


@pytest.mark.slow
def test_wrong_folders_are_refused_when_they_are_exported(
    family: str, whole: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def exported(teacher: Path) -> None:
        export(str(whole[1]), str(out), teacher=str(teacher), license="mit")

    found = {
        wrong.name: refusal(lambda: exported(folder), "teacher", wrong.said)  # noqa: B023
        for wrong, folder in spoiled(chosen(family), whole[0], tmp_path)
    }
    assert {name: what for name, what in found.items() if what} == {}
    assert not out.exists()
    exported(whole[0])


@pytest.mark.parametrize("family", ["tiny_sd"], indirect=True)
@pytest.mark.slow
def test_whole_folders_are_accepted_by_every_command(
    whole: list[Path],
    lines: Callable[[str, Path], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [complaint(lines(door, whole[0]), "", capsys) for door in DOORS]
    assert answers == ["silence", "silence", "silence", "silence", "status 0"]


@pytest.mark.slow
def test_commands_refuse_wrong_folders(
    family: str,
    whole: list[Path],
    lines: Callable[[str, Path], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command tries other folders: more of one family."""
    every = len(DOORS) * (4 if family == "tiny_sd" else 12)
    found = []
    for start, door in enumerate(DOORS):
        wrongs = list(wrong_folders(FAMILIES[family]))[start::every]
        for wrong, folder in spoiled(wrongs, whole[0], tmp_path):
            if what := complaint(lines(door, folder), wrong.said, capsys):
                found.append(f"{door}, {wrong.name}: {what}")
    assert found == []
