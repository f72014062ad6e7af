"""A study's options: merged, written as arguments, and those of its prompt files."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sid_lsg.messages.errors import UsageError
from sid_lsg.study.options import PromptFile, arguments, explicit, flatten, merge
from tests.helpers.small_studies import DEMO, names
from tests.helpers.studies import read


@given(st.lists(st.dictionaries(names, st.integers(), max_size=3), max_size=4))
def test_merging_options_works_like_a_command_line(parts: list[dict[str, int]]) -> None:
    """The last value of a name wins, unless its whole section is set later."""
    given_ = [item for part in parts for item in part.items()]
    last = {name: place for place, (name, _) in enumerate(given_)}

    def replaced(name: str) -> bool:
        sections = [name[:i] for i, letter in enumerate(name) if letter == "."]
        return any(last.get(section, -1) > last[name] for section in sections)

    expected = {name: given_[last[name]][1] for name in last if not replaced(name)}
    assert merge(*parts) == expected


trees = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), trees, max_size=3))
def test_flat_options_contain_the_whole_tree(tree: dict[str, Any]) -> None:
    built: dict[str, Any] = {}
    for name, value in flatten(tree).items():
        *sections, last = name.split(".")
        place = built
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    assert built == tree


def test_explicit_options_merge_configs_and_study(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("model: {guidance: {preset: lsg, scale: 2}, alpha: 1.0}\n")
    said = explicit([str(config)], {"model.guidance": {"preset": "none"}, "model.tmin": 3})
    assert said == {"model.guidance.preset": "none", "model.alpha": 1.0, "model.tmin": 3}
    config.write_text("just text")
    with pytest.raises(UsageError, match="--base: .*a.yaml' holds no options"):
        explicit([str(config)], {})
    config.write_text("a: [")
    with pytest.raises(UsageError, match="--base: cannot read .*a.yaml' as YAML"):
        explicit([str(config)], {})


def test_arguments_are_parsed_back_to_the_options(tmp_path: Path) -> None:
    options = {
        "model.guidance": {"preset": "lsg", "scale": None, "eval_fake": [1.5, 1]},
        "model.optimizer_fake.init_args.lr": 1e-05,
        "data.prompts": ["a.txt", "b, c.txt"],
        "metrics.clip_prefix": "A photo, of ",
        "model.prompt_dropout": 0,
    }
    config = read(arguments([DEMO], options))
    assert config.model.guidance.as_dict() == {
        "preset": "lsg", "scale": None, "train_fake": None, "eval_fake": [1.5, 1],
        "eval_real": None, "true_cfg": True, "embedded": None,
    }  # fmt: skip
    assert config.model.optimizer_fake.init_args.lr == 1e-05
    assert config.data.prompts == ["a.txt", "b, c.txt"]
    assert config.metrics.clip_prefix == "A photo, of "


PROMPTS = st.lists(
    st.lists(st.sampled_from(["a", "red", "bag", "dress", "on"]), min_size=1).map(" ".join),
    min_size=1,
)


@given(PROMPTS, st.integers(0, 3))
def test_prompt_files_apply_their_options(prompts: list[str], seed: int) -> None:
    file = PromptFile("x", drop_words=0.5, shuffle_words=True, seed=seed)
    made = file.make(prompts)
    assert made == file.make(prompts)
    assert len(made) == len(prompts)
    for new, old in zip(made, prompts, strict=True):
        assert new
        rest = old.split()
        for word in new.split():
            rest.remove(word)  # raises if it is not in the original
    shuffled = PromptFile("x", shuffle_words=True, seed=seed).make(prompts)
    assert [sorted(p.split()) for p in shuffled] == [sorted(p.split()) for p in prompts]
    having = [p for p in prompts if "red bag" in p]
    lacking = [p for p in prompts if "red bag" not in p]
    for kept, options in ((having, {"having": ["red bag"]}), (lacking, {"lacking": ["red bag"]})):
        if kept:
            assert PromptFile("x", **options).make(prompts) == kept
        else:
            with pytest.raises(UsageError, match="--prompt_files: nothing is left"):
                PromptFile("x", **options).make(prompts)


@given(st.floats(0.1, 1), st.integers(0, 3))
def test_a_share_keeps_the_order(share: float, seed: int) -> None:
    prompts = [f"prompt {i:03d}" for i in range(100)]
    made = PromptFile("x", share=share, seed=seed).make(prompts)
    assert len(made) == round(100 * share)
    assert made == sorted(set(made))


def test_prompt_files_are_reproducible() -> None:
    """A run repeated on another machine must have the same prompts."""
    prompts = ["a red bag on a navy background", "a blue dress on a gray background"]
    assert PromptFile("x", shuffle_words=True).make(prompts) == [
        "red navy on a background bag a",
        "background on dress a gray a blue",
    ]
    assert PromptFile("x", drop_words=0.5).make(prompts) == ["bag a", "a blue dress a gray"]
    swapped = PromptFile(
        "x", rewrite={r"^an? (\w+) (.+) on an? (\w+).*$": r"\3, \2 in \1", "bag": "tote"}
    )
    assert swapped.make(prompts) == ["navy, tote in red", "gray, dress in blue"]
    with pytest.raises(UsageError, match="share"):
        PromptFile("x", share=0)
    for pattern, replacement in (("(a", ""), ("(a)", r"\2"), ("a", r"\g<x>")):
        with pytest.raises(UsageError, match="--prompt_files: rewrite"):
            PromptFile("x", rewrite={pattern: replacement})
