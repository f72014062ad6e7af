"""Copies of a checkpoint that stay as they are while the training goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sid_lsg.checkpoints import host_copy as module
from sid_lsg.checkpoints.file import save
from sid_lsg.checkpoints.host_copy import host_copy


def sharing() -> list[Tensor]:
    """Return tensors that share their memory."""
    whole = torch.arange(24.0)
    return [whole.view(4, 6), whole[5:9], whole.detach()]


TENSORS: dict[str, Callable[[], list[Tensor]]] = {
    "a number": lambda: [torch.tensor(3.0)],
    "no elements": lambda: [torch.empty(0, 3)],
    "half precision": lambda: [torch.randn(3, 5).bfloat16()],
    "bytes": lambda: [torch.arange(5, dtype=torch.uint8)],
    "channels last": lambda: [torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)],
    "transposed": lambda: [torch.randn(3, 5).T],
    "one tensor twice": lambda: [torch.ones(3)] * 2,
    "shared memory": sharing,
    "a sparse layout": lambda: [torch.eye(3).to_sparse()],
    "a parameter": lambda: [torch.nn.Parameter(torch.randn(3))],
}


def content(tensors: list[Tensor]) -> dict[str, Any]:
    return {
        "state_dict": {str(number): tensor for number, tensor in enumerate(tensors)},
        "optimizer_states": [
            {"state": {0: {"step": tensors[0]}}, "param_groups": [{"lr": torch.tensor(0.1)}]}
        ],
        "callbacks": {"one": {"seen": [1, 2], "last": (torch.ones(2), "text")}},
    }


@pytest.mark.parametrize("kind", TENSORS)
def test_a_copy_is_written_as_the_original_was(kind: str, tmp_path: Path) -> None:
    state = content(TENSORS[kind]())
    save(state, tmp_path / "before")
    copied = host_copy(state)
    for tensor in (*state["state_dict"].values(), state["callbacks"]["one"]["last"][0]):
        tensor.data.mul_(0)
    state["optimizer_states"][0]["param_groups"][0]["lr"].fill_(1)
    state["callbacks"]["one"]["seen"].append(3)
    save(copied, tmp_path / "after")
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()


def test_gathered_states_are_not_copied_again() -> None:
    state = content([torch.ones(4)])
    copied = host_copy(state, gathered=True)
    assert copied["state_dict"]["0"] is state["state_dict"]["0"]
    assert copied["optimizer_states"][0]["state"][0]["step"] is state["state_dict"]["0"]
    groups = [s["optimizer_states"][0]["param_groups"][0]["lr"] for s in (copied, state)]
    assert groups[0] == groups[1]
    assert groups[0] is not groups[1]


@pytest.mark.parametrize(("gathered", "size"), [(False, 24 * 4 + 4 + 8), (True, 4 + 8)])
def test_shared_memory_counts_once(
    gathered: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "has_room", lambda size: asked.append(size))
    assert host_copy(content(sharing()), gathered) is None
    assert asked == [size]
