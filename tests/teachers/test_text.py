"""The part of a prompt that is reported as cut off is what the text encoder does not receive."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from sid_lsg.files.sources import resolve
from sid_lsg.teachers.text import cut_off, on_device_of
from tests.helpers.paths import REPOSITORY


@pytest.fixture(scope="module", params=["tiny", "fashion"])
def tokenizer(request: pytest.FixtureRequest, tiny_sd: str) -> CLIPTokenizer:
    folder = tiny_sd if request.param == "tiny" else resolve("package:demo/fashion")
    return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, padding="max_length", truncation=True).input_ids


def test_a_prompt_that_fits_is_not_cut_off(tokenizer: CLIPTokenizer) -> None:
    for prompt in ("", "a cat", "a " * (tokenizer.model_max_length - 2)):
        assert cut_off(tokenizer, prompt) == ""


@pytest.mark.parametrize("end", ["the END", "Größe  &  mehr!", "x"])
def test_only_the_kept_part_of_a_prompt_changes_its_tokens(
    tokenizer: CLIPTokenizer, end: str
) -> None:
    words = [f"a{i % 7} red," for i in range(60)]
    prompt = " ".join([*words, end])
    lost = cut_off(tokenizer, prompt)
    assert lost
    assert prompt.endswith(lost)
    kept = prompt.removesuffix(lost)
    assert ids(tokenizer, kept)[:-2] == ids(tokenizer, prompt)[:-2]  # the cut may be within a word
    first = lost.split()[0]
    assert ids(tokenizer, f"{kept}{first} other words") == ids(tokenizer, prompt)
    assert ids(tokenizer, kept.strip()[:-1]) != ids(tokenizer, prompt)


def test_the_host_waits_for_tokens_that_come_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        asked.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    for device in ("cpu", "meta"):
        on_device_of(nn.Linear(1, 1, device=device), torch.zeros(1))
    assert asked == [("cpu", False), ("meta", True)]


def test_no_family_copies_tokens_in_another_way() -> None:
    for path in Path(REPOSITORY / "sid_lsg/teachers").glob("*.py"):
        assert path.name == "text.py" or "non_blocking" not in path.read_text(), path
