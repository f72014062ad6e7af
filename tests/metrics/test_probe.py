"""The probe of a generator: its measures, its seeds and its sharing by processes."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sid_lsg.metrics.probe import below, choose_prompts, measure, probe


def test_measures_equal_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 5, generator=generator).double() for n in (6, 3))

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    within = [1 - cosine(images[i], images[j]) for i, j in pairs if i // 2 == j // 2]
    across = [1 - cosine(images[i], images[j]) for i, j in pairs if i // 2 != j // 2]
    own = [cosine(images[i], texts[i // 2]) for i in range(6)]
    right = [own[i] == max(cosine(images[i], text) for text in texts) for i in range(6)]
    expected = [sum(x) / len(x) for x in (within, across, own, right)]
    assert list(measure(images, texts)) == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_probe_gives_every_image_a_different_seed(batch_size: int) -> None:
    seen: list[tuple[str, int]] = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        assert len(prompts) == len(seeds) <= batch_size
        seen.extend(zip(prompts, seeds, strict=True))
        return torch.eye(9)[list(seeds)]

    features = SimpleNamespace(images=lambda images: images, texts=lambda _: torch.eye(9)[::3])
    found = probe(sampler, features, ["a", "b", "c"], 3, batch_size)  # type: ignore[arg-type]
    assert seen == [(prompt, seed) for seed, prompt in enumerate("aaabbbccc")]
    # with all similarities 0, the first text is the largest
    assert found == pytest.approx((1, 1, 1 / 3, 5 / 9))


@pytest.mark.parametrize(("world", "batch_size"), [(2, 2), (2, 4), (3, 9)])
def test_processes_share_a_probe(
    monkeypatch: pytest.MonkeyPatch, world: int, batch_size: int
) -> None:
    """All of them sample equally often, as a sharded network needs, and find the same."""
    features = SimpleNamespace(images=lambda images: images, texts=lambda _: torch.eye(9)[::3])
    calls: list[int] = []

    def sampler(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        calls[-1] += 1
        return torch.eye(9)[list(seeds)]

    made: list[Any] = []
    where = "sid_lsg.metrics.probe"
    monkeypatch.setattr("sid_lsg.distributed.processes.process", lambda: (0, world))
    monkeypatch.setattr(f"{where}.gather", lambda own: made.extend(own) or made)
    monkeypatch.setattr(f"{where}.measure", lambda *found: found)
    for rank in range(world):
        calls.append(0)
        monkeypatch.setattr(f"{where}.process", lambda rank=rank: (rank, world))
        last: Any = probe(sampler, features, ["a", "b", "c"], 3, batch_size)  # type: ignore[arg-type]
    values = measure(*last)  # of what all processes have gathered
    assert values == pytest.approx((1, 1, 1 / 3, 5 / 9))
    assert len({*calls}) == 1
    assert len(made) * batch_size >= 9


def test_a_nan_ratio_is_below_any_limit() -> None:
    ratios = {"a": 0.5, "b": math.nan, "c": 0.2}
    assert below(0.25, ratios) == (
        "b is nan times the teacher's (limit 0.25); c is 0.20 times the teacher's (limit 0.25)"
    )
    assert below(0.2, {"c": 0.2}) == ""


def test_prompts_are_distinct_and_evenly_spread() -> None:
    assert choose_prompts(["a", "b", "a", "a", "c"], 3) == ["a", "b", "c"]
    assert choose_prompts(["a", "a"], 3) == ["a"]
    assert choose_prompts([str(i) for i in range(1000)], 4) == ["0", "250", "500", "750"]
