"""Adam with beta1 = 0, the paper's optimizer, without storing the first moment."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

from sid_lsg.distributed.sharding import local
from sid_lsg.messages.errors import UsageError

LEARNING_RATE, BETAS = 1e-6, (0.0, 0.999)
"""The paper's values: the defaults of --model.optimizer_fake and --model.optimizer_generator."""

# Maximum number of elements that have temporary copies in a step that is not fused (128 MB).
# torch's Adam would copy all of them. A smaller value would not help Stable Diffusion 1.5: its
# largest weight has 29.5 million elements.
_PIECE = 2**25


class AdamWithoutMomentum(Adam):
    """Adam with beta1 = 0. Its first moment equals the gradient and is not stored.

        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr g / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    v and w equal those of `torch.optim.Adam` bitwise, unless the difference of two successive
    gradients overflows float32, which makes torch's weight NaN. A run that was trained with
    `torch.optim.Adam` can be resumed with this optimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = LEARNING_RATE,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool | None = None,
    ) -> None:
        """Set the options of torch.optim.Adam that apply to beta1 = 0.

        Args:
            params: Weights or parameter groups.
            lr: Learning rate.
            betas: 0, and the decay rate of the mean of squares.
            eps: Added to the root of the mean of squares.
            weight_decay: Multiple of the weights that is added to the gradient.
            fused: Use the fused kernel, with one pass over memory instead of six; `false` turns it
                off. Results equal torch.optim.Adam with `fused: true` bitwise. With weight decay,
                it changes the gradients. The default is not `true`, because a config that sets
                another class would inherit it.

        Raises:
            UsageError: If beta1 is not 0.
        """
        if betas[0] != 0:
            raise UsageError(
                f"--model.optimizer_*: AdamWithoutMomentum needs betas: [0, ...], got {[*betas]}. "
                "For momentum, set class_path: torch.optim.Adam."
            )
        super().__init__(params, lr, betas, eps, weight_decay, fused=fused is not False or None)
        # The gradient scaler must unscale the gradients, because `step` does not.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have gradients; return what the closure returns."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for piece in [parameters] if group["fused"] else _pieces(parameters):
                self._update(piece, group)
        return result

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        weights, gradients, squares, steps = [], [], [], []
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            # A checkpoint may come from a run with another value of `fused`.
            state["step"] = state["step"].to(p.device if group["fused"] else "cpu")
            weights.append(local(p))
            gradients.append(local(p.grad))  # type: ignore[arg-type]
            squares.append(local(state["exp_avg_sq"]))
            steps.append(state["step"])
        lr, beta2, eps = group["lr"], group["betas"][1], group["eps"]
        decay = group["weight_decay"]
        if group["fused"]:
            # The kernel writes a first moment. With beta1 = 0 it equals the gradients: use them.
            adam(weights, gradients, gradients, squares, [], steps, fused=True, amsgrad=False,
                 beta1=0.0, beta2=beta2, lr=lr, weight_decay=decay, eps=eps,
                 maximize=False)  # fmt: skip
            return
        torch._foreach_add_(steps, torch.ones(()))
        if decay != 0:
            gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2 ** step.item()) ** 0.5 for step in steps])
        torch._foreach_add_(roots, eps)
        torch._foreach_addcdiv_(weights, gradients, roots, [-float(lr)] * len(weights))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of this optimizer or of torch.optim.Adam; drop the first moment.

        Raises:
            UsageError: If the state is from another optimizer.
        """
        state = {}
        for number, own in state_dict["state"].items():
            if not {"step", "exp_avg_sq"} <= own.keys():
                raise UsageError(
                    "--ckpt_path: the checkpoint has no mean of squared gradients: its optimizer "
                    "was not Adam. Set the optimizers that wrote it, or give another checkpoint."
                )
            state[number] = {name: own[name] for name in ("step", "exp_avg_sq")}
        super().load_state_dict({**state_dict, "state": state})


def _pieces(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Split weights into lists of at most `_PIECE` elements; a larger weight is its own list."""
    piece: list[Tensor] = []
    size = 0
    for p in parameters:
        if piece and size + p.numel() > _PIECE:
            yield piece
            piece, size = [], 0
        piece.append(p)
        size += p.numel()
    if piece:
        yield piece
