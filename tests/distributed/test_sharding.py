"""A sharded network computes in mixed precision as an unsharded one does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from sid_lsg.distributed.sharding import shard, whole
from sid_lsg.method.flow import FlowSchedule
from sid_lsg.networks.buffers import copied
from sid_lsg.networks.memory import recompute, set_frozen_precision
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.families import load
from sid_lsg.teachers.precision import set_autocast
from tests.helpers.comparison import relative
from tests.helpers.tiny_families import FAMILIES

PROMPTS = ["a red cat", "two dogs"]
EMBEDDINGS = ("Timesteps", "TimestepEmbedder")  # the classes that read the time


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=[*FAMILIES, "sd"])
def teacher(request: pytest.FixtureRequest, tiny_sd: str) -> Teacher:
    folder = tiny_sd if request.param == "sd" else str(FAMILIES[request.param].folder)
    teacher = load(folder)
    for p in teacher.network.parameters():
        p.data = p.data.contiguous()
    return teacher


def sharded(network: nn.Module) -> nn.Module:
    """Return a copy that is sharded as with bf16-mixed."""
    network = copied(network)
    shard(network, init_device_mesh("cpu", (1,)), half=True)
    set_autocast(network, torch.bfloat16)
    return network


def inputs(teacher: Teacher) -> tuple[Tensor, Tensor, Any]:
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.985, 0.313])
    flows = isinstance(teacher.schedule, FlowSchedule)
    return x_t, times if flows else (1000 * times).long(), teacher.encode_prompts(PROMPTS)


def predicted(teacher: Teacher, network: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Return a prediction, and the times that the network embeds."""
    times: list[Tensor] = []
    modules = [one for one in network.modules() if type(one).__name__ in EMBEDDINGS]
    hooks = [
        one.register_forward_pre_hook(lambda _, args: times.append(args[0])) for one in modules
    ]
    x_t, t, condition = inputs(teacher)
    with torch.no_grad():
        found = teacher.predict(network, x_t, t, condition)
    for hook in hooks:
        hook.remove()
    return found, times


def test_predictions_are_those_of_autocast_and_times_are_not_rounded(teacher: Teacher) -> None:
    exact, times = predicted(teacher, teacher.network)
    assert any(own.dtype != torch.bfloat16 and len(own.unique()) == 2 for own in times)
    with torch.autocast("cpu", torch.bfloat16):
        plain, rounded = predicted(teacher, teacher.network)
    found, seen = predicted(teacher, sharded(teacher.network))
    for own in (rounded, seen):
        assert len(own) == len(times)
        assert all(map(torch.equal, own, times))
    assert found.dtype == plain.dtype == torch.float32
    assert 0 < relative(plain, exact) < 0.05
    assert relative(found, exact) < 1.5 * relative(plain, exact)


def test_a_recomputed_network_has_the_same_gradients(teacher: Teacher) -> None:
    """Also if other networks' frozen weights are stored in bfloat16."""
    x_t, t, condition = inputs(teacher)
    network = sharded(teacher.network.requires_grad_(True))
    set_frozen_precision("bf16", teacher)
    found = []
    for predict in (teacher.predict, recompute(teacher.predict)):
        network.zero_grad()
        x = x_t.clone().requires_grad_()
        predict(network, x, t, condition).square().mean().backward()
        found.append([x.grad, *(whole(p.grad) for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
