"""Renamed options: read earlier names from files, and reject them on a command line."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from sid_lsg.messages.errors import UsageError
from sid_lsg.options.reading import read_yaml

RENAMED = {
    "model.revision": "model.loading.revision",
    "model.variant": "model.loading.variant",
    "model.subfolders": "model.loading.subfolders",
    "model.fake_score_init": "model.init.fake_score",
    "model.generator_init": "model.init.generator",
    "model.lora_fake_score": "model.lora.fake_score",
    "model.lora_generator": "model.lora.generator",
    "model.ema_halflife_images": "model.ema.halflife_images",
    "model.ema_rampup_ratio": "model.ema.rampup_ratio",
    "model.ema_device": "model.ema.device",
    "model.gradient_clip_val": "model.gradients.clip_val",
    "model.gradient_clip_algorithm": "model.gradients.clip_algorithm",
    "model.gradient_checkpointing": "model.memory.checkpointing",
    "model.frozen_precision": "model.memory.frozen_precision",
    "model.memory": "model.memory.activations",
    "model.tf32": "model.compute.tf32",
    "model.compile": "model.compute.compile",
}
"""Earlier dotted name to current dotted name."""

_CHOICES = ("fast", "balanced", "lean")  # values of the earlier model.memory


def current_name(name: str, value: Any = None) -> str:
    """Return the current name of an option, or of a part such as `model.lora_generator.rank`.

    Args:
        name: A dotted name.
        value: The option's value: `model.memory` was a choice and is now a group of options.
    """
    for old, new in RENAMED.items():
        regrouped = new.startswith(f"{old}.")
        if name == old and (not regrouped or value in _CHOICES):
            return new
        if name.startswith(f"{old}.") and not regrouped:
            return new + name.removeprefix(old)
    return name


def current(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the current names of its options.

    Args:
        tree: The content of a config.yaml or of a checkpoint's record; or the configuration of
            another command such as `study`, which may name options of `fit` by dotted names.
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = current_name(name, value) if isinstance(name, str) else name
        if name == "model" and isinstance(value, Mapping):
            found[key] = _current_model(value)
        else:
            found[key] = current(value) if isinstance(value, Mapping) else value
    return found


def _current_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Move the options of the `model` section into their groups."""
    found: dict[str, Any] = {}
    for name, value in model.items():
        _, *group, last = current_name(f"model.{name}", value).split(".")
        section = found.setdefault(group[0], {}) if group else found
        if isinstance(value, Mapping) and isinstance(section.get(last), dict):
            section[last] |= value
        else:
            section[last] = dict(value) if isinstance(value, Mapping) else value
    return found


def current_text(text: str) -> str:
    """Return a configuration in YAML with the current names of its options.

    Text without earlier names is returned unchanged.
    """
    try:
        tree = read_yaml(text)
    except yaml.YAMLError:
        return text  # the parser reports the error
    if not isinstance(tree, dict) or (found := current(tree)) == tree:
        return text
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def current_arguments(arguments: Sequence[str], sweep: bool = False) -> list[str]:
    """Reject earlier names of options on a command line.

    Args:
        arguments: The command line.
        sweep: Replace earlier names instead, since the arguments come from a stored W&B sweep.

    Returns:
        The command line with the current names.

    Raises:
        UsageError: For the first earlier name; the message gives the current one.
    """
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        value = value if equals else following
        new = current_name(name, value)
        if option.startswith("--") and new != name:
            if not sweep:
                raise UsageError(f"--{name} was renamed: give --{new} {value}.")
            argument = f"--{new}={value}" if equals else f"--{new}"
        found.append(argument)
    return found
