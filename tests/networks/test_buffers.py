"""Buffers, such as tables of positions, are stored once for a teacher's network and its copies."""

import torch
from torch import nn

from sid_lsg.networks.buffers import share_buffers
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
