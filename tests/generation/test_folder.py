"""Folders of a model's images: continued only by the same model, and foreign files are kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sid_lsg.generation.folder import ImageFolder
from sid_lsg.generation.image_files import ImageFiles, ImageRequest, sample_files
from sid_lsg.generation.models import ImageModel
from sid_lsg.messages.errors import SharedError, UsageError

FABRIC: Any = SimpleNamespace(is_global_zero=True, barrier=lambda: None)
REQUESTS = [ImageRequest(f"{seed}.png", "a cat", seed) for seed in range(3)]


class Grey:
    """A model whose images are a uniform grey that depends on the seed; it records the seeds."""

    def __init__(self, name: str = "grey") -> None:
        self.sampled: list[int] = []
        about = {"model": name, "dtype": "float32"}
        self.model = ImageModel(self.sample, about, 1, lambda prompt: "")

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.sampled += seeds
        return torch.stack([torch.full((3, 8, 8), seed / 255 * 2 - 1) for seed in seeds])


def write(
    root: Path, grey: Grey, overwrite: bool | None = False, exact: bool = True, **options: Any
) -> ImageFiles:
    folder = ImageFolder(root, REQUESTS, overwrite)
    return folder.write(grey.model, {"exact": exact}, 2, FABRIC, **options)


def test_the_folder_describes_its_images(tmp_path: Path) -> None:
    made = write(tmp_path / "out", Grey(), sheet=True, archive=True)
    assert made.paths == [tmp_path / "out" / request.name for request in REQUESTS]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "0.png", "1.png", "2.png", "contact_sheet.png", "images.json", "images.npz",
        "metadata.jsonl",
    }  # fmt: skip
    with Image.open(made.paths[1]) as image:
        assert np.asarray(image)[0, 0].tolist() == [1, 1, 1]
        assert image.text == {"prompt": "a cat", "seed": "1", "model": "grey"}  # type: ignore[attr-defined]
    rows = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert json.loads(rows[2]) == {"file_name": "2.png", "text": "a cat", "seed": 2}
    about = json.loads((tmp_path / "out" / "images.json").read_text())
    assert about == {"model": "grey", "dtype": "float32", "exact": True}
    with np.load(tmp_path / "out" / "images.npz") as archive:
        assert archive["images"][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_only_missing_images_are_sampled(tmp_path: Path) -> None:
    write(tmp_path, Grey())
    (tmp_path / "2.png").unlink()
    again = Grey()
    assert write(tmp_path, again).seconds_per_image is not None
    assert again.sampled == [2]
    assert write(tmp_path, again).seconds_per_image is None
    assert again.sampled == [2]


@pytest.mark.parametrize(
    ("overwrite", "remedy"), [(False, "give --overwrite"), (None, "delete this one")]
)
def test_another_model_or_setting_cannot_continue(
    tmp_path: Path, overwrite: bool | None, remedy: str
) -> None:
    write(tmp_path, Grey())
    before = (tmp_path / "images.json").read_bytes()
    other = Grey("other")
    with pytest.raises(UsageError, match=f"their model is 'grey', and now 'other'.* {remedy}"):
        write(tmp_path, other, overwrite)
    with pytest.raises(UsageError, match="their exact is True, and now False"):
        write(tmp_path, Grey(), overwrite, exact=False)
    assert other.sampled == []
    assert (tmp_path / "images.json").read_bytes() == before


def test_overwrite_replaces_only_images_of_an_earlier_command(tmp_path: Path) -> None:
    write(tmp_path, Grey(), sheet=True)
    (tmp_path / "mine.txt").touch()
    other = Grey("other")
    write(tmp_path, other, overwrite=True)
    assert other.sampled == [0, 1, 2]
    assert (tmp_path / "mine.txt").exists()
    assert not (tmp_path / "contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("name", "overwrite", "remedy"),
    [
        ("diary.txt", False, "or give --overwrite"),
        ("0.png", True, "--overwrite replaces only files that"),
        ("diary.txt", None, "Choose another --output: its folder 'out' is for the model's images"),
    ],
)
def test_foreign_files_are_rejected_before_a_model_is_loaded(
    tmp_path: Path, name: str, overwrite: bool | None, remedy: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    with pytest.raises(UsageError, match=rf"--output: .* such as '{name}'\. .*{remedy}"):
        ImageFolder(tmp_path / "out", REQUESTS, overwrite)


def test_files_of_other_names_do_not_prevent_overwriting(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").touch()
    write(tmp_path, Grey(), overwrite=True)
    assert (tmp_path / "diary.txt").exists()


def test_a_nonfinite_image_is_not_written(tmp_path: Path) -> None:
    bad = ImageModel(
        lambda prompts, seeds: torch.full((len(seeds), 3, 8, 8), torch.nan),
        {"model": "bad", "dtype": "float16"},
        1,
        lambda prompt: "",
    )
    with pytest.raises(UsageError, match="--dtype: image 0.png is not finite in float16"):
        ImageFolder(tmp_path, REQUESTS).write(bad, {}, 2, FABRIC)
    assert not any(tmp_path.glob("*.png"))


def test_a_batch_that_does_not_fit_names_the_option(tmp_path: Path) -> None:
    grey = Grey()

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 120 GiB.\nMore")

    model = ImageModel(sample, grey.model.about, 1, lambda prompt: "")
    with pytest.raises(UsageError, match=r"--batch_size: 3 images .*allocate 120 GiB"):
        sample_files(model, REQUESTS, tmp_path, 3, FABRIC)


def test_processes_that_read_different_weights_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads the newest checkpoint of a run, which may be trained at the same time."""
    other = {"model": "grey", "dtype": "float32", "weights_sha256": "another"}
    monkeypatch.setattr("sid_lsg.generation.folder.gather", lambda own: [*own, other])
    with pytest.raises(SharedError, match="^--model: the processes have read different weights"):
        write(tmp_path / "out", Grey())
    assert not (tmp_path / "out").exists()
