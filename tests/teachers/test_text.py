"""The part of a prompt that is reported as cut off is what the text encoder does not receive."""

import pytest
from transformers import CLIPTokenizer

from sid_lsg.files.sources import resolve
from sid_lsg.teachers.text import cut_off


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
