"""A sound that is heard sample by sample, and a spiking network that says all the time what it is.

Every sample is a step: 100,000 of them are 12.5 seconds at 8 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkernels.nn.lif import LIF
from snnkernels.nn.over_time import OverTime
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train.data.series import recordings

CLASSES = 10
TONES = "ten pitches from 100 to 1,490 Hz, each for a quarter of a second, in noise: generated"
LENGTH = 2000  # samples of a tone


def tones(steps: int, streams: int, generator: torch.Generator) -> Tensor:
    """Tones of ten pitches at 8 kHz, one after the other, in noise.

    Args:
        steps: T.
        streams: N, sounds that run side by side.
        generator: of pitches, phases and noise.

    Returns:
        float32 `[T, N, 2]`: the sample, and the class that is heard at it.
    """
    count = -(-steps // LENGTH)
    heard = torch.randint(CLASSES, (count, streams), generator=generator)
    heard = heard.repeat_interleave(LENGTH, 0)[:steps]
    time = torch.arange(steps, dtype=torch.float32)[:, None] / 8000
    phase = torch.rand(1, streams, generator=generator)
    x = math.sqrt(2) * torch.sin(2 * math.pi * (100 * 1.35**heard * time + phase))
    x += 0.3 * torch.randn(steps, streams, generator=generator)
    return torch.stack([x, heard.float()], -1)


def speech(folder: str | Path, test: bool = False) -> Callable[..., Tensor]:
    """Recordings of spoken digits, one after the other, in random order.

    Args:
        folder: see `snnkernels.train.data.series.recordings`.
        test: take the test samples. Default: False.

    Returns:
        A function like `tones`. Each recording is scaled to a variance of 1.
    """
    parts = [r for r in recordings(folder) if r.is_test == test]

    def draw(steps: int, streams: int, generator: torch.Generator) -> Tensor:
        sound = torch.zeros(steps, streams, 2)
        for n in range(streams):
            start = 0
            while start < steps:
                chosen = parts[torch.randint(len(parts), (1,), generator=generator)]
                part = sound[start : start + len(chosen.wave), n]
                part[:, 0] = chosen.wave[: len(part)] / chosen.wave.std().clamp_min(1e-6)
                part[:, 1] = chosen.digit
                start += len(chosen.wave)
        return sound

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


class Heard(nn.Module):
    """What a network says of a sound, beside what it is: sums over steps, which need no memory.

    Args:
        network: gives logits `[T, N, CLASSES]` of samples `[T, N, 1]`.

    Shape:
        sound `[T, N, 2]` as `tones` gives it; the sum of the cross-entropies of all steps, and how
        many of them are right.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Compare at every step."""
        logits, heard = self.network(sound[..., :1]).flatten(0, 1), sound[..., 1].flatten().long()
        right = (logits.argmax(-1) == heard).sum().float()
        return F.cross_entropy(logits, heard, reduction="sum"), right
