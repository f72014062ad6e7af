"""The FLOPs and bytes of one network evaluation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sid_lsg.costs.evaluation import AsOnCuda, Meter, evaluation
from sid_lsg.networks.memory import checkpoint_gradients
from sid_lsg.teachers.families import outline
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.counted_costs import allocations


@pytest.mark.slow
def test_stable_diffusion_costs_the_published_flops() -> None:
    """METHOD: 803 GFLOP forward, counting a multiply-add as two."""
    teacher = StableDiffusion.build("sd15", "meta")
    cost = evaluation(teacher, teacher.network, "weights")
    assert cost.forward == pytest.approx(803e9, rel=1e-3)
    # Twice that, plus attention's scores, which are recomputed.
    assert cost.backward == pytest.approx(2.075 * 803e9, rel=1e-2)


def test_flops_equal_those_of_pytorchs_counter(tiny_sd: str) -> None:
    teacher = outline(tiny_sd)
    x_t = torch.empty(1, *teacher.latent_shape, device="meta", requires_grad=True)
    condition, t = teacher.null_condition(), torch.empty(1, device="meta")
    with AsOnCuda(), FlopCounterMode(display=False) as counter:
        out = teacher.predict(teacher.network, x_t, t, condition)
        torch.autograd.backward(torch.autograd.graph.get_gradient_edge(out), torch.empty_like(out))
    cost = evaluation(teacher, teacher.network, "inputs")
    assert cost.forward + cost.backward == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("gradient", ["weights", "inputs"])
def test_an_evaluation_allocates_the_predicted_bytes(
    tiny_sd: str, gradient: Any, checkpointed: bool
) -> None:
    samples, names = 16, ["teacher"] if checkpointed else []
    teacher, real = outline(tiny_sd), StableDiffusion.from_pretrained(tiny_sd)
    for each in (teacher, real):
        checkpoint_gradients({"teacher": each.network}, names)
    cost = evaluation(teacher, teacher.network, gradient)

    real.network.requires_grad_(gradient == "weights")
    for p in real.network.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    condition = {name: v.repeat(samples, 1, 1) for name, v in real.null_condition().items()}
    x_t = torch.randn(samples, *real.latent_shape, requires_grad=gradient == "inputs")
    t = torch.full((samples,), 500)

    def forward() -> torch.Tensor:
        return real.predict(real.network, x_t, t, condition)

    with allocations() as found:
        out = forward()
    assert found["left"] == pytest.approx(cost.kept(samples), rel=0.1)
    del out
    ones = torch.ones_like(x_t.detach())
    with allocations() as found:
        forward().backward(ones)
    assert found["peak"] == pytest.approx(cost.peak(samples), rel=0.1)


def test_mixed_precision_follows_cuda_autocast() -> None:
    x, weight = torch.empty(2, 32, 8, 8, device="meta"), torch.empty(32, 32, 3, 3, device="meta")
    with AsOnCuda(torch.bfloat16):
        product = F.conv2d(x, weight)
        assert product.dtype == torch.bfloat16
        assert F.group_norm(product, 4).dtype == torch.float32
        assert F.silu(product).dtype == torch.bfloat16


def test_attention_stores_no_scores() -> None:
    query = torch.empty(1, 8, 4096, 40, device="meta", requires_grad=True)
    with AsOnCuda(), Meter() as meter:
        F.scaled_dot_product_attention(query, query, query)
    assert meter.peak_of_all < 2 * query.nbytes
    assert meter.flops == 2 * 2 * 8 * 4096**2 * 40


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_convolutions_backward_pass_counts_as_two_forward(kind: Any, groups: int) -> None:
    with torch.device("meta"):
        layer = kind(8, 8, 3, padding=1, groups=groups)
        x = torch.empty(2, 8, 16, 16, requires_grad=True)
    with Meter() as meter:
        out = layer(x)
        forward = meter.flops
        out.sum().backward()
    assert forward == 2 * 2 * 16**2 * 8 * (8 // groups) * 9
    assert meter.flops == 3 * forward
