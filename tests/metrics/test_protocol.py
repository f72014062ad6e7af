"""The protocols resize bitwise like Pillow, and have names and identities."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics import inception
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.inception import InceptionFeatures
from sid_lsg.metrics.protocol import clean256, clip_protocol, load_protocol
from sid_lsg.metrics.resize import bicubic, bicubic_float, fast_bicubic, lanczos
from tests.helpers.embedders import write_inception
from tests.helpers.paths import DATA

# Every 16th and every 13th pixel of the results of `pillow_chain` below with Pillow 13.0.
STORED = DATA / "clean256.safetensors"


def waves(height: int, width: int) -> Tensor:
    """Draw deterministic waves with sharp edges: [3, H, W] uint8."""
    y, x = np.mgrid[:height, :width]
    waves = [
        (x * (3 + c) + y * y // (5 + c) + 40 * ((x // 9 + y // 7) % 2)) % 256 for c in range(3)
    ]
    return torch.from_numpy(np.stack(waves).astype(np.uint8))


def pillow_chain(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Apply the paper's resizing with Pillow only: LANCZOS to 256, bicubic to 299 per channel."""
    small = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = np.asarray(small.resize((256, 256), Image.Resampling.LANCZOS))
    planes = []
    for channel in range(3):
        plane = Image.fromarray(small[:, :, channel].astype(np.float32), mode="F")
        plane = plane.resize((299, 299), Image.Resampling.BICUBIC)
        planes.append(np.asarray(plane).clip(0, 255))
    return small.transpose(2, 0, 1), np.stack(planes)


@pytest.mark.filterwarnings("ignore:'mode' parameter")
@pytest.mark.parametrize("size", [512, 300, 256, 64])
def test_the_papers_resizing_equals_pillows(size: int) -> None:
    image = waves(size, size)
    small, large = pillow_chain(image)
    ours = lanczos(image[None], 256)
    assert ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours[0], small)
    floats = bicubic_float(ours, 299)
    assert floats.dtype == torch.float32
    np.testing.assert_array_equal(floats[0], large)
    assert not torch.equal(floats, floats.round())  # not rounded between the steps


def test_the_papers_resizing_equals_stored_results() -> None:
    """Detect an installed Pillow version that resizes differently."""
    stored, ours = load_file(STORED), lanczos(waves(512, 512)[None], 256)
    assert torch.equal(ours[0, :, ::16, ::16], stored["lanczos256"])
    found = bicubic_float(ours, 299)[0, :, ::13, ::13]
    torch.testing.assert_close(found, stored["bicubic299"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 512), (512, 300), (255, 256)])
def test_the_papers_resizing_crops_the_centre(shape: tuple[int, int]) -> None:
    image, side = waves(*shape), min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    cropped = image[:, top : top + side, left : left + side]
    assert torch.equal(lanczos(image[None], 256), lanczos(cropped[None], 256))


@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (64, 97), (20, 33), (32, 32)])
def test_clip_resizing_equals_transformers(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
        do_rescale=False, do_normalize=False,
    )  # fmt: skip
    image = waves(*shape)
    expected = processor(Image.fromarray(image.permute(1, 2, 0).numpy()))["pixel_values"][0]
    np.testing.assert_array_equal(bicubic(image[None], 32)[0], expected)


@pytest.mark.parametrize("shape", [(64, 64), (80, 80), (16, 16), (64, 90)])
def test_the_fast_resizing_is_close_to_pillow(shape: tuple[int, int]) -> None:
    image = waves(*shape) // 2 + 64  # avoid the values that Pillow clips between its two passes
    side = min(shape)
    left = (shape[1] - side) // 2
    square = Image.fromarray(image[:, :, left : left + side].permute(1, 2, 0).numpy())
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    found = fast_bicubic(image[None], 32)
    assert found.dtype == torch.uint8
    np.testing.assert_allclose(found[0].int(), expected.astype(int), atol=2)


@pytest.mark.parametrize("resize", [lanczos, bicubic, fast_bicubic])
def test_images_of_the_right_size_are_unchanged(resize: object) -> None:
    image = waves(32, 32)[None]
    assert torch.equal(resize(image, 32), image)  # type: ignore[operator]


# ---------------------------------------------------------------------- Inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("inception") / "inception.pt")


