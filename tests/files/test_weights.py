"""Compare sets of weights and compute their fingerprints."""

import torch

from sid_lsg.files.weights import first_difference, weights_hash


def test_fingerprints_depend_on_name_dtype_shape_and_value() -> None:
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


def test_the_first_difference_is_named_with_both_shapes() -> None:
    own = {"b": torch.zeros(2), "a": torch.zeros(3, 1)}
    assert first_difference(own, {name: value + 1 for name, value in own.items()}) is None
    for found, said in (
        ({"b": own["b"]}, "'a' is absent from F and [3, 1] in us"),
        (own | {"c": own["b"]}, "'c' is [2] in F and absent from us"),
        (own | {"b": torch.tensor(0.0), "a": own["b"]}, "'a' is [2] in F and [3, 1] in us"),
    ):
        different = first_difference(found, own)
        assert different is not None
        assert different.between("F", "us") == said
