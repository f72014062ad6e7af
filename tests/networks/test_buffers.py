"""Copies of a network share its buffers, and its weights until they are changed."""

import numpy as np
import torch
from torch import nn

from sid_lsg.networks.buffers import copied, share_buffers
from sid_lsg.training.module import SiDLSG
from tests.helpers.tiny_families import FAMILIES


def places(networks: list[nn.Module]) -> list[int]:
    """Return where each network's only buffer lies."""
    return [buffer.data_ptr() for network in networks for buffer in network.buffers()]


def test_copies_share_buffers_and_share_them_again_after_a_move() -> None:
    module = SiDLSG(str(FAMILIES["sd3"].folder))
    networks = [module.teacher.network, module.fake_score, module.generator, module.ema]
    assert len(places(networks)) == 4
    assert len(set(places(networks))) == 1
    for network in networks:
        network.double()
    assert len(set(places(networks))) == 4
    before = next(networks[1].buffers()).clone()
    share_buffers(*networks)
    assert len(set(places(networks))) == 1
    assert torch.equal(before, next(networks[1].buffers()))


def test_buffers_of_other_values_are_kept() -> None:
    first, same, other = (nn.BatchNorm1d(3).eval() for _ in range(3))
    other.running_mean += 1  # type: ignore[operator]
    share_buffers(first, same, other)
    assert same.running_mean.data_ptr() == first.running_mean.data_ptr()  # type: ignore[union-attr]
    assert torch.equal(other.running_mean, torch.ones(3))  # type: ignore[arg-type]
    assert torch.equal(first.running_mean, torch.zeros(3))  # type: ignore[arg-type]


def test_weights_are_copied_when_they_are_first_written_to() -> None:
    module = SiDLSG(str(FAMILIES["sd3"].folder))
    copies = [module.fake_score, module.generator, module.ema]
    weights = [p for network in copies for p in network.parameters()]
    assert all(torch._C._is_cow_tensor(p) for p in weights)

    teacher = [*module.teacher.network.parameters()]
    before = [p.detach().clone() for p in teacher]
    generator = [*module.generator.parameters()]
    for p in generator:
        p.grad = torch.ones_like(p)
    torch.optim.Adam(generator, lr=0.1).step()
    assert not any(torch._C._is_cow_tensor(p) for p in generator)
    for own, fake, ema, old, new in zip(
        teacher, *(network.parameters() for network in (copies[0], copies[2])), before, generator,
        strict=True,
    ):  # fmt: skip
        assert torch.equal(own, old)
        assert torch.equal(fake, old)
        assert torch.equal(ema, old)
        assert not torch.equal(new, old)
    moved = module.fake_score.to(torch.float64)
    assert not any(torch._C._is_cow_tensor(p) for p in moved.parameters())


def test_memory_that_pytorch_did_not_allocate_is_read_first() -> None:
    network = nn.Linear(3, 3, bias=False)
    network.weight = nn.Parameter(torch.from_numpy(np.ones((3, 3), dtype=np.float32)))
    copy = copied(network)
    assert torch._C._is_cow_tensor(network.weight)
    with torch.no_grad():
        next(copy.parameters()).zero_()
    assert torch.equal(network.weight, torch.ones(3, 3))
