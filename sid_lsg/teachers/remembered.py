"""The conditioning of prompts that were encoded once, in place of the text encoders."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sid_lsg.messages.errors import UsageError
from sid_lsg.method.conditioning import Conditioning

OPTION = "--model.text.device drop"
AT_ONCE = 16  # prompts
_GIB = 2**30
_MOST = 16 * _GIB


class Remembered:
    """The conditioning of some prompts, each encoded once.

    The prompts are encoded in the order in which they are given, so that two runs on the same
    prompts are equal to the bit.

    Args:
        prompts: The prompts, possibly repeated. The empty prompt is added.
        encode: Turns prompts into conditioning, [B, ...] by name.

    Raises:
        UsageError: If the conditioning would take more than 16 GiB.
    """

    def __init__(
        self, prompts: Iterable[str], encode: Callable[[Sequence[str]], Conditioning]
    ) -> None:
        row = {name: value.cpu() for name, value in encode([""]).items()}
        most = _MOST // sum(value.nbytes for value in row.values())
        self._places = {"": 0}
        for prompt in prompts:
            self._places.setdefault(prompt, len(self._places))
            if len(self._places) > most:
                raise UsageError(
                    f"{OPTION}: the features of more than {most:,} prompts take more than "
                    f"{_MOST // _GIB} GiB of each process' memory. Use cpu in place of drop, or "
                    "fewer prompts."
                )
        size = len(self._places)
        self._rows = {n: v.new_empty(size, *v.shape[1:]) for n, v in row.items()}
        texts = [*self._places]
        for first in range(0, size, AT_ONCE):
            part = slice(first, first + AT_ONCE)
            for name, value in encode(texts[part]).items():
                self._rows[name][part] = value.cpu()

    def __getitem__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the conditioning of prompts, on the CPU.

        Raises:
            UsageError: If one was not encoded.
        """
        for prompt in prompts:
            if prompt not in self._places:
                raise UsageError(
                    f"{OPTION}: {prompt!r} is none of the run's prompts, and the text encoders "
                    "were dropped. Use cpu in place of drop."
                )
        places = torch.tensor([self._places[prompt] for prompt in prompts])
        return {name: rows[places] for name, rows in self._rows.items()}


def drop_weights(part: nn.Module) -> None:
    """Free a text encoder's weights; it keeps only their shapes.

    Moving it to the meta device would fail for weights of bitsandbytes, whose layers also hold
    their scales.
    """
    for module in part.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to("meta")
        vars(module).pop("state", None)
