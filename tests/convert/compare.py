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
    return list(torch.autograd.grad((out * weight).sum(), [x, *net.parameters()]))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item()
