"""Gradient repair, clipping, norms and reduction, in one process and in two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import sid_lsg.training.gradients
from sid_lsg.distributed.sharding import is_sharded, local, shard, shard_like, whole
from sid_lsg.training.ema import update_ema
from sid_lsg.training.gradients import (
    all_reduce_mean,
    clip_gradients,
    gradient_norm,
    nonfinite_share,
    repair_gradients,
    sample_weights,
    update_ratio,
)
from tests.helpers import forked


def parameters(*gradients: Tensor | None) -> list[nn.Parameter]:
    """Make one parameter per gradient; one with two numbers for a missing gradient."""
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.ones(2) if gradient is None else torch.ones_like(gradient))
        parameter.grad = gradient
        made.append(parameter)
    return made


def two() -> list[nn.Parameter]:
    """Make parameters with gradients (3, 0), (0, 4) and a missing one: total norm 5."""
    return parameters(torch.tensor([3.0, 0.0]), None, torch.tensor([[0.0], [4.0]]))


def test_repair_replaces_nonfinite_entries() -> None:
    inf, nan = math.inf, math.nan
    bad = torch.tensor([[nan, inf, -inf], [-0.5, 3e38, 0.0]])
    good = torch.tensor([1.0, -2.0, 1e-30])
    made = parameters(bad, None, good.clone())
    repair_gradients(made)
    assert made[0].grad is bad  # in place
    assert torch.equal(bad, torch.tensor([[0.0, 1e5, -1e5], [-0.5, 3e38, 0.0]]))
    assert made[1].grad is None
    assert torch.equal(made[2].grad, good)  # type: ignore[arg-type]


def test_clipping_by_norm_scales_all_gradients_together() -> None:
    made = two()
    clip_gradients(made, 2.0, "norm")
    torch.testing.assert_close(made[0].grad, torch.tensor([1.2, 0.0]))
    torch.testing.assert_close(made[2].grad, torch.tensor([[0.0], [1.6]]))
    assert float(gradient_norm(made)) == pytest.approx(2.0, rel=1e-5)


def test_clipping_by_value_clips_each_entry() -> None:
    made = parameters(torch.tensor([3.0, -0.5, -7.0]), None, torch.tensor(1.5))
    clip_gradients(made, 1.0, "value")
    assert [p.grad.tolist() if p.grad is not None else None for p in made] == [
        [1.0, -0.5, -1.0],
        None,
        1.0,
    ]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_keeps_gradients_within_the_limit(algorithm: str) -> None:
    made = two()
    clip_gradients(made, 5.1, algorithm)  # type: ignore[arg-type]
    assert torch.equal(made[0].grad, torch.tensor([3.0, 0.0]))  # type: ignore[arg-type]
    assert torch.equal(made[2].grad, torch.tensor([[0.0], [4.0]]))  # type: ignore[arg-type]


def test_gradient_norm_covers_all_gradients() -> None:
    assert float(gradient_norm(two())) == 5.0
    generator = torch.Generator().manual_seed(0)
    shapes = [(3,), (2, 5), (4, 3, 2, 2), ()]
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    together = np.concatenate([g.numpy().astype(np.float64).ravel() for g in gradients])
    norm = gradient_norm(parameters(*gradients))
    assert norm.shape == ()
    assert float(norm) == pytest.approx(np.linalg.norm(together), rel=1e-6)


def test_nonfinite_share_counts_entries() -> None:
    inf, nan = math.inf, math.nan
    made = parameters(torch.tensor([nan, 1.0, inf]), None, torch.tensor([[-inf, 3e38]]))
    assert float(nonfinite_share(made)) == pytest.approx(3 / 5)
    assert float(nonfinite_share(two())) == 0
    many = parameters(torch.ones(2**25))  # more than float32 can count
    many[0].grad[7] = nan  # type: ignore[index]
    assert float(nonfinite_share(many)) == 2**-25


@pytest.mark.parametrize("limit", [1, 4, 10, 1000])
def test_every_nth_weight_of_the_network_is_sampled(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sid_lsg.training.gradients, "_SAMPLED", limit)
    made = [nn.Parameter(torch.randn(shape)) for shape in [(2, 3, 2, 2), (5,), (), (4, 3)]]
    made[0].data = made[0].data.contiguous(memory_format=torch.channels_last)
    stride = {1: 43, 4: 11, 10: 5, 1000: 1}[limit]  # 42 // limit, made odd
    whole = torch.cat([p.detach().flatten() for p in made])
    sample = sample_weights(made)
    assert torch.equal(sample, whole[::stride])
    with torch.no_grad():
        made[0].zero_()  # a copy, not a view
    assert torch.equal(sample, whole[::stride])


def test_update_ratio_is_the_step_length_relative_to_the_weights() -> None:
    before, after = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert float(update_ratio(before, after)) == pytest.approx(0.1)


def test_a_missing_gradient_counts_as_zero_in_a_single_process() -> None:
    made = two()
    kept = made[0].grad
    all_reduce_mean(made)
    assert made[0].grad is kept
    assert torch.equal(made[1].grad, torch.zeros(2))  # type: ignore[arg-type]
    assert torch.equal(made[2].grad, torch.tensor([[0.0], [4.0]]))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- two ranks

SHAPES = [(5,), (), (3, 4), (2, 3, 2, 2), (7,), (1,)]
MISSING = [{2, 4}, {1, 4}]  # on rank 0 and on rank 1; the fifth on both
BUCKETS = {1: 6, 8: 3, 2**24: 1}  # bucket size -> collectives; at 8: 5+1+12, 24, 7+1


def gradient(rank: int, index: int) -> Tensor | None:
    if index in MISSING[rank]:
        return None
    generator = torch.Generator().manual_seed(10 * rank + index)
    drawn = torch.randn(SHAPES[index], generator=generator)
    # As from cuDNN: the same values in another memory format.
    return drawn.contiguous(memory_format=torch.channels_last) if drawn.dim() == 4 else drawn


def average(rank: int, folder: str) -> None:
    """Average one rank's gradients once per bucket size and save them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reduce, calls = dist.all_reduce, []
    dist.all_reduce = lambda flat: (calls.append(flat.numel()), reduce(flat))  # type: ignore
    found: dict[str, Tensor] = {}
    for size in BUCKETS:
        sid_lsg.training.gradients._BUCKET = size
        made = [nn.Parameter(torch.ones(shape)) for shape in SHAPES]
        for index, parameter in enumerate(made):
            parameter.grad = gradient(rank, index)
        calls.clear()
        all_reduce_mean(made)
        found |= {f"{size}.{i}": p.grad.contiguous() for i, p in enumerate(made)}  # type: ignore
        found[f"{size}.calls"] = torch.tensor(calls)
    save_file(found, f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_average_their_gradients(tmp_path: Path) -> None:
    forked.together(average, str(tmp_path))
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    for size, collectives in BUCKETS.items():
        for found in ranks:
            sizes = found[f"{size}.calls"].tolist()
            assert len(sizes) == collectives
            assert sum(sizes) == sum(math.prod(shape) for shape in SHAPES)
            for index, shape in enumerate(SHAPES):
                both = [gradient(rank, index) for rank in (0, 1)]
                expected = sum((g for g in both if g is not None), torch.zeros(shape)) / 2
                torch.testing.assert_close(found[f"{size}.{index}"], expected, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- sharded over two ranks

SIZES = [3, 1, 8]  # one rank has two of three rows, and the only row of one


def networks() -> list[nn.Module]:
    """Make an EMA and a network with NaN and infinite gradients."""
    pair = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        layers = [nn.Linear(7, size) for size in SIZES]
        for index, p in enumerate(p for layer in layers for p in layer.parameters()):
            p.data = torch.randn(p.shape, generator=generator)
            p.grad = 100 * torch.randn(p.shape, generator=generator)
            if index in (0, 5):
                p.grad.view(-1)[:: p.numel() - 1] = (math.nan, -math.inf)[index == 5]
        pair.append(nn.Sequential(*layers))
    return pair


def treat(ema: nn.Module, network: nn.Module) -> dict[str, Tensor]:
    """Process gradients, weights and EMA as an iteration does; return all results."""
    made = list(network.parameters())
    all_reduce_mean(made)
    found = {"share": nonfinite_share(made)}
    repair_gradients(made)
    clip_gradients(made, 5e4, "value")
    found["norm"] = gradient_norm(made)
    clip_gradients(made, 1.0, "norm")
    found["clipped"] = gradient_norm(made)
    before = sample_weights(made)
    torch.optim.SGD(made, lr=0.1).step()
    found["ratio"] = update_ratio(before, sample_weights(made), sharded=is_sharded(network))
    update_ema([*ema.parameters()], [*network.parameters()], 0.75)
    found |= {f"gradient {i}": whole(p.grad) for i, p in enumerate(made)}  # type: ignore[arg-type]
    found |= {f"average {i}": whole(p.detach()) for i, p in enumerate(ema.parameters())}
    return found


def treat_sharded(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sid_lsg.training.gradients._SAMPLED = 20
    mesh = init_device_mesh("cpu", (2,))
    pair = networks()
    for network in pair:
        gradients = [p.grad for p in network.parameters()]
        shard(network, mesh)
        for p, gradient in zip(network.parameters(), gradients, strict=True):
            p.grad = shard_like(gradient, p)  # type: ignore[arg-type]
            assert local(p).numel() < 0.7 * p.numel() or p.numel() < 8
    save_file(treat(*pair), f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_gradients_are_processed_as_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sid_lsg.training.gradients, "_SAMPLED", 20)  # every fifth of 96 weights
    expected = treat(*networks())
    assert 0 < float(expected["share"]) < 0.1
    assert float(expected["norm"]) > 5e4
    assert float(expected["clipped"]) == pytest.approx(1.0, rel=1e-4)
    forked.together(treat_sharded, str(tmp_path))
    for rank in (0, 1):
        found = load_file(tmp_path / f"rank{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=name)
