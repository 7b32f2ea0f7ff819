"""The synthetic sequences of Samadzadeh et al., sec. 3.2: digits zoomed, turned and hidden."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from snnkernels.core.checks import check_choice, check_whole
from snnkernels.train.data.images import IMAGES
from snnkernels.train.data.samples import Dataset, Samples
from snnkernels.train.parts import make

KINDS = (1, 2, 3, 4, 5)
MASK = 14  # pixels, half a digit's
_CHUNK = 2048  # sequences made at once


def synthetic_sequences(
    images: dict[str, Any], kind: int, *, steps: int = 10, seed: int = 0
) -> Dataset:
    """Seq1 to Seq5: what is done to each digit over T steps.

    1. It is zoomed from 1/T to its full size, by 1/T a step (the paper's 0 to 100 %).
    2. It is turned once around, by 360/T degrees a step.
    3. It is zoomed from half to its full size, by 1/(2T) a step (50 to 100 %).
    4. A black square of 14 x 14 pixels hides a part, at a new place in every step.
    5. It is turned to angles that are drawn for every sequence.

    Kinds 1, 2, 3 and 5 run forward in one half of each digit's images and backward in the other,
    which are classes of their own: 20 of them, digit + 10 where backward. Forward is zooming in and
    turning counterclockwise.

    Chosen here, where the paper is silent: each image makes one sequence; zooms and turns are about
    the middle, bilinear, zooms to whole pixels and without aliasing; Seq4's square lies anywhere
    within the image, with equal probability; the angles of Seq5 are T uniform ones between 0 and
    360 degrees in ascending order. Drawn without an order, a turn could not be told from its
    opposite, and no network could exceed one half.

    Args:
        images: name and options of a set of square one-channel digits, one of
            `snnkernels.train.data.images.IMAGES`.
        kind: 1 to 5.
        steps: T. Default: 10.
        seed: of directions, places and angles. Default: 0.

    Returns:
        x uint8 `[N, T, 1, H, W]`; 10 or 20 classes.

    Raises:
        ValueError: an unknown kind, too few steps, or images that are no digits.
    """
    check_choice("kind", kind, KINDS)
    check_whole("steps", steps, 2)
    check_whole("seed", seed, 0)
    digits = make("images", IMAGES, images)
    if digits.train.x.shape[1:2] != (1,) or digits.classes != 10:
        raise ValueError(
            f"images must be of one channel and ten classes; got {list(digits.train.x.shape)} and "
            f"{digits.classes} classes"
        )
    parts = [
        moved(part, kind, steps, torch.Generator().manual_seed(2 * seed + k))
        for k, part in enumerate((digits.train, digits.test))
    ]
    return Dataset(*parts, classes=10 if kind == 4 else 20)


def moved(digits: Samples, kind: int, steps: int, generator: torch.Generator) -> Samples:
    """Sequences of one kind from digits `[N, 1, H, W]`, see `synthetic_sequences`."""
    x = digits.x if digits.x.dtype == torch.uint8 else (digits.x * 255).round().byte()
    if kind == 4:
        return Samples(_hidden(x, steps, generator), digits.y)
    n = len(x)
    order = torch.randperm(n, generator=generator)
    backward = torch.zeros(n, dtype=torch.bool)
    for label in range(10):
        of_label = order[digits.y[order] == label]
        backward[of_label[: len(of_label) // 2]] = True
    if kind in (1, 3):
        start = 0.0 if kind == 1 else 0.5
        scales = [start + (1 - start) * (k + 1) / steps for k in range(steps)]
        frames = torch.stack([_zoomed(x, scale) for scale in scales], 1)
        frames[backward] = frames[backward].flip(1)
    else:
        angle = (360 * torch.arange(steps) / steps).repeat(n, 1)
        if kind == 5:
            angle = 360 * torch.rand(n, steps, generator=generator).sort(1).values
        angle[backward] *= -1
        parts = zip(x.split(_CHUNK), angle.split(_CHUNK), strict=True)
        frames = torch.cat([_turned(*part) for part in parts])
    return Samples(frames, digits.y + 10 * backward)


def _zoomed(x: Tensor, scale: float) -> Tensor:
    """Images uint8 `[N, 1, H, W]` made smaller, to whole pixels, around their middle."""
    size = [round(n * scale) for n in x.shape[2:]]
    small = functional.interpolate(x.float(), size, mode="bilinear", antialias=True)
    out = torch.zeros_like(x)
    top, left = ((n - m) // 2 for n, m in zip(x.shape[2:], size, strict=True))
    out[:, :, top : top + size[0], left : left + size[1]] = small.round().byte()
    return out


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Images uint8 `[N, 1, H, W]` turned counterclockwise, `[N, T, 1, H, W]`; degrees `[N, T]`."""
    turn = torch.deg2rad(angle)
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    rows = torch.stack([cos, -sin, zero, sin, cos, zero], -1)  # from the output's place to x's
    size = (angle.numel(), *x.shape[1:])
    grid = functional.affine_grid(rows.view(-1, 2, 3), size, align_corners=False)
    wide = x.float().repeat_interleave(angle.shape[1], 0)
    out = functional.grid_sample(wide, grid, align_corners=False)
    return out.round().byte().unflatten(0, angle.shape)


def _hidden(x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Images `[N, 1, H, W]` under a black square, `[N, T, 1, H, W]`."""
    n, _, height, width = x.shape
    inside = []  # whether a row and a column are the square's, `[N, T, H]` and `[N, T, W]`
    for size in (height, width):
        first = torch.randint(size - MASK + 1, (n, steps, 1), generator=generator)
        place = torch.arange(size)
        inside.append((place >= first) & (place < first + MASK))
    square = inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)
    return x.unsqueeze(1) * ~square.unsqueeze(2)
