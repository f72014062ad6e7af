"""Damaged checkpoints are detected and skipped; a command opens a checkpoint only once."""

import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sid_lsg.callbacks import Checkpoint
from sid_lsg.checkpoints import opening
from sid_lsg.checkpoints.resume import open_resumed
from sid_lsg.cli import main
from sid_lsg.messages.errors import UsageError
from tests.helpers.checkpoint_runs import Iterations, contents, fit, load, names, refused, warned
from tests.helpers.checkpoints import damage, newest_path
from tests.helpers.comparison import same
from tests.helpers.damage import Trap, flip, weight_place

# ---------------------------------------------------------------------- damaged files


def test_an_intact_file_has_no_damage(run: Path) -> None:
    assert [damage(path) for path in sorted((run / "checkpoints").iterdir())] == [""] * 4
    assert newest_path(run / "checkpoints") == (run / "checkpoints/last.ckpt", [])


@pytest.mark.parametrize(
    ("share", "seen"),
    [(0, "is not a checkpoint"), (1e-6, "truncated"), (0.001, "truncated"), (0.5, "truncated"),
     (0.999, "truncated"), (1 - 1e-7, "truncated")],
)  # fmt: skip
def test_truncation_is_detected(run: Path, tmp_path: Path, share: float, seen: str) -> None:
    data = (run / "checkpoints/last.ckpt").read_bytes()
    path = tmp_path / "0000001.ckpt"
    path.write_bytes(data[: int(share * len(data) + 2 * (0 < share < 1e-3))])
    assert seen in damage(path)


@pytest.mark.slow
def test_a_flipped_bit_is_detected_or_harmless(run: Path, tmp_path: Path) -> None:
    """Flip bits in tensors, in the pickle at the start, and in the zip directory at the end."""
    source, path = run / "checkpoints/last.ckpt", tmp_path / "0000001.ckpt"
    expected, size = load(source), source.stat().st_size
    rng, found = np.random.default_rng(0), []
    spans = [(0, size)] * 6 + [(0, 50_000)] * 8 + [(size - 50_000, size)] * 14
    for place in (int(rng.integers(*span)) for span in spans):
        shutil.copy(source, path)
        flip(path, place)
        found.append(damage(path))
        if not found[-1]:
            assert same(load(path), expected), place
    assert sum(map(bool, found)) > 15
    assert any("Bad CRC-32" in what for what in found)


