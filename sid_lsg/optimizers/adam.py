"""The paper's optimizer in less memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

from sid_lsg.distributed.sharding import local
from sid_lsg.messages.errors import UsageError

# So many weights at a time have temporary copies in a step that is not fused (128 MB); torch's Adam
# would copy all. No smaller number would help Stable Diffusion 1.5: its largest weight has 29.5
# million.
_PIECE = 2**25


class AdamWithoutMomentum(Adam):
    """Adam with beta1 = 0, whose first moment is the gradient: it is not stored.

        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr g / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    Both are bit for bit those of `torch.optim.Adam`, unless two gradients in a row are further
    apart than float32 reaches, which makes that one's weight NaN. A run can go on with this one.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.0, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool | None = None,
    ) -> None:
        """Choose what torch.optim.Adam offers, as far as it goes with beta1 = 0.

        Args:
            params: Weights, or groups of them.
            lr: Learning rate.
            betas: 0, and the weight of the old mean of squares.
            eps: Added to the root of the mean of squares.
            weight_decay: Added to the gradient, times the weights.
            fused: One pass over the memory instead of six, by default; with other roundings, which
                are bit for bit those of torch.optim.Adam with `fused: true`. With weight decay the
                gradients are changed. (Not `true`, which a config's next class would inherit.)

        Raises:
            UsageError: If beta1 is not 0.
        """
        if betas[0] != 0:
            raise UsageError(
                f"--model.optimizer_*: AdamWithoutMomentum has betas: [0, ...], not {[*betas]}. "
                "Momentum needs class_path: torch.optim.Adam."
            )
        super().__init__(params, lr, betas, eps, weight_decay, fused=fused is not False or None)
        # A gradient scaler is to unscale the gradients: the step below would not.
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
            # A checkpoint may be of a run that was fused, or was not.
            state["step"] = state["step"].to(p.device if group["fused"] else "cpu")
            weights.append(local(p))
            gradients.append(local(p.grad))  # type: ignore[arg-type]
            squares.append(local(state["exp_avg_sq"]))
            steps.append(state["step"])
        lr, beta2, eps = group["lr"], group["betas"][1], group["eps"]
        decay = group["weight_decay"]
        if group["fused"]:
            # It writes the first moment: the gradients, where they are.
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
        """Load a state of this optimizer or of torch.optim.Adam, whose first moment is left out.

        Raises:
            UsageError: If it is another optimizer's.
        """
        state = {}
        for number, own in state_dict["state"].items():
            if not {"step", "exp_avg_sq"} <= own.keys():
                raise UsageError(
                    "--ckpt_path: the file holds no mean of squared gradients: its optimizer was "
                    "not Adam. Give the optimizers that it was made with, or another checkpoint."
                )
            state[number] = {name: own[name] for name in ("step", "exp_avg_sq")}
        super().load_state_dict({**state_dict, "state": state})


def _pieces(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Cut a list of weights into lists of at most `_PIECE` numbers, if no weight has more."""
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
