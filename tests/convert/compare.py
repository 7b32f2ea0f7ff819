"""A network of another library beside its copy that runs fused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import snnkernels

INPUTS = ("random", "eighths")


def input_sequence(kind: str, steps: int = 50, neurons: int = 512, spread: float = 1.0) -> Tensor:
    """`[T, 2, neurons / 2]`, random or rounded to 1/8, where potentials meet thresholds."""
    x = torch.randn(steps, 2, neurons // 2, generator=torch.Generator().manual_seed(1))
    x = x * spread + 0.4
    return x if kind == "random" else (x * 8).round() / 8


def both(make: Callable[[], nn.Module], **options) -> tuple[nn.Module, nn.Module]:
    """A network as its library has it, and one that is accelerated, without a kept module."""
    theirs = make()
    ours = copy.deepcopy(theirs)
    snnkernels.accelerate(ours, strict=True, **options)
    return theirs, ours


def gradients(net: nn.Module, x: Tensor, out: Tensor) -> list[Tensor]:
    """Of x and of all that is learned, from an irregular positive gradient on the output."""
    weight = 0.5 + torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    learned = [p for p in net.parameters() if p.requires_grad]
    loss = (out * weight.to(out.dtype)).sum()
    return list(torch.autograd.grad(loss, [x, *learned], materialize_grads=True))


def as_near(ours: Tensor, theirs: Tensor, exact: Tensor) -> bool:
    """Whether a sum is as near to the one in float64 as theirs, to 1e-6 relative at least."""
    error, other = ((g - exact).norm().item() for g in (ours, theirs))
    return error <= max(2 * other, 1e-6 * exact.norm().item())


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item()
