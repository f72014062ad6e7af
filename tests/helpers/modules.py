"""Training modules for tests: networks that differ from the teacher, and NaN samples."""

import copy
from typing import Any

import torch
from torch import nn

from sid_lsg.data.prompts import PromptBatch
from sid_lsg.method.draws import Phase
from sid_lsg.networks.adapted import Adapted
from sid_lsg.networks.lora import merge
from sid_lsg.training.module import SiDLSG

PROMPTS = ["a red cat", "two dogs running", "a blue bird", "the moon", "a dancer", "an old book"]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4, betas=(0.0, 0.999))


def part_from_teacher(network: torch.nn.Module) -> None:
    """Perturb weights: networks start equal, so their difference and the gradient are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * p.std().nan_to_num() * torch.randn(p.shape, generator=generator)


def merged(network: nn.Module) -> nn.Module:
    """Return a copy of a network with its adapters merged, in float32, or the network itself."""
    if not isinstance(network, Adapted):
        return network
    return merge(network.on_base(copy.deepcopy(network.base).float())).eval()


class Poisoned(SiDLSG):
    """Make the generator's output NaN at some global positions in iteration 1."""

    positions: tuple[int, ...] = (1,)

    def phase_inputs(self, phase: Phase, batch: PromptBatch) -> Any:
        inputs = super().phase_inputs(phase, batch)
        if batch.iteration == 1:
            for position in self.positions:
                inputs.draws.noises[0][position] = float("nan")
        return inputs
