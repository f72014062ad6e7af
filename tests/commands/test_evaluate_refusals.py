"""`evaluate` refuses what it cannot score before it samples, and names the option."""

import re
from pathlib import Path

import pytest
from PIL import Image

from sid_lsg.cli import main
from tests.helpers.evaluations import Files, folder_line, refused

pytestmark = pytest.mark.usefixtures("cache")


def test_foreign_images_are_not_taken_for_the_models(
    files: Files, small_sd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "images"
    folder.mkdir(parents=True)
    (folder / "0000000.png").write_bytes(b"a photograph")
    options = {"sampler": "ddim", "num_steps": 1, "guidance": 1, "output": tmp_path / "out"}
    assert "images' holds other files" in refused(capsys, *files.line(model=small_sd, **options))
    assert [path.name for path in folder.iterdir()] == ["0000000.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": None}, "--prompts is missing"),
        ({"prompts": "{tmp}/none.txt"}, "--prompts"),
        ({"model": "{tmp}/none"}, "--model: .*none"),
        ({"reference": "{tmp}/none"}, "--reference: .*none"),
        ({"reference": "{tmp}"}, "--reference: .*contains no image"),
        ({"protocol": "clean256", "inception": "{tmp}/none.pt"}, "--inception"),
        ({"protocol": "clean256"}, "--inception: the protocol needs the Inception"),
        ({"clip": "null"}, "--clip is missing"),
        ({"clip": "{tmp}/none"}, "--clip: could not load"),
        ({"num_images": "1"}, "--num_images must be at least 2"),
        ({"batch_size": "0"}, "--batch_size must be at least 1"),
        ({"num_steps": "0"}, "--num_steps must be at least 1"),
        ({"sampler": "ddim", "num_steps": "9", "guidance": "0.5"}, "--guidance must be .* 1"),
        ({"protocol": "fid"}, "--protocol"),
        ({"output": "{tmp}/file/report"}, "--output: cannot write"),
        ({"devices": "0"}, "--devices"),
        ({"scores": "{cmmd: {tmp}/none}"}, "--scores.cmmd: could not load"),
        ({"scores": "[pickscores]"}, "--scores: there is no score 'pickscores'"),
        ({"scores": "{fid_teacher: {tmp}/none}"}, "--scores.fid_teacher: .*none"),
        ({"captions": "{tmp}/none.txt"}, "--captions needs --images"),
    ],
)
def test_bad_options_are_named(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str | None],
    said: str,
) -> None:
    (tmp_path / "file").touch()
    filled = {
        name: value and value.replace("{tmp}", str(tmp_path)) for name, value in options.items()
    }
    message = refused(capsys, *files.line(**({"output": tmp_path / "out"} | filled)))
    assert re.search(said, message), message
    assert not (tmp_path / "out" / "report.json").exists()


def test_foreign_files_are_not_replaced(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notes"
    out.mkdir()
    (out / "report.md").write_text("mine")
    message = refused(capsys, "evaluate", *folder_line(files, files.real, output=out))
    assert "--output" in message
    assert "contains a 'report.md' that no evaluation wrote" in message
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("report.md", "mine")]
    message = refused(capsys, "evaluate", *folder_line(files, files.real, output=files.real))
    assert "is the folder of --images" in message


def test_fewer_images_than_the_protocol_needs_are_rejected(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = folder_line(files, files.real, num_images=None, output=out)
    message = refused(capsys, "evaluate", *line)
    assert "contains 9 images, but 10000 are needed by the protocol clip" in message
    assert "--num_images 9" in message
    assert not (out / "report.json").exists()


def test_fewer_images_than_processes_are_rejected(
    files: Files,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda: (0, 7))
    message = refused(capsys, *files.line(output=tmp_path / "out"))
    assert "--num_images: 6 images for 7 processes" in message
    assert not (tmp_path / "out" / "images").exists()  # rejected before sampling


@pytest.mark.parametrize(
    ("count", "said"), [(1, "1 image for 1 process"), (3, "all of 3 images have the same features")]
)
def test_an_unusable_reference_is_rejected(
    files: Files,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    said: str,
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for index in range(count):
        Image.new("RGB", (40, 40)).save(real / f"{index}.png")
    message = refused(capsys, *files.line(reference=real, output=tmp_path / "out"))
    assert f"--reference: {said}" in message
    assert not cache.exists()  # nothing is cached
    assert not (tmp_path / "out" / "images").exists()


def test_unreadable_images_are_listed(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in files.real.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    (bad / "3.png").write_bytes((bad / "3.png").read_bytes()[:500])
    (bad / "7.png").write_text("no image")
    for option in ("images", "reference"):
        images, reference = (bad, files.real) if option == "images" else (files.real, bad)
        line = folder_line(files, images, reference=reference, num_images=9, output=tmp_path / "o")
        message = refused(capsys, "evaluate", *line)
        assert f"--{option}: 2 of 9 images cannot be read" in message
        assert "3.png" in message
        assert "7.png" in message
        assert "5.png" not in message


@pytest.mark.slow
def test_statistics_of_another_protocol_are_rejected(
    files: Files, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(files.line(output=tmp_path / "a"))
    (kept,) = (cache / "sid_lsg" / "references").iterdir()
    message = refused(capsys, *files.line(reference=kept, protocol="fast", output=tmp_path / "b"))
    assert "--reference" in message
    assert "its protocol is 'clip', but that of `fast`" in message
