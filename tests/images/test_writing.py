"""PNG files are complete, and their bytes do not depend on the number of threads."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sid_lsg.images.pixels import save_png
from sid_lsg.images.writing import PngWriter


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (16 + n, 24, 3), np.uint8)) for n in range(count)
    ]


def text(number: int) -> PngInfo:
    about = PngInfo()
    about.add_itxt("prompt", f"prompt {number}")
    return about


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path, threads: int) -> None:
    images = pictures(60)
    with PngWriter(threads) as writer:
        for number, image in enumerate(images):
            writer.save(image, tmp_path / f"{number}.png", text(number))
    for number, image in enumerate(images):
        save_png(image, tmp_path / "alone.png", text(number))
        path = tmp_path / f"{number}.png"
        assert path.read_bytes() == (tmp_path / "alone.png").read_bytes()
        with Image.open(path) as found:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(image))
            assert found.info["prompt"] == f"prompt {number}"
    assert len(list(tmp_path.iterdir())) == 61  # no temporary file


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "3.png").mkdir()

    def written() -> None:
        with PngWriter(2) as writer:
            for number, image in enumerate(pictures(5)):
                writer.save(image, tmp_path / f"{number}.png")

    with pytest.raises(IsADirectoryError):
        written()
    assert {path.name for path in tmp_path.iterdir()} >= {"0.png", "1.png", "2.png"}
    assert not list(tmp_path.glob(".*"))


def test_given_images_are_written_before_an_error_leaves_the_context(tmp_path: Path) -> None:
    def interrupted() -> None:
        with PngWriter(2) as writer:
            for number, image in enumerate(pictures(30)):
                writer.save(image, tmp_path / f"{number}.png")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(list(tmp_path.glob("*.png"))) == 30
