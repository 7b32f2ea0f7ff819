"""The small network of the demo, made for 28 x 28 digits and two CPU cores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkernels.core.surrogates import Surrogate, Triangle
from snnkernels.nn.lif import LIF
from snnkernels.nn.over_time import OverTime
from snnkernels.nn.readout import mean

MEAN, DEVIATION = 0.13, 0.31  # of the grey values of MNIST


class DigitNet(nn.Module):
    """Two spiking convolutions and two spiking dense layers, read out as firing rates.

    3x3 convolution to 48 - LIF - 2x2 average pooling, twice; dense 128 - LIF; dense 10 - LIF. The
    image is the constant input current of all steps (direct coding), so the first convolution runs
    once and its result is expanded over time. Everything up to the dense layers is channels_last,
    which convolutions on a CPU run faster.

    Args:
        steps: time steps T. Default: 5.
        decay: of all neurons. Default: 0.5.
        surrogate: of all neurons. Default: ``Triangle()``.
        backend: of all neurons, see `snnkernels.lif`. Default: "auto".

    Shape:
        images `[N, 1, 28, 28]`, 0 ... 1; output `[N, 10]`, spikes per step of the output neurons.

    Attributes:
        readout: the output neurons; they return (s, h), so that a hook sees their potentials.
    """

    def __init__(
        self,
        *,
        steps: int = 5,
        decay: float = 0.5,
        surrogate: Surrogate | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if type(steps) is not int or steps < 1:
            raise ValueError(f"steps must be a whole number >= 1; got {steps!r}")
        self.steps = steps
        neuron = {"decay": decay, "surrogate": surrogate or Triangle(), "backend": backend}
        self.code = nn.Conv2d(1, 48, 3, padding=1)
        self.features = nn.Sequential(
            LIF(**neuron),
            OverTime(nn.AvgPool2d(2), nn.Conv2d(48, 48, 3, padding=1)),
            LIF(**neuron),
            OverTime(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48 * 7 * 7, 128)),
            LIF(**neuron),
            OverTime(nn.Linear(128, 10)),
        )
        self.readout = LIF(record="h", **neuron)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Firing rates of the ten output neurons."""
        x = (images - MEAN) / DEVIATION
        current = self.code(x.contiguous(memory_format=torch.channels_last))
        s, _ = self.readout(self.features(current.expand(self.steps, *current.shape)))
        return mean(s)
