"""Compare FID and its statistics with scipy, and check the statistics files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.protocol import EvaluationProtocol, clip_protocol
from sid_lsg.metrics.scores import Mean, cosines, frechet_distance
from sid_lsg.metrics.statistics import Collector, Moments, Statistics
from tests.helpers import forked
from tests.helpers.statistics import PIXELS, normal, scipy_fid, statistics


def eigen_fid(a: Tensor, b: Tensor) -> float:
    """Compute the FID with symmetric roots, which also exist for singular covariances."""
    x, y = a.double().numpy(), b.double().numpy()
    s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    half = root(s_x)
    cross = root(half @ s_y @ half)
    distance = np.square(x.mean(0) - y.mean(0)).sum()
    return float(distance + np.trace(s_x) + np.trace(s_y) - 2 * np.trace(cross))


# ---------------------------------------------------------------------- FID


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 48), st.integers(0, 10**6))
def test_fid_equals_scipys_formula(dimension: int, seed: int) -> None:
    count = 4 * dimension + 20  # enough for non-singular covariances, which sqrtm needs
    a, b = (normal(count + i, 2 * seed + i, dimension) for i in range(2))
    expected = scipy_fid(a, b)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics(b), statistics(a)) == pytest.approx(expected, rel=1e-6)


def test_fid_of_many_features_equals_scipys_formula() -> None:
    a, b = normal(700, 1, 256), normal(900, 2, 256)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(
        scipy_fid(a, b), rel=1e-6
    )


@pytest.mark.parametrize(("count", "dimension"), [(50, 64), (5, 8), (2, 3)])
def test_fid_of_fewer_images_than_features(count: int, dimension: int) -> None:
    a, b = normal(count, 1, dimension), normal(300, 2, dimension)
    expected = eigen_fid(a, b)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(statistics(b), statistics(a)) == pytest.approx(expected, rel=1e-6)


def test_fid_of_a_set_with_itself_is_zero() -> None:
    features = normal(100, 1)
    found = statistics(features)
    assert abs(frechet_distance(found, found)) < 1e-8 * float(features.T.cov().trace())


def test_fid_of_float32_features_is_precise_with_a_large_mean() -> None:
    a, b = normal(100, 1) + 1000, (normal(100, 2) + 1000).float()
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(
        scipy_fid(a, b), rel=1e-6
    )


# ---------------------------------------------------------------------- accumulation


def test_moments_equal_numpys_over_uneven_batches() -> None:
    features = normal(60, 2).float()
    found, exact = statistics(features, 1, 7, 30, 22), features.double().numpy()
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-10)
    assert found.count == 60
    assert torch.equal(found.features, features)


def test_moments_can_be_used_again() -> None:
    moments, features = Moments(8), normal(20, 1)
    moments.update(normal(30, 2))
    moments.reset()
    moments.update(features)
    mean, covariance, count, kept = moments.compute()
    torch.testing.assert_close(mean, features.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(covariance, features.T.cov(), rtol=1e-10, atol=0)
    assert (count, len(kept)) == (20, 20)


def _accumulate(rank: int, folder: str) -> None:
    """Accumulate an uneven share of the features in one of two processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    share = normal(60, 2).split([17, 43])[rank]
    moments, mean = Moments(8), Mean()
    for part in share.split(9):
        moments.update(part)
        mean.update(part[:, 0])
    torch.save([*moments.compute(), mean.compute()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_accumulate_as_one(tmp_path: Path) -> None:
    forked.together(_accumulate, str(tmp_path))
    features = normal(60, 2)
    alone = statistics(features)
    reference = statistics(normal(80, 3))
    for rank in range(2):
        mean, covariance, count, kept, average = torch.load(tmp_path / f"{rank}.pt")
        together = Statistics(mean, covariance, count, kept, PIXELS, {})
        assert torch.equal(kept, features)
        assert count == 60
        assert frechet_distance(together, reference) == pytest.approx(
            frechet_distance(alone, reference), rel=1e-12
        )
        assert float(average) == pytest.approx(float(features[:, 0].mean()), rel=1e-12)


def test_the_clip_score_is_the_mean_cosine() -> None:
    images, texts, score = normal(20, 1), normal(20, 2), Mean()
    for image, text in zip(images.split([3, 16, 1]), texts.split([3, 16, 1]), strict=True):
        score.update(cosines(image.float(), text.float()))
    x, y = images.numpy(), texts.numpy()
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert float(score.compute()) == pytest.approx(expected.mean(), rel=1e-6)
    score.reset()
    score.update(cosines(images, 7 * images))
    assert float(score.compute()) == pytest.approx(1)


# ---------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def protocol() -> EvaluationProtocol:
    return clip_protocol(CLIPFeatures.from_pretrained("package:demo/fashion/clip"))


def test_a_collector_describes_prepared_images(protocol: EvaluationProtocol) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (7, 3, 32, 32), generator=generator, dtype=torch.uint8)
    collector = Collector(protocol)
    for _ in range(2):
        collector.reset("cpu")
        features = torch.cat([collector.update(part) for part in images.split(4)])
    found = collector.compute(source="noise")
    assert torch.equal(found.features, features)
    np.testing.assert_allclose(found.mean, features.double().mean(0), rtol=1e-12)
    reds = np.bincount(images[:, 0].flatten(), minlength=256) / (7 * 32 * 32)
    np.testing.assert_allclose(found.pixels.histogram[0], reds, rtol=1e-12)
    assert found.about == {"source": "noise", "protocol": protocol.identity}


def test_statistics_are_loaded_as_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "reference.safetensors"
    found = statistics(normal(30, 1).float(), source="here", protocol={"protocol": "x"})
    found.save(path)
    again = Statistics.load(path)
    assert again.about == found.about
    assert (again.count, again.pixels.count) == (30, 30)
    for name in ("mean", "covariance", "features"):
        ours, theirs = getattr(again, name), getattr(found, name)
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert torch.equal(again.pixels.histogram, PIXELS.histogram)
    assert torch.equal(again.pixels.spectrum, PIXELS.spectrum)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_interrupted_save_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    path.write_text("earlier")
    broken = statistics(normal(30, 1))._replace(mean="no tensor")  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        broken.save(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights_sha256", "0"), ("chain", "another"), ("protocol", "fast"), ("more", 1)],
)
def test_statistics_of_another_protocol_are_rejected(
    protocol: EvaluationProtocol, name: str, value: Any
) -> None:
    statistics(normal(9, 1), protocol=protocol.identity).check_protocol(protocol, "f", "reference")
    other = statistics(normal(9, 1), protocol=protocol.identity | {name: value})
    with pytest.raises(UsageError, match=rf"--reference: 'f'.*its {name} is {value!r}"):
        other.check_protocol(protocol, "f", "reference")
    with pytest.raises(UsageError, match="another protocol"):
        statistics(normal(9, 1)).check_protocol(protocol, "f", "reference")


def save(path: Path, change: dict[str, Tensor | None], **metadata: str) -> None:
    """Write statistics of three features with some tensors changed."""
    tensors: dict[str, Any] = {
        "mean": torch.zeros(3), "covariance": torch.eye(3), "features": torch.zeros(9, 3),
        "histogram": PIXELS.histogram, "spectrum": PIXELS.spectrum,
    }  # fmt: skip
    kept = {name: value for name, value in (tensors | change).items() if value is not None}
    save_file(kept, path, {"count": "9", "about": json.dumps({})} | metadata)


def test_the_file_that_the_rejected_ones_are_made_from_is_accepted(tmp_path: Path) -> None:
    save(tmp_path / "reference.safetensors", {})
    assert Statistics.load(tmp_path / "reference.safetensors").count == 9
    assert len(load_file(tmp_path / "reference.safetensors")) == 5


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_text("fid"),
        lambda path: path.mkdir(),
        lambda path: save_file({"mean": torch.zeros(3)}, path),
        lambda path: save(path, {"covariance": None}),
        lambda path: save(path, {"features": None}),
        lambda path: save(path, {"spectrum": None}),
        lambda path: save(path, {}, count="many"),
        lambda path: save(path, {}, count="1"),
        lambda path: save(path, {}, about="{"),
        lambda path: save(path, {"covariance": torch.eye(2)}),
        lambda path: save(path, {"features": torch.zeros(9, 2)}),
        lambda path: save(path, {"mean": torch.zeros(())}),
    ],
)
def test_files_without_statistics_are_rejected(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "reference.safetensors"
    write(path)
    with pytest.raises(UsageError) as caught:
        Statistics.load(str(path), "metrics.reference")
    message = str(caught.value)
    assert message.startswith(
        f"--metrics.reference: {str(path)!r} contains no reference statistics"
    )
    assert "Give a folder of images" in message
