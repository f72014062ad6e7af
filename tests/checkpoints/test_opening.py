"""A checkpoint is verified once and opened once in a command, whatever is done with it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.checkpoints import opening
from sid_lsg.cli import main


@pytest.fixture(scope="module")
def fit(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a command, which has been run for an iteration."""
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
def run(fit: list[str]) -> Path:
    return Path(fit[-1].partition("=")[2])


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Counter[str], Counter[str]]]:
    """Return a function that counts a command's verifications and openings of checkpoints."""
    verified: Counter[str] = Counter()
    opened: Counter[str] = Counter()
    verify, load = opening.verify_records, torch.load

    def counted_verify(path: Path) -> None:
        verified[path.resolve().name] += 1
        verify(path)

    def counted_load(file: Any, *args: Any, **options: Any) -> Any:
        # Of good.ckpt, another file, a continued run reads the iteration.
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


def test_a_model_is_opened_once(
    run: Path, tmp_path: Path, count: Callable[..., tuple[Counter[str], Counter[str]]]
) -> None:
    once = Counter({"0000001.ckpt": 1})
    for model in (run, run / "checkpoints/last.ckpt"):
        folder = tmp_path / model.stem
        images = count("generate", f"--model={model}", "--prompt=a", f"--output={folder}/a")
        assert images == (once, once)
        exported = count("export", f"--ckpt_path={model}", f"--output={folder}/b")
        assert exported == (once, once)


def test_what_a_run_is_continued_from_is_opened_once(
    fit: list[str], run: Path, count: Callable[..., tuple[Counter[str], Counter[str]]]
) -> None:
    last = count(*fit, "--trainer.max_steps=2", "--ckpt_path=last")
    assert last == (Counter({"0000001.ckpt": 1}),) * 2
    path = run / "checkpoints/0000002.ckpt"
    named = count(*fit, "--trainer.max_steps=3", f"--ckpt_path={path}")
    assert named == (Counter({"0000002.ckpt": 1}),) * 2


def test_a_damaged_file_is_read_once_and_not_opened(
    fit: list[str], run: Path, count: Callable[..., tuple[Counter[str], Counter[str]]]
) -> None:
    damaged = run / "checkpoints/9999999.ckpt"
    data = bytearray((run / "checkpoints/0000001.ckpt").read_bytes())
    data[len(data) // 2] ^= 16
    damaged.write_bytes(data)
    last = run / "checkpoints/last.ckpt"
    newest = last.resolve().name
    last.unlink()
    verified, opened = count(*fit, "--trainer.max_steps=4", "--ckpt_path=last")
    assert verified == Counter({damaged.name: 1, newest: 1})
    assert opened == Counter({newest: 1})
