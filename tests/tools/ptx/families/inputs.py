"""Sizes, memory layouts and values of random calls."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from tests.tools.cases import Shape

DTYPES = ("float32", "bfloat16", "float16")
STEPS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 23, 31, 32, 33, 37, 48, 49, 64, 65)
WIDTHS = (
    1, 2, 3, 5, 8, 16, 31, 32, 33, 48, 64, 67, 96, 128, 130, 160, 256, 257, 300, 512, 515, 768,
    1003, 1024,
)  # fmt: skip
LAYOUTS = ("plain",) * 5 + (
    "batch_first", "time_inner", "channels_last", "channels_last", "channels_last_time_inner",
    "expand0", "expand1", "expand2", "every_second",
)  # fmt: skip
OFFSETS = (0, 0, 0, 1, 2, 3, 4)  # elements before the first one
_SPECIAL = (
    1.0, -0.0, 0.0, 65504.0, 3e38, math.inf, -math.inf, math.nan, 1e-40, -3e-45,
)  # fmt: skip


def sizes(rng: random.Random, most: int) -> tuple[int, ...]:
    """``[T, N, *]`` of at most so many elements."""
    steps = rng.choice(STEPS)
    while True:
        kind = rng.random()
        if kind < 0.5:
            rest = (rng.choice(WIDTHS),)
        elif kind < 0.7:
            rest = (rng.randint(1, 4), rng.choice(WIDTHS))
        else:
            channels, height, width = (1, 2, 3, 4, 8, 16), range(1, 9), (1, 2, 3, 4, 5, 8)
            rest = (rng.randint(1, 3), *map(rng.choice, (channels, height, width)))
        if steps * math.prod(rest) <= most:
            return (steps, *rest)


def draw(shape: tuple[int, ...], rng: random.Random, kind: str) -> Tensor:
    """Float32 values: "normal"; "grid": multiples of 1/16; "special": with what is hard to get.

    "special" strews infinities, NaN, denormals, huge values, both zeros and the threshold in.
    """
    if kind == "grid":
        return torch.randint(-16, 25, shape) / 16
    values = torch.randn(shape) * 0.7 + 0.2
    if kind == "special" and values.numel():
        flat = values.view(-1)
        for value in _SPECIAL:
            for _ in range(max(1, flat.numel() // 300)):
                flat[rng.randrange(flat.numel())] = value
    return values


def arrange(values: Tensor, layout: str, offset: int) -> Tensor:
    """The values of a dense ``[T, N, *]`` in another place in memory."""
    n = values.ndim
    orders = {
        "batch_first": (1, 0, *range(2, n)),
        "time_inner": (*range(1, n), 0),
        "channels_last": (0, 1, *range(3, n), 2) if n > 3 else None,
        "channels_last_time_inner": (1, *range(3, n), 2, 0) if n > 3 else (1, 0, *range(2, n)),
    }
    return Shape(
        tuple(values.shape),
        order=orders.get(layout),
        expand=(int(layout[-1]) % n,) if layout.startswith("expand") else (),
        every=2 if layout == "every_second" else 1,
        offset=offset,
    ).arrange(values)


def expanded(values: Tensor, layout: str) -> Tensor:
    """A gradient as it arrives: dense, or with strides of 0."""
    if layout.startswith("expand"):
        dim = int(layout[-1]) % values.ndim
        return values.narrow(dim, 0, 1).expand(values.shape)
    if layout == "one_value":
        return values.flatten()[:1].view((1,) * values.ndim).expand(values.shape)
    return values