def test_other_files_are_not_checkpoints(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "0000001.ckpt"
    path.write_text("hello")
    assert damage(path) == "is not a checkpoint"
    path.unlink()
    path.mkdir()
    assert damage(path) == "is incomplete: it has no manifest.json"
    assert "No such file" in damage(tmp_path / "0000002.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "0000003.ckpt")
    with pytest.raises(UsageError, match="not a checkpoint of a run: it lacks 'optimizer_st"):
        open_resumed(str(tmp_path / "0000003.ckpt"), tmp_path)


@pytest.mark.slow
def test_last_skips_damaged_files(small_sd: str, run: Path, copied: Path) -> None:
    folder = copied / "checkpoints"
    flip(folder / "0000006.ckpt", weight_place(folder / "0000006.ckpt"))
    (folder / "0000004.ckpt").write_bytes((folder / "0000004.ckpt").read_bytes()[:-1])
    iterations = Iterations()
    checkpoint = Checkpoint(every_n_steps=2, keep=-1)
    (message,) = warned(lambda: fit(small_sd, copied, checkpoint, iterations, ckpt_path="last"))
    assert iterations.ran == [2, 3, 4, 5]
    for said in ("0000006.ckpt' is corrupted (Bad CRC-32", "0000004.ckpt' is truncated",
                 f"The run continues from '{folder / '0000002.ckpt'}'"):  # fmt: skip
        assert said in message
    assert (copied / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert same(load(folder / "last.ckpt")["state_dict"],
                load(run / "checkpoints/last.ckpt")["state_dict"])  # fmt: skip


def test_last_finds_good_and_skips_a_dangling_link(copied: Path) -> None:
    folder = copied / "checkpoints"
    (folder / "0000002.ckpt").rename(folder / "good.ckpt")
    (folder / "0000006.ckpt").unlink()
    path, (what,) = newest_path(folder)
    assert path == folder / "0000004.ckpt"
    assert "0000006.ckpt' cannot be read (No such file" in what
    path.write_bytes(b"")
    assert newest_path(folder)[0] == folder / "good.ckpt"


def test_no_training_starts_when_all_checkpoints_are_damaged(
    command: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 4, 6):
        path = copied / f"checkpoints/000000{number}.ckpt"
        flip(path, weight_place(path))
    before = contents(copied.parent)
    message = refused(command, capsys, "--ckpt_path=last")
    assert message.startswith("error: --ckpt_path last: there is no valid checkpoint in ")
    assert message.count("Bad CRC-32") == 3
    assert contents(copied.parent) == before


def test_last_without_a_checkpoint_warns_and_starts_anew(small_sd: str, empty: Path) -> None:
    (message,) = warned(lambda: fit(small_sd, empty, Checkpoint(), max_steps=1, ckpt_path="last"))
    assert "there is no checkpoint in " in message
    assert message.endswith("yet. A new training starts.")
    assert names(empty) == ["0000001.ckpt", "last.ckpt"]


def test_a_damaged_file_named_by_ckpt_path_is_rejected(small_sd: str, copied: Path) -> None:
    path = copied / "checkpoints/0000004.ckpt"
    flip(path, weight_place(path))
    with pytest.raises(UsageError, match=r"^--ckpt_path: .*0000004.ckpt' is corrupted \(Bad CRC"):
        fit(small_sd, copied, Checkpoint(), ckpt_path=str(path))


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_code_is_never_executed(
    small_sd: str, run: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, path = empty.parent / "unpickled", empty.parent / "0000001.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save(load(run / "checkpoints/last.ckpt") | {"extra": Trap(mark)}, path)
    what = "is not a checkpoint" if kind == "pickle" else r"contains \w+.mkdir, which is not plain"
    with pytest.raises(UsageError, match=what):
        fit(small_sd, empty, Checkpoint(), ckpt_path=str(path), weights_only=False)
    with pytest.raises(UsageError, match=what):
        open_resumed(str(path), empty)
    assert not mark.exists()


# ---------------------------------------------------------------------- opened once


@pytest.fixture(scope="module")
def trained(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a `fit` command that has run one iteration."""
    folder = tmp_path_factory.mktemp("opening")
    prompts = folder / "prompts.txt"
    prompts.write_text("a\nb\n")
    command = [
        "fit", f"--model.teacher={tiny_sd}", f"--data.prompts={prompts}", "--data.batch_size=2",
        "--data.num_workers=0", "--trainer.accelerator=cpu", "--image_grid.every_n_steps=0",
        "--checkpoint.keep=-1", "--progress.refresh_rate=0",
        f"--trainer.default_root_dir={folder / 'run'}",
    ]  # fmt: skip
    main([*command, "--trainer.max_steps=1"])
    return command


@pytest.fixture
def directory(trained: list[str]) -> Path:
    return Path(trained[-1].partition("=")[2])


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Counter[str], Counter[str]]]:
    """Return a function that counts how often a command verifies and opens checkpoints."""
    verified: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    verify, load = opening.verify_records, torch.load

    def counted_verify(path: Path) -> None:
        verified[path.resolve().name] += 1
        verify(path)

    def counted_load(file: Any, *args: Any, **options: Any) -> Any:
        # A continued run also reads the iteration of good.ckpt.
        if str(file).endswith(".ckpt") and Path(file).name != opening.GOOD:
            opened[Path(file).resolve().name] += 1
        return load(file, *args, **options)

    def during(*command: str) -> tuple[Counter[str], Counter[str]]:
        verified.clear()
        opened.clear()
        main([*command])
        return verified, opened

    monkeypatch.setattr(opening, "verify_records", counted_verify)
    monkeypatch.setattr(torch, "load", counted_load)
    return during


@pytest.mark.slow
def test_generate_and_export_open_a_checkpoint_once(
    directory: Path, tmp_path: Path, count: Callable[..., tuple[Counter[str], Counter[str]]]
) -> None:
    once = Counter({"0000001.ckpt": 1})
    for model in (directory, directory / "checkpoints/last.ckpt"):
        folder = tmp_path / model.stem
        images = count("generate", f"--model={model}", "--prompt=a", f"--output={folder}/a")
        assert images == (once, once)
        exported = count("export", f"--ckpt_path={model}", f"--output={folder}/b")
        assert exported == (once, once)


@pytest.mark.slow
def test_fit_opens_the_resumed_checkpoint_once(
    trained: list[str],
    directory: Path,
    count: Callable[..., tuple[Counter[str], Counter[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(directory.parent)
    relative = f"--trainer.default_root_dir={directory.name}"
    last = count(*trained, relative, "--trainer.max_steps=2", "--ckpt_path=last")
    assert last == (Counter({"0000001.ckpt": 1}),) * 2
    path = directory / "checkpoints/0000002.ckpt"
    named = count(*trained, "--trainer.max_steps=3", f"--ckpt_path={path}")
    assert named == (Counter({"0000002.ckpt": 1}),) * 2


@pytest.mark.slow
def test_a_damaged_file_is_verified_once_and_not_opened(
    trained: list[str], directory: Path, count: Callable[..., tuple[Counter[str], Counter[str]]]
) -> None:
    damaged = directory / "checkpoints/9999999.ckpt"
    data = bytearray((directory / "checkpoints/0000001.ckpt").read_bytes())
    data[len(data) // 2] ^= 16
    damaged.write_bytes(data)
    last = directory / "checkpoints/last.ckpt"
    newest = last.resolve().name
    last.unlink()
    verified, opened = count(*trained, "--trainer.max_steps=4", "--ckpt_path=last")
    assert verified == Counter({damaged.name: 1, newest: 1})
    assert opened == Counter({newest: 1})
