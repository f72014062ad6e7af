"""Equal images get equal scores from samplers, folders and several processes."""

import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sid_lsg.distributed.processes import batches_of, gather
from sid_lsg.images.pixels import to_pil, to_uint8
from sid_lsg.metrics.evaluator import Evaluator, Scores
from sid_lsg.metrics.features import CLIPFeatures
from sid_lsg.metrics.loaded import Loaded
from sid_lsg.metrics.manifold import kernel_distance, overlap
from sid_lsg.metrics.protocol import EvaluationProtocol, clip_protocol
from sid_lsg.metrics.published import SCORES, Published
from sid_lsg.metrics.resize import bicubic
from tests.helpers import forked
from tests.helpers.embedders import DIMENSION, make_clip
from tests.helpers.statistics import normal, scipy_fid, statistics

PROMPTS = ["a red cat", "two dogs on a log", ""]
NUM_IMAGES = 10


class Seeded:
    """Sample images from seeds and prompts, and record the calls."""

    def __init__(self, size: int = 32) -> None:
        self.size = size
        self.calls: list[tuple[list[str], list[int]]] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.calls.append((list(prompts), list(seeds)))
        shape = (3, self.size, self.size)
        images = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds
        ]
        return torch.stack(images) / 2 + torch.tensor([len(p) for p in prompts]).view(-1, 1, 1, 1)


