"""Select and replace conditioning per sample, and drop prompts."""

import torch

from sid_lsg.method.conditioning import concatenate, drop_prompts, expand, replace_where, select


def test_conditioning_operations_work_per_sample() -> None:
    condition = {"states": torch.arange(12.0).view(3, 2, 2), "pooled": torch.arange(3.0)}
    null = {"states": torch.full((1, 2, 2), -1.0), "pooled": torch.full((1,), -1.0)}
    assert select(condition, torch.tensor([2, 0]))["pooled"].tolist() == [2, 0]
    assert expand(null, 3)["states"].shape == (3, 2, 2)
    assert concatenate(condition, null)["pooled"].tolist() == [0, 1, 2, -1]
    replaced = replace_where(torch.tensor([True, False, True]), condition, null)
    assert replaced["pooled"].tolist() == [-1, 1, -1]
    assert replaced["states"].amax((1, 2)).tolist() == [-1, 7, -1]
    assert torch.equal(replaced["states"][1], condition["states"][1])


def test_prompts_are_dropped_below_the_probability() -> None:
    condition, null = {"states": torch.ones(4, 2)}, {"states": torch.zeros(1, 2)}
    u = torch.tensor([0.0, 0.0999, 0.1, 0.9])
    dropped = drop_prompts(condition, null, u, 0.1)["states"]
    assert dropped.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert torch.equal(drop_prompts(condition, null, u, 0.0)["states"], condition["states"])
    assert not drop_prompts(condition, null, u, 1.0)["states"].any()
