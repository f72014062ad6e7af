"""Load a network of diffusers weight by weight, each straight in its dtype.

Files are mapped into memory, not read: a weight that keeps its dtype takes no memory of its own,
and all processes of a machine share the file's pages. So there is never a second copy of the
weights, in float32 or otherwise.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from torch import Tensor, nn

from sid_lsg.files.loading import (
    check_class,
    check_finite,
    check_report,
    read_json,
    without_drawing,
)
from sid_lsg.files.sources import Source
from sid_lsg.files.weight_files import Unusable, check_weight_files, weight_files

_WEIGHTS = "diffusion_pytorch_model"

Layers = Callable[[nn.Module], Iterable[nn.Module]]
"""Names the layers of a network whose weights have the given dtype; others are float32."""


def load_weight_by_weight(
    kind: Any,
    source: Source,
    subfolder: str,
    dtype: torch.dtype | None,
    layers: Layers,
    revision: str | None = None,
    variant: str | None = None,
) -> Any:
    """Load a network from safetensors files, with some layers in a dtype and the rest in float32.

    Without a dtype, all weights keep that of the files: they stay in the files until they are used.

    Args:
        kind: Its class.
        source: The model's folder or Hub id.
        subfolder: The network's subfolder; "" if the source is its folder.
        dtype: The dtype of the layers; None for that of the files for all weights.
        layers: Returns the layers of a network that have this dtype.
        revision: Branch, tag or commit on the Hub.
        variant: Variant of the weight files.

    Raises:
        Unusable: If its config is of another class, or its weights are missing, do not fit the
            config or are not finite.
        HubProblem: If the Hub does not give the model.
    """
    start = f"{subfolder}/" if subfolder else ""
    config = read_json(source, f"{start}config.json", revision)
    if config is None:
        raise Unusable("it has no config.json")
    check_class(kind, config)
    names = weight_files(source, subfolder, revision) if source.kind != "hub" else None
    if names is not None:
        check_weight_files(names, variant, bool(subfolder))
    with _without_weights():
        network: nn.Module = kind.from_config(config)
    own = {id(p) for layer in layers(network) for p in layer.parameters(recurse=False)}
    dtypes = {n: dtype if id(p) in own else torch.float32 for n, p in network.named_parameters()}
    dtypes |= {n: b.dtype for n, b in network.named_buffers()}
    expected, found = network.state_dict(), set[str]()
    report: dict[str, list[Any]] = {"mismatched_keys": [], "unexpected_keys": []}
    for path in _files(source, start, revision, variant):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                weight = file.get_tensor(name)
                if name not in expected:
                    report["unexpected_keys"].append(name)
                elif weight.shape != expected[name].shape:
                    shapes = weight.shape, expected[name].shape
                    report["mismatched_keys"].append((name, *shapes))
                else:
                    _place(network, name, weight if dtype is None else weight.to(dtypes[name]))
                found.add(name)
    check_report(report | {"missing_keys": [*expected.keys() - found]})
    check_finite(network)
    return network.eval()


def _place(network: nn.Module, name: str, weight: Tensor) -> None:
    layer, _, own = name.rpartition(".")
    owner = network.get_submodule(layer)
    if own in owner._parameters:
        owner._parameters[own] = nn.Parameter(weight, requires_grad=False)
    else:
        owner._buffers[own] = weight


@contextmanager
def _without_weights() -> Iterator[None]:
    """Make parameters without memory or random numbers within the context.

    Other tensors that a network computes when it is made, such as its embedding of positions, are
    computed: they may be in no file.
    """
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(module, name, param)

    kind: Any = nn.Module
    try:
        kind.register_parameter = registered
        with without_drawing():
            yield
    finally:
        kind.register_parameter = register


def _files(source: Source, start: str, revision: str | None, variant: str | None) -> Iterator[Path]:
    """Yield the weight files: those that an index names, or the only one."""
    own = f".{variant}" if variant else ""
    path = f"{start}{_WEIGHTS}.safetensors.index{own}.json"
    index: Mapping[str, Any] | None = read_json(source, path, revision)
    names = [f"{_WEIGHTS}{own}.safetensors"] if index is None else index["weight_map"].values()
    for name in dict.fromkeys(names):
        file = f"{start}{name}"
        if source.kind == "hub":
            yield Path(hf_hub_download(source.name, file, revision=revision))
        elif (source.path / file).is_file():
            yield source.path / file
        else:
            raise Unusable(f"its weight file {file!r} is missing")
