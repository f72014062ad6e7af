"""Load models from safetensors files, and report failures as one message."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from torch import nn

from sid_lsg.files.hub import hub_problem, is_cached
from sid_lsg.files.sources import Source, locate
from sid_lsg.files.weight_files import Unusable, check_weight_files, weight_files
from sid_lsg.files.weights import first_not_finite
from sid_lsg.messages.errors import UsageError

_CONFIG = "config.json"
# Weights that a text encoder does not use: a buffer of early releases, and the rest of its model.
_SPARE = re.compile(
    r"(.*\.)?position_ids|logit_scale|(text|visual)_projection\..*|(vision_model|decoder|lm_head)\..*"
)

# Layers that draw their first weights.
_DRAWING: tuple[Any, ...] = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Convert errors of loading within the context to one message.

    Args:
        what: What failed, with the option, without a final period.
        remedy: What to do, as a sentence, after what the error itself says of that.

    Raises:
        UsageError: Instead of errors of the libraries; quotes their first line.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # any: the libraries raise many kinds for unusable files
        known = hub_problem(error) or error
        reason = str(known).strip().splitlines() or [type(known).__name__]
        if isinstance(known, KeyError | AssertionError | IndexError):  # their text is no sentence
            reason = [f"{type(known).__name__}: {reason[0]}"]
        own = getattr(known, "remedy", None)
        remedy = f"{own} {remedy}" if own else remedy
        raise UsageError(f"{what} ({reason[0].rstrip('.')}). {remedy}") from error


def load_network(kind: Any, location: str | Path, **options: Any) -> Any:
    """Load a network of diffusers or transformers from safetensors files.

    Args:
        kind: Its class.
        location: The folder or Hub id.
        options: More arguments of `from_pretrained`.

    Raises:
        Unusable: If its config is of another class, or its weights are missing, do not fit the
            config or are not finite; the libraries would fill or ignore such weights.
    """
    source, folder = locate(str(location)), options.get("subfolder") or ""
    revision, variant = options.get("revision"), options.get("variant")
    path = f"{folder}/{_CONFIG}" if folder else _CONFIG
    try:
        config = read_json(source, path, revision)
    except ValueError as error:
        raise Unusable(f"its {_CONFIG} cannot be read: {error}") from error
    if config is not None:
        check_class(kind, config)
    elif source.kind != "hub":
        raise Unusable(f"it has no {_CONFIG}")
    names = weight_files(source, folder, revision) if source.kind != "hub" else None
    if names is not None:
        check_weight_files(names, variant, bool(folder))
    try:
        with without_drawing():
            network, report = kind.from_pretrained(
                location,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them
                **options,
            )
    except Exception as error:
        if hub_problem(error) is None and source.kind == "hub":
            names = weight_files(source, folder, revision)
            if names is not None:
                check_weight_files(names, variant, bool(folder))
        raise
    check_report(report, _SPARE if hasattr(kind, "config_class") else None)
    check_finite(network)
    return network


@contextmanager
def without_drawing() -> Iterator[None]:
    """Let new layers keep whatever their memory holds within the context.

    Random weights, which a file's weights replace, take most of the time of loading a network.
    """
    before = [layer.reset_parameters for layer in _DRAWING]
    try:
        for layer in _DRAWING:
            layer.reset_parameters = lambda _: None
        yield
    finally:
        for layer, reset in zip(_DRAWING, before, strict=True):
            layer.reset_parameters = reset


def check_class(kind: Any, config: Mapping[str, Any]) -> None:
    """Check that a network's configuration is of a class.

    Args:
        kind: The class, of diffusers or transformers.
        config: The content of config.json.

    Raises:
        Unusable: If it is of another class, or of quantized weights.
    """
    own, found = kind.__name__, config.get("_class_name")
    if expected := getattr(getattr(kind, "config_class", None), "model_type", None):
        own, found = expected, config.get("model_type")
        if found is not None and str(found).split("_")[0] == str(own).split("_")[0]:
            found = None  # for example a CLIP model, of which the text encoder is a part
    if found not in (None, own):
        raise Unusable(f"its {_CONFIG} is of a {found}, not of a {own}")
    if config.get("quantization_config"):
        raise Unusable(f"its {_CONFIG} has quantization_config: quantized weights are not read")


def check_finite(network: Any, dtype: str = "") -> None:
    """Check that all weights are finite.

    Args:
        network: The network.
        dtype: The dtype to which the weights were converted, for the message; "" if none.

    Raises:
        Unusable: If a weight is not.
    """
    name = first_not_finite(network.state_dict())
    if name is None:
        return
    where = f" in {dtype}" if dtype else ""
    raise Unusable(
        f"its weight {name} is not finite{where}",
        "Its file is damaged, or a conversion overflowed: download or convert the model again."
        if not dtype
        else "Use a dtype with a larger range, or download the model again.",
    )


def check_report(report: Mapping[str, Any], spare: re.Pattern[str] | None = None) -> None:
    """Check that weights and configuration match, but for names that may be left over.

    Raises:
        Unusable: For the first difference.
    """
    for name, found, own in sorted(report.get("mismatched_keys") or ()):
        raise Unusable(
            f"its weight {name} is {list(found)} in the file, and {list(own)} by its {_CONFIG}"
        )
    if missing := sorted(report["missing_keys"]):
        raise Unusable(f"its weights lack {missing[0]}, which its {_CONFIG} asks for")
    found = sorted(report.get("unexpected_keys") or ())
    if unexpected := [name for name in found if not (spare and spare.fullmatch(name))]:
        raise Unusable(f"its weight {unexpected[0]} has no place by its {_CONFIG}")


def read_json(source: Source, file: str, revision: str | None = None) -> dict[str, Any] | None:
    """Read a JSON object of a folder or Hub id.

    Args:
        source: The folder or Hub id.
        file: The file's path in it.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The object; None if the file does not exist.

    Raises:
        HubProblem: If the Hub cannot be reached, or does not give the model.
        ValueError: If the file is not a JSON object.
    """
    path = source.path / file
    if source.kind == "hub":
        try:
            path = Path(hf_hub_download(source.name, file, revision=revision))
        except Exception as error:
            problem = hub_problem(error)
            if problem and not is_cached(source.name):
                raise problem from error
            return None  # or it may not be in the cache, beside files that are
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content
