"""Simulated event-camera recordings of images: a stand-in where no recording is at hand.

Nothing here was recorded: accuracies on it are accuracies on simulated events, and say so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from snnkernels.core.checks import check_positive, check_whole
from snnkernels.train.data.images import IMAGES
from snnkernels.train.data.samples import Dataset, Samples
from snnkernels.train.parts import make

# Corners of the triangle that the camera runs through, in pixels, as in Orchard et al. 2015:
# three saccades, the last of which ends where the first began.
CORNERS = ((0.0, 0.0), (3.5, 7.0), (7.0, 0.0), (0.0, 0.0))
_DARK = 0.1  # added to the intensities, so that black has a logarithm
_CHUNK = 256  # images at once


def simulated_saccades(
    images: dict[str, Any],
    *,
    steps: int = 10,
    margin: int = 6,
    threshold: float = 0.3,
    substeps: int = 60,
) -> Dataset:
    """Frames of simulated events: a camera looks at an image and moves in three saccades.

    The image moves along a triangle (the motion of N-MNIST, Orchard et al. 2015) in ``substeps``
    equal parts. A pixel emits an event of positive or negative polarity for each ``threshold`` by
    which the logarithm of its intensity has changed since its last event. Without noise, and
    deterministic.

    Args:
        images: name and options of a set, one of `snnkernels.train.data.images.IMAGES`; colours are
            averaged.
        steps: T, equal parts of the time. Default: 10.
        margin: pixels by which the sensor is wider than the image. Default: 6, which makes 34 x 34
            of digits.
        threshold: of the change of log intensity. Default: 0.3.
        substeps: positions between which intensities are compared. Default: 60.

    Returns:
        x int16 `[N, T, 2, H + margin, W + margin]`, events of positive and of negative polarity.

    Raises:
        ValueError: an argument that is not allowed.
    """
    check_whole("steps", steps)
    check_whole("margin", margin, 0)
    check_whole("substeps", substeps, steps)
    check_positive(threshold=threshold)
    still = make("images", IMAGES, images)
    parts = []
    for samples in (still.train, still.test):
        chunks = samples.x.split(_CHUNK)
        x = torch.cat([events_of(chunk, steps, margin, threshold, substeps) for chunk in chunks])
        parts.append(Samples(x, samples.y))
    return Dataset(*parts, classes=still.classes)


def events_of(x: Tensor, steps: int, margin: int, threshold: float, substeps: int) -> Tensor:
    """Event counts of images `[N, C, H, W]`, see `simulated_saccades`."""
    bright = x.float().mean(1, keepdim=True) / (255 if x.dtype == torch.uint8 else 1)
    size = [n + margin for n in x.shape[2:]]
    before = margin // 2
    bright = functional.pad(bright, (before, margin - before) * 2)
    path = functional.interpolate(
        torch.tensor(CORNERS).T[None], substeps + 1, mode="linear", align_corners=True
    )[0].T
    path -= path.mean(0)
    log = None
    out = torch.zeros(len(x), steps, 2, *size, dtype=torch.int16)
    for k, (dx, dy) in enumerate(path.tolist()):
        move = torch.tensor([[1.0, 0.0, 2 * dx / size[1]], [0.0, 1.0, 2 * dy / size[0]]])
        grid = functional.affine_grid(move.expand(len(x), 2, 3), bright.shape, align_corners=False)
        now = (functional.grid_sample(bright, grid, align_corners=False) + _DARK).log()
        if log is None:
            log = now
            continue
        count = ((now - log) / threshold).trunc()
        log = log + count * threshold
        step = (k - 1) * steps // substeps
        out[:, step, 0:1] += count.clamp_min(0).to(torch.int16)
        out[:, step, 1:2] += count.clamp_max(0).neg().to(torch.int16)
    return out
