"""The wheel, installed outside the checkout, is the whole program."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import sid_lsg
from tests.helpers.paths import CONFIGS, REPOSITORY

pytestmark = pytest.mark.slow

PACKAGE = REPOSITORY / "sid_lsg"
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
FIT = {
    "trainer.max_steps": 2,
    "data.batch_size": 4,
    "data.num_workers": 0,
    "image_grid.num_images": 4,
    "metrics.num_images": 4,
    "metrics.batch_size": 4,
    "metrics.teacher_steps": 2,
    "metrics.num_pictured": 2,
    "progress.refresh_rate": 0,
}


def run(*command: object, cwd: Path) -> str:
    """Run a command that knows nothing of the checkout, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a wheel and an sdist that are built from a clean copy."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (PACKAGE, CONFIGS):
        shutil.copytree(folder, copy / folder.name, ignore=ignored)
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, copy)
    run(sys.executable, "-m", "build", "--no-isolation", ".", cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `sid-lsg` of a new environment that has the wheel, and our dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", "--no-deps", "--no-index", wheel, cwd=folder)
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", purelib, cwd=folder).strip())
    # Python reads no .pth files of a folder that one names: an editable install stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = run(python, "-c", "import sid_lsg; print(sid_lsg.__file__)", cwd=folder)
    assert Path(found.strip()) == site / "sid_lsg" / "__init__.py"
    return folder / "bin" / "sid-lsg"


def shipped() -> set[str]:
    """List the files of the package and the configs, as a wheel names them."""
    files = {path.relative_to(REPOSITORY) for path in PACKAGE.rglob("*") if path.is_file()}
    files |= {"sid_lsg" / path.relative_to(REPOSITORY) for path in CONFIGS.rglob("*.*")}
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_wheel_and_sdist_hold_all_files(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
    assert {name for name in inside if ".dist-info/" not in name} == shipped()
    top = f"sid_lsg-{sid_lsg.__version__}"
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{top}/") for member in archive if member.isfile()}
    assert {*SOURCES, "configs/demo.yaml", "sid_lsg/demo/fashion/model_index.json"} <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_the_installed_program_says_its_version(program: Path, tmp_path: Path) -> None:
    assert run(program, "--version", cwd=tmp_path) == f"sid-lsg {sid_lsg.__version__}\n"


def test_the_installed_program_trains_and_generates(program: Path, tmp_path: Path) -> None:
    options = [f"--{name}={value}" for name, value in FIT.items()]
    said = run(program, "fit", "--config", "package:configs/demo.yaml", *options, cwd=tmp_path)
    assert "SiD-LSG, 1 step" in said
    root = tmp_path / "runs" / "demo"
    assert json.loads((root / "summary.json").read_text())["images_seen"] == 8
    run(
        program, "generate", "--model=runs/demo/generator", "--prompt=a red dress",
        "--accelerator=cpu", "--progress=false", cwd=tmp_path,
    )  # fmt: skip
    (record,) = (tmp_path / "images" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(record)["text"] == "a red dress"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "images"}