@pytest.mark.filterwarnings("ignore:'mode' parameter")
def test_inception_gets_the_papers_pixels(inception_file: Path) -> None:
    protocol = clean256(InceptionFeatures.from_file(str(inception_file)))
    images = [waves(512, 512), waves(200, 512)]
    layers = torch.jit.load(inception_file).layers
    pixels = [pillow_chain(images[0])[1], pillow_chain(images[1][:, :, 156:356])[1]]
    with torch.no_grad():
        expected = layers((torch.from_numpy(np.stack(pixels)) - 128) / 128).flatten(1)
    found = protocol.embed(protocol.prepare(images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    assert protocol.network.dimension == 16
    assert not found.requires_grad


def test_another_network_has_another_identity(inception_file: Path, tmp_path: Path) -> None:
    same, other = write_inception(tmp_path / "a.pt"), write_inception(tmp_path / "b.pt", seed=1)
    identities = [
        clean256(InceptionFeatures.from_file(str(file))).identity
        for file in (inception_file, same, other)
    ]
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["protocol"] == "clean256"


def test_other_files_are_not_inception(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("weights")
    torch.jit.script(nn.ReLU()).save(str(tmp_path / "relu.pt"))
    for name in ("none.pt", "text.pt", "relu.pt"):
        with pytest.raises(UsageError, match=rf"--inception: .*{name}.*is not the TorchScript"):
            InceptionFeatures.from_file(str(tmp_path / name))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_inception_with_weights_that_are_not_finite_is_rejected(
    inception_file: Path, tmp_path: Path, value: float
) -> None:
    network = torch.jit.load(inception_file)
    name, weight = [*network.layers.named_parameters()][-1]
    with torch.no_grad():
        weight.view(-1)[-1] = value
    network.save(str(tmp_path / "damaged.pt"))
    with pytest.raises(UsageError, match=rf"--inception: .*its weight {name} is not finite"):
        InceptionFeatures.from_file(str(tmp_path / "damaged.pt"))


def fetch_from(monkeypatch: pytest.MonkeyPatch, cache: Path, source: Path) -> None:
    monkeypatch.delenv("SID_LSG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(inception, "URL", source.as_uri())


def test_inception_is_downloaded_once_and_verified(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.pt"
    source.write_bytes(inception_file.read_bytes())
    fetch_from(monkeypatch, tmp_path / "cache", source)
    kept = tmp_path / "cache" / "sid_lsg" / inception.FILE

    with pytest.raises(UsageError, match=r"--inception: .* has the SHA-256 .*, not f58cb9b6ec"):
        InceptionFeatures.from_file(None)
    assert list((tmp_path / "cache").rglob("*.pt*")) == []

    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "SHA256", digest)
    assert InceptionFeatures.from_file(None).dimension == 16
    source.unlink()
    assert InceptionFeatures.from_file(None).dimension == 16  # from the cache
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(UsageError, match="cannot be downloaded"):
        InceptionFeatures.from_file(None)  # the damaged copy is not used


# ---------------------------------------------------------------------- names


@pytest.fixture(scope="module")
def clip() -> CLIPFeatures:
    return CLIPFeatures.from_pretrained("package:demo/fashion/clip")


def test_scores_are_named_by_protocol_and_count(clip: CLIPFeatures, inception_file: Path) -> None:
    exact = load_protocol("clean256", None, str(inception_file))
    assert exact.key("fid", 30_000) == "fid_clean256_30k"
    assert exact.key("kid", 1_500) == "kid_clean256_1500"
    assert clip_protocol(clip).key("fid", 2_000) == "fid_clip_2k"
    assert load_protocol("fast", clip).key("precision", 999) == "precision_fast_999"
    counts = [
        load_protocol(n, clip, str(inception_file)).num_images for n in ("clean256", "clip", "fast")
    ]
    assert counts == [30_000, 10_000, 1_000]


def test_exact_and_fast_are_different_protocols_of_one_network(clip: CLIPFeatures) -> None:
    exact, fast = clip_protocol(clip).identity, clip_protocol(clip, fast=True).identity
    assert exact["weights_sha256"] == fast["weights_sha256"]
    assert exact["protocol"] != fast["protocol"]
    assert exact["chain"] != fast["chain"]


def test_a_protocol_without_its_network_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--clip is missing: the protocol `clip`"):
        load_protocol("clip", None)
    with pytest.raises(UsageError, match=r"--metrics\.clip is missing"):
        load_protocol("fast", None, option="metrics.inception")


def test_images_of_several_sizes_are_prepared_together(clip: CLIPFeatures) -> None:
    protocol = clip_protocol(clip)
    images = [waves(64, 64), waves(40, 90), waves(32, 32)]
    together = protocol.prepare(images)
    assert together.shape == (3, 3, 32, 32)
    for image, prepared in zip(images, together, strict=True):
        assert torch.equal(protocol.prepare([image])[0], prepared)
