"""Folders of images are read exactly, and bad files are named."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sid_lsg.images.folder import ImageReader, list_images, read_image
from sid_lsg.messages.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write five images of several modes and sizes, one in a subfolder, and a text file."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(noise).save(root / "b.png")
    Image.fromarray(noise[:20]).save(root / "a.JPG", quality=95)
    Image.fromarray(noise[..., 0]).save(root / "c.png")  # grey
    Image.fromarray(noise).convert("P").save(root / "d.png")  # a palette
    Image.fromarray(noise).save(root / "more" / "e.webp", lossless=True)
    (root / "notes.txt").write_text("no image")
    return root


NAMES = ["a.JPG", "b.png", "c.png", "d.png", "more/e.webp"]


def test_images_are_listed_in_the_order_of_their_paths(folder: Path) -> None:
    found = list_images(str(folder), "images")
    assert [path.relative_to(folder).as_posix() for path in found] == NAMES


def test_sheets_written_by_commands_are_not_listed(folder: Path) -> None:
    for name in ("contact_sheet.png", "samples.png", "alignment.png"):
        (folder / name).write_bytes((folder / "b.png").read_bytes())
    assert (
        len(list_images(folder, "images")) == 8
    )  # without the identifying files they are ordinary images
    (folder / "images.json").write_text("{}")
    (folder / "report.json").write_text("{}")
    found = list_images(folder, "images")
    assert [path.relative_to(folder).as_posix() for path in found] == NAMES


def test_images_of_any_kind_are_read_as_rgb(folder: Path) -> None:
    for path in list_images(folder, "images"):
        found = read_image(path)
        expected = np.asarray(Image.open(path).convert("RGB"))
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.permute(1, 2, 0), expected)


def test_16_bit_grey_is_read_and_32_bit_grey_is_rejected(folder: Path) -> None:
    grey = np.arange(900, dtype=np.uint16).reshape(30, 30) * 72
    Image.fromarray(grey).save(folder / "f.png")
    assert read_image(folder / "f.png").float().mean() == pytest.approx(grey.mean() / 257, abs=0.1)
    Image.fromarray(grey.astype(np.float32)).save(folder / "f.tif")
    reader = ImageReader([folder / "f.tif"])
    assert list(reader.read([range(1)])) == []
    with pytest.raises(UsageError, match=r"f\.tif \(it has 32 bits per pixel"):
        reader.check("images")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_images_are_prefetched_in_order(folder: Path, size: int) -> None:
    paths = list_images(folder, "images")
    chunks = [range(i, min(i + size, 5)) for i in range(0, 5, size)]
    reader = ImageReader(paths, workers=2)
    found = list(reader.read(chunks))
    assert [places for places, _ in found] == [list(chunk) for chunk in chunks]
    for places, images in found:
        for place, image in zip(places, images, strict=True):
            assert torch.equal(image, read_image(paths[place]))
    reader.check("images")


def test_unreadable_images_are_counted_and_named(folder: Path) -> None:
    """Truncated, empty, foreign and missing files do not stop the readable ones."""
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "a.JPG").write_bytes((folder / "a.JPG").read_bytes()[:-300])
    (folder / "c.png").write_bytes(b"")
    (folder / "d.png").write_text("<html>404</html>")
    paths = [*list_images(folder, "images"), folder / "gone.png"]
    reader = ImageReader(paths)
    read = [
        place
        for places, _ in reader.read([range(0, 2), range(2, 4), range(4, 6)])
        for place in places
    ]
    assert read == [4]
    with pytest.raises(UsageError) as caught:
        reader.check("images")
    message = str(caught.value)
    assert message.startswith("--images: 5 of 6 images cannot be read: ")
    for name in ("a.JPG", "b.png", "c.png", "d.png", "gone.png"):
        assert str(folder / name) in message
    assert "truncated" in message
    assert "e.webp" not in message


def test_what_scores_ignore_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGB", (4, 4))
    exif = image.getexif()
    exif[0x112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    image.convert("RGBA").save(tmp_path / "b.png")
    image.save(tmp_path / "c.png")
    reader = ImageReader(list_images(tmp_path, "images"))
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert [places for places, _ in reader.read([range(3)])] == [[0, 1, 2]]
        reader.check("reference")
    (said,) = caplog.messages
    assert said.startswith("2 of 3 images of --reference have an EXIF orientation or an alpha ch")


def test_a_long_list_of_unreadable_images_is_shortened(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:02d}.png" for i in range(14)]
    reader = ImageReader(paths)
    assert list(reader.read([range(14)])) == []
    with pytest.raises(UsageError, match=r"14 of 14 .*09\.png.* and 4 more\. Replace"):
        reader.check("images")


def test_folders_without_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--reference: there is no folder .*none"):
        list_images(tmp_path / "none", "reference")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=r"--images: .* contains no image \(\.bmp"):
        list_images(tmp_path, "images")


def small(path: Path) -> Path:
    """Write a small image, whose format is that of the suffix; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "._0.png", ".0.png", ".ipynb_checkpoints/0-checkpoint.png", "more/._b.JPG",
        "more/.thumbnails/normal/0.png", "__MACOSX/._0.png", "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        ".git/deep/er/0.webp",
    ],
)  # fmt: skip
def test_hidden_images_are_left_out_and_counted(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / ".cache" / "photos"  # only names below the folder count
    images = [small(root / "0.png"), small(root / "more" / "1.PNG")]
    small(root / name)
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert list_images(root, "images") == images
    assert caplog.messages == [f"2 images in {root}; not used: 1 hidden images."]


def test_other_kinds_of_files_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [small(tmp_path / "a.jpeg"), small(tmp_path / "b.TIFF")]
    for name in ("x.gif", "y.GIF", "z.heic", "more/LICENSE", "a.txt", "b.txt", "metadata.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert list_images(tmp_path, "images") == images
    (said,) = caplog.messages
    kinds = "2 .gif (such as x.gif), 1 .heic (such as z.heic), 1 .png (such as pipe.png), "
    assert said.endswith(f"; not used: {kinds}1 no suffix (such as LICENSE).")
    for path in images:
        path.unlink()
    with pytest.raises(UsageError, match=r"contains no image \(.*\)\. It holds 2 \.gif .*LICENSE"):
        list_images(tmp_path, "images")


def test_links_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "photos", tmp_path / "elsewhere"
    paths = [small(root / "0.png"), root / "1.png", root / "linked" / "deep" / "2.png"]
    small(outside / "deep" / "2.png")
    paths[1].symlink_to(small(tmp_path / "target.png"))
    (root / "linked").symlink_to(outside)
    (root / "back").symlink_to(root)
    (outside / "deep" / "loop").symlink_to(outside)
    assert list_images(root, "images") == paths
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UsageError, match=r"--images: 1 links in .* lead nowhere, .*gone\.png"):
        list_images(root, "images")
