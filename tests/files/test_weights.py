"""Fingerprints tell weights apart."""

import torch

from sid_lsg.files.weights import weights_hash


def test_weights_are_told_apart_by_name_type_shape_and_value() -> None:
    a = torch.arange(6.0)
    weights = {"w": a, "b": torch.ones(2)}
    expected = weights_hash(weights)
    assert weights_hash({"b": torch.ones(2), "w": a.clone().requires_grad_()}) == expected
    assert weights_hash({"w": a.view(2, 3).T.contiguous().T.reshape(6), "b": torch.ones(2)}) == (
        expected
    )
    for other in (
        {"v": a, "b": torch.ones(2)},
        {"w": a.double(), "b": torch.ones(2)},
        {"w": a.view(2, 3), "b": torch.ones(2)},
        {"w": a + 1, "b": torch.ones(2)},
        {"w": a},
    ):
        assert weights_hash(other) != expected
    assert len(weights_hash({"s": torch.tensor(1.0, dtype=torch.bfloat16)})) == 64
