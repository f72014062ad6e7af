"""Diversity and alignment of a sampler, from a few prompts and seeds."""

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_lsg.distributed.processes import batches_of, gather, process
from sid_lsg.metrics.evaluator import Sampler
from sid_lsg.metrics.features import CLIPFeatures


class Probe(NamedTuple):
    """Means over P prompts x S seeds; c is the cosine similarity of CLIP embeddings.

    Attributes:
        within: 1 - c over pairs of images of one prompt.
        across: 1 - c over pairs of images of two prompts.
        clip: c of images and their prompts.
        retrieval: Share of images whose own prompt has the largest c of the P prompts.
    """

    within: float
    across: float
    clip: float
    retrieval: float

    def relative_to(self, teacher: "Probe") -> "Probe":
        """Divide by the teacher's values."""
        return Probe(*(own / max(other, 1e-6) for own, other in zip(self, teacher, strict=True)))


@torch.no_grad()
def probe(
    sampler: Sampler,
    features: CLIPFeatures,
    prompts: Sequence[str],
    num_seeds: int,
    batch_size: int,
) -> Probe:
    """Sample every prompt with its own seeds, and measure diversity and alignment. For all ranks.

    The processes share the batches. All of them sample equally often, as a sharded network needs.

    Args:
        sampler: The sampler to measure.
        features: A CLIP model.
        prompts: P distinct prompts.
        num_seeds: Seeds per prompt, S.
        batch_size: Images per batch.
    """
    texts = [prompt for prompt in prompts for _ in range(num_seeds)]
    batches, (rank, world) = batches_of(len(texts), batch_size), process()
    images: list[tuple[int, Tensor]] = []
    for turn in range(0, len(batches), world):
        number = turn + rank
        seeds = batches[number if number < len(batches) else 0]
        found = features.images(sampler([texts[seed] for seed in seeds], seeds))
        if number < len(batches):
            images.append((number, found.cpu()))
    whole = torch.cat([found for _, found in sorted(gather(images), key=itemgetter(0))])
    return measure(whole, features.texts(prompts).cpu())


def choose_prompts(prompts: Sequence[str], count: int) -> list[str]:
    """Choose at most `count` distinct, evenly spaced prompts.

    Only 16 * `count` prompts are examined, because a corpus may have millions. Several candidates
    per choice leave room for duplicates.
    """

    def even(items: Sequence[str], number: int) -> list[str]:
        number = min(number, len(items))
        return [items[i * len(items) // number] for i in range(number)]

    return even(list(dict.fromkeys(even(prompts, 16 * count))), count)


def measure(images: Tensor, texts: Tensor) -> Probe:
    """Measure the diversity and alignment of embeddings.

    Args:
        images: [P S, D], the S images of each prompt together.
        texts: [P, D].
    """
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    prompt = torch.arange(len(texts), device=images.device)
    prompt = prompt.repeat_interleave(len(images) // len(texts))
    distance = (1 - images @ images.T).clamp(min=0)  # rounding may give less for equal images
    same = prompt[:, None] == prompt
    others = same & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    cosine = images @ texts.T
    return Probe(
        float(distance[others].mean()),
        float(distance[~same].mean()),
        float(cosine.gather(1, prompt[:, None]).mean()),
        float((cosine.argmax(1) == prompt).float().mean()),
    )


def below(limit: float, ratios: dict[str, float]) -> str:
    """Describe the ratios to the teacher that are below a limit or NaN; return "" if none is."""
    return "; ".join(
        f"{name} is {ratio:.2f} times the teacher's (limit {limit:g})"
        for name, ratio in ratios.items()
        if not ratio >= limit
    )
