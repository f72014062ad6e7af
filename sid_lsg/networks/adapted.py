"""Networks that share one frozen base: each is a set of LoRA adapters.

The base is one module, held once. A network with adapters, `Adapted`, runs the base with its
adapters on; the base itself, with all adapters off, is the teacher's network. So the base can be
sharded, compiled and checkpointed like any other network, once for all.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sid_lsg.options.lora import LoRA
from sid_lsg.teachers.precision import backbone

_NAME = "default"  # peft's name of a network's only adapter, which checkpoints contain
_SHARED = "_shared_base"  # the attribute of a network that refers to its `SharedBase`


class Adapter(nn.Module):
    """A low-rank change of a linear or convolution layer's weight: (alpha / rank) B A.

    Attributes:
        lora_A: Holds A: [rank, in], or [rank, in, height, width] for a convolution.
        lora_B: Holds B: [out, rank], or [out, rank, 1, 1].
        scale: alpha / rank.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, options: LoRA, generator: torch.Generator
    ) -> None:
        """Draw A as PyTorch's layers do, and set B to zero, so that the change is zero.

        Args:
            layer: The layer.
            options: Rank and alpha.
            generator: Draws A.
        """
        super().__init__()
        weight, rank = layer.weight, options.rank
        a = torch.empty(rank, *weight.shape[1:])
        b = torch.zeros(len(weight), rank, *(1 for _ in weight.shape[2:]), device=weight.device)
        if not weight.is_meta:
            limit = a[0].numel() ** -0.5
            a.uniform_(-limit, limit, generator=generator)
        self.lora_A, self.lora_B = _holder(a.to(weight.device)), _holder(b)
        self.scale = (options.alpha or rank) / rank
        self._places: tuple[Any, ...] = ()
        if isinstance(layer, nn.Conv2d):
            self._places = (layer.stride, layer.padding, layer.dilation)

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        return self.lora_A[_NAME].weight, self.lora_B[_NAME].weight  # type: ignore[return-value]

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """Return a layer's output for x with the change added, computed in the dtype of x."""
        a, b = (factor.to(x.dtype) for factor in self.factors)
        if self._places:
            change = F.conv2d(F.conv2d(x, a, None, *self._places), b)
        else:
            change = F.linear(F.linear(x, a), b)
        return (output + self.scale * change).to(output.dtype)

    @torch.no_grad()
    def change(self) -> Tensor:
        """Return the change of the weight, in the weight's shape."""
        a, b = self.factors
        return self.scale * (b.flatten(1) @ a.flatten(1)).view(len(b), *a.shape[1:])


def _holder(factor: Tensor) -> nn.ModuleDict:
    held = nn.Module()
    held.weight = nn.Parameter(factor)
    return nn.ModuleDict({_NAME: held})


class SharedBase:
    """A frozen network that several sets of adapters share.

    Attributes:
        network: The network.
        on: The network with adapters that runs now; None while the base itself does.
        checkpointed: Whether the base itself uses activation checkpointing.
        hashes: Fingerprints of the weights, by the names of the layers that have adapters.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False)
        self.on: Adapted | None = None
        self.checkpointed = False
        self.hashes: dict[tuple[str, ...], str] = {}
        self._changed: set[str] = set()

    def change(self, names: Sequence[str]) -> None:
        """Let the adapters that are on change the outputs of some layers."""
        for name in names:
            if name not in self._changed:
                self._changed.add(name)
                self.network.get_submodule(name).register_forward_hook(_Change(self, name))

    @contextmanager
    def running(self, adapted: "Adapted | None") -> Iterator[None]:
        """Switch a network's adapters on within the context, or all off.

        The state is not that of a thread: a GPU's backward pass recomputes in another one.
        """
        before, self.on = self.on, adapted
        try:
            yield
        finally:
            self.on = before

    def checkpoint(self, module: nn.Module, *args: Any) -> Any:
        """Run a part of the network, with activation checkpointing if the network that runs has it.

        The part is recomputed in the backward pass, when this network's forward pass is over and
        another's adapters may be on. So the recomputation switches its adapters on again.
        """
        runs = self.on
        if not (self if runs is None else runs).checkpointed:
            return module(*args)
        if torch.compiler.is_compiling():  # the adapters are part of the traced graph
            return checkpoint(module, *args, use_reentrant=False)

        def run(*args: Any) -> Any:
            with self.running(runs):
                return module(*args)

        return checkpoint(run, *args, use_reentrant=False)


class _Change:
    """A forward hook of a base's layer: change its output by the adapter that is on."""

    def __init__(self, base: SharedBase, name: str) -> None:
        self.base, self.name = base, name

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        adapter = None if self.base.on is None else self.base.on.by_layer.get(self.name)
        return output if adapter is None else adapter(args[0], output)


def shared_base(network: nn.Module) -> SharedBase:
    """Return the base that a network is; it is frozen.

    A copy of the network is another base.
    """
    found: SharedBase = vars(network).get(_SHARED) or SharedBase(network)
    vars(network)[_SHARED] = found
    return found


class Adapted(nn.Module):
    """A network that is a base with adapters. Its parameters are the adapters.

    Attributes:
        by_layer: The adapters by the names of the base's layers.
        checkpointed: Whether it uses activation checkpointing.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], options: LoRA, seed: int) -> None:
        """Add adapters that change nothing yet; the global random state is not changed.

        Args:
            network: The base.
            names: Names of the layers to adapt.
            options: The adapters.
            seed: Seed of their factors A.
        """
        super().__init__()
        self._base, self.checkpointed = shared_base(network), False
        generator = torch.Generator().manual_seed(seed)
        layers: Any = {name: network.get_submodule(name) for name in names}
        self.by_layer = {name: Adapter(own, options, generator) for name, own in layers.items()}
        for name, adapter in self.by_layer.items():
            _place(self, name, adapter)
        self._base.change(names)
        self.eval()

    @property
    def base(self) -> nn.Module:
        """Return the frozen network."""
        return self._base.network

    @property
    def runs(self) -> bool:
        """Return whether a forward pass of this network is in progress."""
        return self._base.on is self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base with these adapters."""
        with self._base.running(self):
            return self._base.network(*args, **kwargs)

    def on_base(self, network: nn.Module) -> "Adapted":
        """Copy the adapters for another network of the base's architecture.

        The copy shares the base if it is the same network.
        """
        base = shared_base(network)
        base.change([*self.by_layer])
        return copy.deepcopy(self, {id(self._base): base})


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


def runs(network: nn.Module) -> bool:
    """Return False if adapters other than a network's own are on, or none."""
    return network.runs if isinstance(network, Adapted) else True


def enable_checkpointing(network: nn.Module) -> None:
    """Enable activation checkpointing, in a base for each network that shares it separately."""
    base = vars(backbone(network)).get(_SHARED)
    enable: Callable[..., None] = backbone(network).enable_gradient_checkpointing  # type: ignore[assignment]
    if base is None:
        enable()
        return
    (network if isinstance(network, Adapted) else base).checkpointed = True
    enable(base.checkpoint)


def without_changes(network: nn.Module) -> nn.Module:
    """Remove the hooks through which adapters change a base, and return it."""
    for module in network.modules():
        for key, hook in [*module._forward_hooks.items()]:
            if isinstance(hook, _Change):
                del module._forward_hooks[key]
    vars(network).pop(_SHARED, None)
    return network


def adapters(network: nn.Module) -> Mapping[str, nn.Parameter]:
    """Return a network's adapter weights by name; empty if it has no adapters."""
    return dict(network.named_parameters()) if isinstance(network, Adapted) else {}
