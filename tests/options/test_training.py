"""Each group of options checks its values and names the option; every option is documented."""

import ast
import inspect
import math
import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from sid_lsg.messages.errors import UsageError
from sid_lsg.options import guidance, lora, real_data, training
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import EMA, Adapters, Gradients, Memory

inf, nan = math.inf, math.nan


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (EMA, "halflife_images", -1.0, "ema.halflife_images must be a finite number of at least 0"),
        (EMA, "halflife_images", nan, "ema.halflife_images must be a finite number of at least 0"),
        (EMA, "rampup_ratio", -0.05, "ema.rampup_ratio must be a finite number of at least 0"),
        (EMA, "rampup_ratio", nan, "ema.rampup_ratio must be a finite number of at least 0"),
        (EMA, "rampup_ratio", inf, "ema.rampup_ratio must be a finite number of at least 0"),
        (EMA, "device", "cuda", "ema.device must be cpu or null"),
        (Gradients, "clip_val", 0.0, "gradients.clip_val must be a positive number"),
        (Gradients, "clip_val", -1.0, "gradients.clip_val must be a positive number"),
        (Gradients, "clip_val", nan, "gradients.clip_val must be a positive number"),
        (Gradients, "clip_val", inf, "gradients.clip_val must be a positive number"),
        (Gradients, "clip_algorithm", "sum", "gradients.clip_algorithm must be norm or value"),
        (Memory, "activations", "most", "memory.activations must be fast, balanced or lean"),
        (Memory, "checkpointing", ["vae"], "memory.checkpointing must be a list of fake_score, "),
        (Memory, "frozen_precision", "16", "memory.frozen_precision must be 32 or bf16"),
        (Adapters, "generator", LoRA(0), "lora.generator.rank must be at least 1"),
        (Adapters, "fake_score", LoRA(4, nan), "lora.fake_score.alpha must be a positive number"),
    ],
)
def test_values_out_of_range_are_rejected_by_name(
    kind: Any, name: str, value: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=f"^--model.{re.escape(message)}.*, got "):
        kind(**{name: value})


def test_the_limits_are_accepted() -> None:
    EMA(0, 0, "cpu")
    Gradients(1e-3, "value")
    Memory("lean", [*training.CHECKPOINTED], "bf16")


def test_adapters_are_read_from_a_configuration() -> None:
    section = {"fake_score": None, "generator": {"rank": 2, "alpha": 3.0, "targets": ["to_q"]}}
    assert Adapters.of(section) == Adapters(None, LoRA(2, 3.0, ["to_q"]))
    with pytest.raises(UsageError, match="--model.lora.generator.rank"):
        Adapters.of({"generator": {"rank": 0}})


def test_activation_checkpointing_follows_from_the_activations_option() -> None:
    found = [Memory(mode).recomputed for mode in ("fast", "balanced", "lean")]  # type: ignore[arg-type]
    assert found == [(), ("teacher",), ("teacher", "generator")]


def test_every_field_is_documented_for_help() -> None:
    for module in (guidance, lora, real_data, training):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                kind = getattr(module, node.name)
                for field in fields(kind):
                    assert f"\n    {field.name}: " in inspect.getdoc(kind), (kind, field.name)


def test_options_need_no_torch() -> None:
    """Every command can use them, and its --help stays fast."""
    modules = ("guidance", "lora", "method", "real_data", "renamed", "training")
    code = f"import sys; {'; '.join(f'import sid_lsg.options.{name}' for name in modules)}; "
    code += "print({'torch', 'lightning', 'peft', 'diffusers'} & sys.modules.keys() or '')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