def brightness(network: Any, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Prefer bright images of short prompts."""
    return images.float().mean((1, 2, 3)) - torch.tensor([float(len(text)) for text in texts])


def published(network: CLIPFeatures) -> list[Loaded]:
    """Score by brightness, and by published formulas with a tiny network."""
    chain, plain = clip_protocol(network), clip_protocol(network)
    about = Published("v1", "", lambda *_: None, (0, 0), bicubic, "", rate=brightness)
    found = [Loaded("brightness", about, plain, None)]
    found += [
        Loaded(name, SCORES[name], chain, None) for name in ("cmmd", "fd_dinov2", "diversity")
    ]
    for score in found[1:3]:
        score.reference = REFERENCE
    return found


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tiny_sd: str) -> str:
    return str(make_clip(tmp_path_factory.mktemp("clip") / "clip", Path(tiny_sd, "tokenizer")))


@pytest.fixture(scope="module")
def clip(clip_folder: str) -> CLIPFeatures:
    return CLIPFeatures.from_pretrained(clip_folder)


REAL = normal(40, 1, DIMENSION).float()
REFERENCE = statistics(REAL)  # computed here, in the single parent process


def evaluator(network: CLIPFeatures, **options: Any) -> Evaluator:
    chosen: dict[str, Any] = {"clip": network, "reference": REFERENCE} | options
    return Evaluator(clip_protocol(network), **chosen)


def test_scores_cover_all_images(clip: CLIPFeatures) -> None:
    sampler = Seeded()
    scores = evaluator(clip, clip_prefix="see ", scores=published(clip)[:1]).of_sampler(
        sampler, PROMPTS, NUM_IMAGES, 4, "cpu"
    )
    prompts = [PROMPTS[i % 3] for i in range(NUM_IMAGES)]
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert sampler.calls == [(prompts[part], list(range(10))[part]) for part in parts]

    pixels = to_uint8(Seeded()(prompts, range(NUM_IMAGES)))
    features = clip.embed(pixels)
    cosine = F.cosine_similarity(features, clip.texts([f"see {p}" for p in prompts])).mean()
    shares = overlap(features, REAL, 3)
    expected = {
        "fid": scipy_fid(features, REAL),
        "kid": float(kernel_distance(features, REAL)),
        **{name: float(value) for name, value in shares._asdict().items()},
        "clip_score": float(cosine),
        "brightness": float(brightness(clip, pixels, prompts).mean()),
    }
    assert scores.values == pytest.approx(expected, rel=1e-4)
    assert list(scores.values) == list(expected)
    assert scores.seconds_per_image > 0
    assert scores.statistics.count == NUM_IMAGES


def test_scores_do_not_depend_on_the_batch_size(clip: CLIPFeatures) -> None:
    judge = evaluator(clip, scores=published(clip))
    one, some, whole = (
        judge.of_sampler(Seeded(), PROMPTS, NUM_IMAGES, size, "cpu").values for size in (1, 3, 64)
    )
    assert one == pytest.approx(whole, rel=1e-4)
    assert some == pytest.approx(whole, rel=1e-4)


def test_an_evaluator_can_be_used_again(clip: CLIPFeatures) -> None:
    again = evaluator(clip)

    def score(sampler: Any) -> dict[str, float]:
        return again.of_sampler(sampler, PROMPTS, 6, 3, "cpu").values

    first = score(Seeded())
    other = score(lambda _, seeds: torch.zeros(len(seeds), 3, 32, 32))
    assert other["fid"] != pytest.approx(first["fid"], rel=0.01)
    assert score(Seeded()) == first


def test_nonfinite_images_warn(clip: CLIPFeatures) -> None:
    def broken(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        images = Seeded()(prompts, seeds)
        images[torch.tensor([seed in (2, 7) for seed in seeds]), :, 5] = float("nan")
        return images

    with pytest.warns(UserWarning, match="^2 of 10 sampled images are not finite"):
        evaluator(clip).of_sampler(broken, PROMPTS, NUM_IMAGES, 4, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator(clip).of_sampler(Seeded(), PROMPTS, NUM_IMAGES, 4, "cpu")


def test_scores_without_their_inputs_are_left_out(clip: CLIPFeatures) -> None:
    def names(**options: Any) -> set[str]:
        return set(evaluator(clip, **options).of_sampler(Seeded(), PROMPTS, 5, 5, "cpu").values)

    companions = {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert names() == {*companions, "clip_score"}
    assert names(reference=None) == {"clip_score"}
    assert names(clip=None) == companions
    assert names(reference=statistics(REAL[:3])) == {"fid", "kid", "clip_score"}


def test_the_clip_score_has_its_own_preprocessing_under_another_protocol(
    clip: CLIPFeatures,
) -> None:
    """Pillow resizes large images for the CLIP score, whatever the protocol does."""

    other = EvaluationProtocol(
        "other", clip_protocol(clip).network, 32, lambda images, size: images[..., :size, :size],
        "corner", 10,
    )  # fmt: skip
    prompts = PROMPTS[:2]
    pixels = to_uint8(Seeded(80)(prompts, range(2)))
    second = CLIPFeatures(
        clip.model, clip.tokenizer, {"image_mean": [0.5] * 3, "image_std": [1] * 3}
    )
    found = Evaluator(other, second).of_sampler(Seeded(80), prompts, 2, 2, "cpu")
    assert found.values["clip_score"] == pytest.approx(np.mean(second.scores(pixels, prompts)))
    torch.testing.assert_close(found.statistics.features, clip.embed(pixels[..., :32, :32]))


def test_evaluation_does_not_change_the_random_state(clip: CLIPFeatures) -> None:
    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    evaluator(clip).of_sampler(Seeded(), PROMPTS, 6, 4, "cpu")
    assert state() == before


# ---------------------------------------------------------------------- folders


def write_images(folder: Path, size: int = 32) -> list[Path]:
    folder.mkdir()
    prompts = [PROMPTS[i % 3] for i in range(NUM_IMAGES)]
    paths = [folder / f"{i:03d}.png" for i in range(NUM_IMAGES)]
    for path, image in zip(paths, to_pil(Seeded(size)(prompts, range(NUM_IMAGES))), strict=True):
        image.save(path)
    return paths


@pytest.mark.parametrize("size", [32, 48])
def test_a_folder_scores_like_its_sampler(clip: CLIPFeatures, tmp_path: Path, size: int) -> None:
    paths = write_images(tmp_path / "images", size)
    texts = [PROMPTS[i % 3] for i in range(NUM_IMAGES)]
    judge = evaluator(clip, scores=published(clip))
    sampled = judge.of_sampler(Seeded(size), PROMPTS, NUM_IMAGES, 4, "cpu").values
    scored = judge.of_folder(paths, texts, 4, "cpu", "images").values
    assert scored == sampled  # bitwise equal


def test_a_folder_without_captions_has_no_clip_score(clip: CLIPFeatures, tmp_path: Path) -> None:
    scores = evaluator(clip).of_folder(write_images(tmp_path / "i"), None, 4, "cpu", "images")
    assert "clip_score" not in scores.values
    assert scores.values["fid"] > 0
    assert np.isnan(scores.seconds_per_image)


def test_images_of_several_sizes_are_scored_together(clip: CLIPFeatures, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "i")
    Image.open(paths[3]).resize((64, 90)).save(paths[3])
    texts = [PROMPTS[i % 3] for i in range(NUM_IMAGES)]
    judge = evaluator(clip, scores=published(clip))
    found = [judge.of_folder(paths, texts, size, "cpu", "images").values for size in (10, 1)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# ---------------------------------------------------------------------- processes


def _evaluate(rank: int, folder: str, clip_folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    network, sampler = CLIPFeatures.from_pretrained(clip_folder), Seeded()
    judge = evaluator(network, scores=published(network))
    sampled = judge.of_sampler(sampler, PROMPTS, NUM_IMAGES, 4, "cpu")
    paths = sorted(Path(folder, "images").iterdir())
    texts = [PROMPTS[i % 3] for i in range(NUM_IMAGES)]
    scored = judge.of_folder(paths, texts, 4, "cpu", "images")
    torch.save(
        {"scores": [sampled.values, scored.values], "calls": sampler.calls,
         "gathered": gather([rank])}, f"{folder}/{rank}.pt",
    )  # fmt: skip
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(clip: CLIPFeatures, clip_folder: str, tmp_path: Path) -> None:
    """Of three batches, the second process discards one; it must not be counted."""
    write_images(tmp_path / "images")
    forked.together(_evaluate, str(tmp_path), clip_folder)
    judge = evaluator(clip, scores=published(clip))
    alone: Scores = judge.of_sampler(Seeded(), PROMPTS, NUM_IMAGES, 4, "cpu")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for process in found:
        for scores in process["scores"]:
            assert scores == pytest.approx(alone.values, rel=1e-9)
        assert process["gathered"] == [0, 1]
    seeds = [[seeds for _, seeds in process["calls"]] for process in found]
    assert seeds == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7], [0, 1, 2, 3]]]


def test_there_is_a_batch_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batches_of(10, 4) == [range(0, 4), range(4, 8), range(8, 10)]
    for world in (1, 2, 3, 5):
        monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda world=world: (0, world))
        for total in range(world, 20):
            for size in (1, 3, 50):
                batches = batches_of(total, size)
                assert [i for batch in batches for i in batch] == list(range(total))
                assert len(batches) >= world
                assert max(map(len, batches)) <= size
