"""The optimizer `Muon`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.core.checks import check_positive, check_share

STEPS = 5  # of Newton and Schulz's iteration
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # that bring singular values near 1 soonest
BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal for matrices of weights, Adam for all else (Jordan et al. 2024).

    Every step moves a matrix by its momentum with all singular values brought near 1, so that the
    directions that few inputs excite are learned as soon as those that all do. For spike trains
    that is most of them: their mean activity has by far the largest gradient.

    `torch.optim.Muon` iterates in bfloat16, which is slow on a CPU without such products, and takes
    matrices alone.

    Args:
        params: parameters or groups. A group with ``orthogonal=True`` holds matrices `[out, in]`;
            all others are Adam's.
        lr: step: the size of the singular values, for `[out, in]` times sqrt(max(1, out / in)).
        momentum: of the matrices' gradients, in [0, 1). Default: 0.9.

    Raises:
        ValueError: lr or momentum out of range, or a parameter that is no matrix in a group with
            ``orthogonal=True``.
    """

    def __init__(self, params, lr: float, *, momentum: float = 0.9) -> None:
        check_positive(lr=lr)
        check_share(momentum=momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "orthogonal": False})
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else ():
                if p.ndim != 2:
                    raise ValueError(f"orthogonal=True is for matrices; got {list(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient.

        Args:
            closure: works the loss out again, with gradients. Default: None.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._momentum if group["orthogonal"] else self._adam
            for p in group["params"]:
                if p.grad is not None:
                    update(p, group)
        return loss

    def _momentum(self, p: Tensor, group: dict) -> None:
        state, share = self.state[p], 1 - group["momentum"]
        if not state:
            state["mean"] = torch.zeros_like(p)
        mean = state["mean"].lerp_(p.grad, share)
        scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
        p.add_(orthogonal(mean.lerp(p.grad, share)), alpha=-group["lr"] * scale)

    def _adam(self, p: Tensor, group: dict) -> None:
        state = self.state[p]
        if not state:
            state["step"], state["mean"] = 0, torch.zeros_like(p)
            state["square"] = torch.zeros_like(p)
        state["step"] += 1
        mean = state["mean"].lerp_(p.grad, 1 - BETAS[0])
        square = state["square"].lerp_(p.grad.square(), 1 - BETAS[1])
        mean_part, square_part = (1 - beta ** state["step"] for beta in BETAS)
        p.addcdiv_(mean / mean_part, (square / square_part).sqrt() + EPS, value=-group["lr"])


def orthogonal(x: Tensor) -> Tensor:
    """A matrix with its singular values brought to about 0.7 ... 1.2, by Newton and Schulz.

    Args:
        x: `[m, n]`.

    Returns:
        `[m, n]`; zeros for zeros.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    a, b, c = COEFFICIENTS
    x = x / x.norm().clamp(min=1e-30)
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x
