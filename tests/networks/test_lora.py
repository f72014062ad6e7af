"""LoRA adapters on shared weights: how they start, their gradients and their training."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sid_lsg.data.prompts import PromptBatch
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.draws import Phase
from sid_lsg.networks.adapted import Adapted, adapters
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters, Memory
from sid_lsg.teachers.precision import backbone
from sid_lsg.training.alternating import frozen
from sid_lsg.training.ema import update_ema
from sid_lsg.training.module import SiDLSG
from tests.helpers.adapters import (
    ADAPTERS,
    BOTH,
    PROMPTS,
    SEEDS,
    Fit,
    call,
    make,
    places,
    relative,
    stir,
)
from tests.helpers.modules import merged

# ---------------------------------------------------------------------- start


@pytest.mark.slow
def test_networks_start_as_the_teacher_and_share_its_tensors(small_sd: str) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    plain = make(small_sd)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    module = make(small_sd, **BOTH)
    assert torch.equal(torch.get_rng_state(), after)  # adapters do not use the global random state
    own = places(module.teacher.network.parameters())
    images = call(plain, plain.ema)
    for network, rank in ((module.fake_score, 4), (module.generator, 2), (module.ema, 2)):
        assert torch.equal(call(module, network), images)
        assert places(backbone(network).parameters()) == own
        assert len(adapters(network)) == 48
        assert min(min(p.shape) for p in adapters(network).values()) == rank
        assert own.isdisjoint(places(network.parameters()))
        assert all(p.dtype == torch.float32 for p in network.parameters())
    for network in (module.fake_score, module.generator):
        assert {p for p in network.parameters() if p.requires_grad} == {*network.parameters()}
    assert not any(p.requires_grad for p in module.ema.parameters())
    assert places(module.ema.parameters()).isdisjoint(places(module.generator.parameters()))
    assert sum(m.training for m in module.generator.modules()) == 0
    again, other = make(small_sd, **BOTH), make(small_sd, **BOTH, seed=1)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == (".lora_B." in name)
    equal = make(small_sd, lora=Adapters(LoRA(2), LoRA(2)))
    factors = [next(network.parameters()) for network in (equal.fake_score, equal.generator)]
    assert not torch.equal(*factors)


def test_without_adapters_all_weights_are_trained(small_sd: str) -> None:
    module = make(small_sd, lora=Adapters(LoRA(4)))
    assert backbone(module.generator) is module.generator
    assert adapters(module.generator) == {}
    assert merged(module.generator) is module.generator
    assert places(module.generator.parameters()).isdisjoint(places(module.teacher.parameters()))
    assert all(p.requires_grad for p in module.generator.parameters())


def test_moving_and_casting_keep_the_tensors_shared(small_sd: str) -> None:
    module = make(small_sd, **BOTH).double()
    own = places(module.teacher.network.parameters())
    for network in (module.fake_score, module.generator, module.ema):
        assert next(network.parameters()).dtype == torch.float64
        assert places(backbone(network).parameters()) == own


@pytest.mark.gpu
def test_moving_to_a_gpu_keeps_the_tensors_shared(small_sd: str) -> None:
    module = make(small_sd, **BOTH).cuda()
    own = places(module.teacher.network.parameters())
    for network in (module.fake_score, module.generator, module.ema):
        assert places(backbone(network).parameters()) == own
        assert all(p.is_cuda for p in network.parameters())


# ---------------------------------------------------------------------- gradients


def gradients(module: SiDLSG, phase: Phase, network: nn.Module) -> dict[str, Tensor]:
    inputs = module.phase_inputs(phase, PromptBatch(0, 0, PROMPTS, PROMPTS))
    if phase is Phase.FAKE_SCORE:
        module.fake_score_phase(inputs).loss.backward()
    else:
        with frozen([*module.fake_score.parameters()]):
            module.generator_phase(inputs).loss.backward()
    assert all(p.grad is None for p in module.teacher.parameters())
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["fake_score", "generator"])
@pytest.mark.slow
def test_gradients_are_those_of_the_merged_weights(small_sd: str, name: str) -> None:
    """W = W_0 + s B A, so dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW."""
    phase = Phase.GENERATOR if name == "generator" else Phase.FAKE_SCORE
    module, whole = make(small_sd, **BOTH), make(small_sd)
    for seed, network in enumerate(("fake_score", "generator")):
        stir(getattr(module, network), seed)
        plain = merged(getattr(module, network)).requires_grad_(True)
        setattr(whole, network, plain)
    ours = gradients(module, phase, getattr(module, name))
    theirs = gradients(whole, phase, getattr(whole, name))
    own, s = adapters(getattr(module, name)), 3.0 if name == "generator" else 1.0
    assert ours.keys() == own.keys()
    for key in (key for key in own if ".lora_A." in key):
        layer, other = key.split(".lora_A.")[0], key.replace(".lora_A.", ".lora_B.")
        whole_gradient = theirs[f"{layer}.weight"]
        assert relative(ours[key], s * own[other].T @ whole_gradient) < 1e-3, key
        assert relative(ours[other], s * whole_gradient @ own[key].T) < 1e-3, key


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.slow
def test_activation_checkpointing_changes_nothing(small_sd: str, phase: Phase) -> None:
    def made(**options: Any) -> dict[str, Tensor]:
        module = make(small_sd, **BOTH, **options)
        name = "generator" if phase is Phase.GENERATOR else "fake_score"
        for seed, network in enumerate((module.fake_score, module.generator)):
            stir(network, seed)
        return gradients(module, phase, getattr(module, name))

    plain = made()
    checkpointed = made(memory=Memory(checkpointing=["fake_score", "generator", "teacher"]))
    assert len(plain) == 48
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        assert value.abs().max() > 0
        assert torch.equal(value, checkpointed[name]), name


@pytest.mark.slow
def test_a_bf16_base_keeps_float32_adapters(small_sd: str, fit: Fit) -> None:
    half, whole = (
        make(small_sd, **BOTH, memory=Memory("fast", ["fake_score"], p)) for p in ("bf16", "32")
    )
    for module in (half, whole):
        stir(module.fake_score)
    ours, theirs = (gradients(m, Phase.FAKE_SCORE, m.fake_score) for m in (half, whole))
    assert all(value.dtype == torch.float32 for value in ours.values())
    together = [torch.cat([value.flatten() for value in g.values()]) for g in (ours, theirs)]
    assert 0 < relative(*together) < 0.1
    module = fit(memory=Memory(frozen_precision="bf16"))
    own = places(module.teacher.network.parameters())
    for network in (module.fake_score, module.generator, module.ema):
        assert places(backbone(network).parameters()) == own
        assert {p.dtype for p in backbone(network).parameters() if p.dim() > 1} == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in network.parameters())
    assert merged(module.ema).dtype == torch.float32
    assert module.generate(PROMPTS, SEEDS).dtype == torch.float32


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("whole", ["generator", "fake_score", None])
@pytest.mark.slow
def test_training_changes_only_trainable_weights(
    small_sd: str, fit: Fit, whole: str | None
) -> None:
    options = {"lora": replace(ADAPTERS, **{whole: None})} if whole else {}
    start, module = make(small_sd, **BOTH | options), fit(**options)
    before = start.teacher.network.state_dict()
    for name, value in module.teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(call(module, module.teacher.network), call(start, start.teacher.network))
    for name in ("fake_score", "generator", "ema"):
        network = getattr(module, name)
        pairs = zip(network.parameters(), getattr(start, name).parameters(), strict=True)
        assert all(not torch.equal(*pair) for pair in pairs)
        if isinstance(network, Adapted):
            assert network.base is module.teacher.network
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    for optimizer, network in zip(
        module.trainer.optimizers, (module.fake_score, module.generator), strict=True
    ):
        assert optimizer.param_groups[0]["params"] == [*network.parameters()]
        assert optimizer.state.keys() == {*network.parameters()}
        assert all(p.requires_grad for p in network.parameters())


def test_the_ema_covers_only_the_adapters(small_sd: str) -> None:
    module = make(small_sd, **BOTH)
    base = module.teacher.network
    old = [p.clone() for p in stir(module.ema, 1).parameters()]
    before = {name: (p.clone(), p._version) for name, p in base.named_parameters()}
    now = [*stir(module.generator).parameters()]
    update_ema([*module.ema.parameters()], now, 0.75)
    for average, start, end in zip(module.ema.parameters(), old, now, strict=True):
        torch.testing.assert_close(average, 0.75 * start + 0.25 * end)
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p._version == before[name][1]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("to_x", "no layer's name ends with 'to_x'.*to_q'"),
        ("o_q", "no layer's name ends with 'o_q'"),
        ("norm1", "--model.lora.generator.targets: .*norm1' is a LayerNorm, and only linear"),
    ],
)
def test_layers_that_cannot_have_adapters_are_rejected(
    small_sd: str, target: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make(small_sd, lora=Adapters(generator=LoRA(4, targets=["to_q", target])))


def test_training_adapters_needs_no_peft(
    small_sd: str, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert merged(fit(1).ema)
