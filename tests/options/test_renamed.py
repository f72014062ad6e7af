"""Earlier names of options are read from files and answered on a command line."""

from typing import Any

import pytest
import yaml

from sid_lsg.messages.errors import UsageError
from sid_lsg.options.renamed import (
    RENAMED,
    current,
    current_arguments,
    current_name,
    current_text,
)

OLD: dict[str, Any] = {
    "revision": "main",
    "variant": None,
    "subfolders": {"unet": "unet_ema"},
    "fake_score_init": "a",
    "generator_init": None,
    "lora_fake_score": None,
    "lora_generator": {"rank": 4, "alpha": None, "targets": ["to_q"]},
    "ema_halflife_images": 1000.0,
    "ema_rampup_ratio": 0.2,
    "ema_device": "cpu",
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "norm",
    "gradient_checkpointing": ["teacher"],
    "frozen_precision": "bf16",
    "memory": "lean",
    "tf32": True,
    "compile": False,
}
NEW: dict[str, Any] = {
    "loading": {"revision": "main", "variant": None, "subfolders": {"unet": "unet_ema"}},
    "init": {"fake_score": "a", "generator": None},
    "lora": {
        "fake_score": None,
        "generator": {"rank": 4, "alpha": None, "targets": ["to_q"]},
    },
    "ema": {"halflife_images": 1000.0, "rampup_ratio": 0.2, "device": "cpu"},
    "gradients": {"clip_val": 1.0, "clip_algorithm": "norm"},
    "memory": {"checkpointing": ["teacher"], "frozen_precision": "bf16", "activations": "lean"},
    "compute": {"tf32": True, "compile": False},
}
KEPT = {"teacher": "t", "guidance": {"preset": "lsg", "scale": 1.5}, "micro_batch_size": 4}


def test_a_configuration_gets_current_names() -> None:
    assert {f"model.{name}" for name in OLD} == set(RENAMED)
    rest = {"data": {"prompts": "p.txt"}, "ckpt_path": None, "seed_everything": 0}
    assert current({"model": KEPT | OLD, **rest}) == {"model": KEPT | NEW, **rest}
    assert current({"fit": {"model": OLD}}) == {"fit": {"model": NEW}}


@pytest.mark.parametrize("tree", [{"model": KEPT | NEW}, {"model": "runs/demo", "seed": 1}, {}])
def test_a_current_configuration_is_unchanged(tree: dict[str, Any]) -> None:
    assert current(tree) == tree
    text = f"# a comment\n{yaml.safe_dump(tree)}"
    assert current_text(text) is text


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "word", ""])
def test_values_that_are_no_configuration_are_left_to_the_parser(text: str) -> None:
    assert current_text(text) == text


def test_earlier_and_current_names_can_be_mixed() -> None:
    for pair in (
        {"ema_device": "cpu", "ema": {"halflife_images": 5}},
        {"ema": {"halflife_images": 5}, "ema_device": "cpu"},
    ):
        assert current({"model": pair})["model"] == {"ema": {"halflife_images": 5, "device": "cpu"}}
    mixed = {"memory": {"activations": "lean"}, "frozen_precision": "bf16"}
    expected = {"memory": {"activations": "lean", "frozen_precision": "bf16"}}
    assert current({"model": mixed})["model"] == expected


def test_dotted_names_of_a_study_are_read_too() -> None:
    point = {"model.ema_halflife_images": 0, "model.memory": "lean", "model.alpha": 1}
    study = {"options": point, "series": {"a": {"points": {1: point}}}}
    now = {"model.ema.halflife_images": 0, "model.memory.activations": "lean", "model.alpha": 1}
    assert current(study) == {"options": now, "series": {"a": {"points": {1: now}}}}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model.lora_generator.rank", 4, "model.lora.generator.rank"),
        ("model.memory", "lean", "model.memory.activations"),
        ("model.memory", {"activations": "lean"}, "model.memory"),
        ("model.memory.activations", "lean", "model.memory.activations"),
        ("model.compiler", True, "model.compiler"),
        ("data.revision", "main", "data.revision"),
    ],
)
def test_names(name: str, value: Any, expected: str) -> None:
    assert current_name(name, value) == expected


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--model.ema_halflife_images", "5"], "give --model.ema.halflife_images 5"),
        (["--model.ema_halflife_images=5"], "give --model.ema.halflife_images 5"),
        (["--model.memory", "lean"], "give --model.memory.activations lean"),
        (["--model.lora_generator.rank", "4"], "give --model.lora.generator.rank 4"),
        (["--data.batch_size", "4", "--model.tf32=true"], "give --model.compute.tf32 true"),
    ],
)
def test_an_earlier_name_on_a_command_line_is_answered(arguments: list[str], answer: str) -> None:
    old = next(argument.split("=")[0] for argument in arguments if "model." in argument)
    with pytest.raises(UsageError) as refusal:
        current_arguments(["fit", *arguments])
    assert str(refusal.value) == f"{old} was renamed: {answer}."


def test_the_agent_of_a_sweep_may_use_earlier_names() -> None:
    arguments = [
        "fit",
        "--model.alpha=1",
        "--model.ema_halflife_images=250",
        "--model.tf32",
        "true",
    ]
    now = ["fit", "--model.alpha=1", "--model.ema.halflife_images=250", "--model.compute.tf32"]
    assert current_arguments(arguments, sweep=True) == [*now, "true"]


def test_a_current_command_line_is_unchanged() -> None:
    arguments = [
        "fit",
        "--model.memory",
        "{activations: lean}",
        "--model.ema.device=cpu",
        "-c",
        "x",
    ]
    assert current_arguments(arguments) == arguments
