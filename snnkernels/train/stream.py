"""A sound that is heard sample by sample, and a spiking network that says all the time what it is.

Every sample is a step: 100,000 of them are 12.5 seconds at 8 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkernels.nn.lif import LIF
from snnkernels.nn.over_time import OverTime
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train.data.series import recordings

CLASSES = 10
TONES = "ten pitches from 100 to 1,490 Hz, each for a quarter of a second, in noise: generated"
LENGTH = 2000  # samples of a tone


class Stream(NamedTuple):
    """Sounds that run side by side.

    Attributes:
        x: samples, float32 `[T, N, 1]`.
        y: the class that is heard at each of them, int64 `[T, N]`.
    """

    x: Tensor
    y: Tensor


def tones(steps: int, streams: int, generator: torch.Generator) -> Stream:
    """Tones of ten pitches at 8 kHz, one after the other, in noise.

    Args:
        steps: T.
        streams: N.
        generator: of pitches, phases and noise.
    """
    count = -(-steps // LENGTH)
    y = torch.randint(CLASSES, (count, streams), generator=generator)
    y = y.repeat_interleave(LENGTH, 0)[:steps]
    time = torch.arange(steps, dtype=torch.float32)[:, None] / 8000
    phase = torch.rand(1, streams, generator=generator)
    x = math.sqrt(2) * torch.sin(2 * math.pi * (100 * 1.35**y * time + phase))
    x += 0.3 * torch.randn(steps, streams, generator=generator)
    return Stream(x[..., None], y)


def speech(folder, test: bool = False) -> Callable[[int, int, torch.Generator], Stream]:
    """Recordings of spoken digits, one after the other, in random order.

    Args:
        folder: see `snnkernels.train.data.series.recordings`.
        test: take the test samples. Default: False.

    Returns:
        A function like `tones`. Each recording is scaled to a variance of 1.
    """
    parts = [r for r in recordings(folder) if r.is_test == test]

    def draw(steps: int, streams: int, generator: torch.Generator) -> Stream:
        x, y = torch.zeros(steps, streams, 1), torch.zeros(steps, streams, dtype=torch.int64)
        for n in range(streams):
            start = 0
            while start < steps:
                chosen = parts[torch.randint(len(parts), (1,), generator=generator)]
                wave = chosen.wave[: steps - start]
                x[start : start + len(wave), n, 0] = wave / chosen.wave.std().clamp_min(1e-6)
                y[start : start + len(wave), n] = chosen.digit
                start += len(wave)
        return Stream(x, y)

    return draw


class StreamNet(nn.Module):
    """Layers of spiking neurons with many time constants, and filtered sums of the last spikes.

    1 - width - ... - width - `CLASSES`. The first layer forgets within 1 to 50 steps, the others
    within 3 to 300; the output is low-passed over 400.

    Args:
        width: neurons of a layer. Default: 64.
        depth: layers of neurons. Default: 3.
        save: how spikes are kept for the backward pass, see `snnkernels.OverTime`. Default: None.
        backend: of neurons and filter, see `snnkernels.lif`. Default: "auto".

    Shape:
        x `[T, N, 1]`, output `[T, N, CLASSES]`, the logits at every step.
    """

    def __init__(
        self, width: int = 64, depth: int = 3, *, save: str | None = None, backend: str = "auto"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(depth):
            weights = nn.Linear(width if k else 1, width)
            decay = torch.exp(-1 / torch.logspace(*((0.5, 2.5) if k else (0, 1.7)), width))
            with torch.no_grad():  # slow neurons add up more
                weights.weight.normal_(std=3 / math.sqrt(width) if k else 1.0)
                weights.weight.mul_((1 - decay).sqrt()[:, None])
                weights.bias.mul_(1 - decay)
            neurons = LIF(
                decay=decay, channels=width, reset="soft", detach_reset=True, backend=backend
            )
            layers += [OverTime(weights, save=save if k else None), neurons]
        slow = 400.0
        low_pass = IIRSynapse([math.exp(-1 / slow)], [8 / slow], learn=False, backend=backend)
        self.layers = nn.Sequential(
            *layers, OverTime(nn.Linear(width, CLASSES), save=save), low_pass
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits at every step."""
        return self.layers(x)
