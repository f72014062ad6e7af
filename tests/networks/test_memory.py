"""Activation checkpointing in phase 2: bitwise equal gradients with fewer stored activations."""

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sid_lsg.data.prompts import PromptBatch
from sid_lsg.method.draws import Phase
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.training import Activations, Memory
from sid_lsg.training.module import SiDLSG

GUIDED = Guidance("lsg", 2.0)


def made(source: str, memory: Activations, **options: object) -> SiDLSG:
    """Return a module with different networks, so that gradients are not zero."""
    module = SiDLSG(source, memory=Memory(memory), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (module.fake_score, module.generator):
            for p in network.parameters():
                p += 0.01 * torch.randn(p.shape, generator=generator)
    module.fake_score.requires_grad_(False)
    return module


def backward(module: SiDLSG, batch: int) -> None:
    prompts = [f"a {i} b" for i in range(batch)]
    inputs = module.phase_inputs(Phase.GENERATOR, PromptBatch(0, 0, prompts, prompts))
    module.generator_phase(inputs).loss.backward()


def peak(call: Callable[[], None]) -> int:
    """Return the peak bytes that torch allocated during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("guidance", [GUIDED, Guidance("none")], ids=["guided", "unguided"])
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.slow
def test_gradients_are_bitwise_equal(tiny_sd: str, guidance: Guidance, num_steps: int) -> None:
    gradients = []
    for memory in ("fast", "balanced", "lean"):
        module = made(tiny_sd, memory, guidance=guidance, num_steps=num_steps)  # type: ignore[arg-type]
        backward(module, 2)
        gradients.append([p.grad for p in module.generator.parameters()])
    assert any(g.abs().max() > 0 for g in gradients[0])
    for others in gradients[1:]:
        assert all(torch.equal(g, other) for g, other in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("source", ["tiny", "architecture:sd15-small"])
@pytest.mark.slow
def test_lean_stores_fewer_activations(tiny_sd: str, source: str) -> None:
    """`lean` needs at most 60 % of `fast`, by torch's profiler."""
    options = {} if source == "tiny" else {"resolution": 64}
    peaks = {}
    for memory in ("fast", "balanced", "lean"):
        module = made(tiny_sd if source == "tiny" else source, memory, guidance=GUIDED, **options)  # type: ignore[arg-type]
        for p in module.generator.parameters():
            p.grad = torch.zeros_like(p)  # allocated beforehand: gradients are not activations
        backward(module, 1)  # caches the null prompt
        peaks[memory] = peak(lambda module=module: backward(module, 4))
    assert peaks["lean"] < 0.6 * peaks["fast"]
    assert peaks["lean"] < peaks["balanced"] < 0.8 * peaks["fast"]


@pytest.mark.slow
def test_lean_stores_one_generator_step_at_a_time(tiny_sd: str) -> None:
    """`lean` takes as much memory for four steps as for one, apart from latents."""
    peaks = []
    for num_steps in (1, 4):
        module = made(tiny_sd, "lean", guidance=GUIDED, num_steps=num_steps)
        for p in module.generator.parameters():
            p.grad = torch.zeros_like(p)
        backward(module, 1)
        peaks.append(peak(lambda module=module: backward(module, 4)))  # type: ignore[misc]
    assert peaks[1] < 1.02 * peaks[0]
