"""The associative memory of Fang et al., 5.1: patterns, their noisy versions, the training."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkernels.core.surrogates import Gaussian
from snnkernels.nn.losses import van_rossum_distance
from snnkernels.nn.synapses import exponential
from snnkernels.train.data import Dataset, Samples
from snnkernels.train.module import SpikingClassifier
from snnkernels.train.muon import Muon

# Of the `IIRNetwork`: what the paper leaves open, as it learns soonest.
NETWORK = {
    "tau_m": 3.0,
    "tau": 2.5,
    "tau_trace": 2.5,
    "scale": 1.0,
    "surrogate": Gaussian(1.5),
}


class Noise(NamedTuple):
    """What is done to a pattern before it is shown, the regions at random places.

    Attributes:
        deletion: share of spikes that are lost.
        jitter: standard deviation of a spike's shift in time, in steps.
        background: probability of an extra spike, per train and step.
        window: share of the steps, in a row, in which all spikes are lost.
        band: share of the trains, side by side, that lose all spikes.
    """

    deletion: float = 0.2
    jitter: float = 1.0
    background: float = 0.005
    window: float = 0.05
    band: float = 0.2


def make_patterns(
    patterns: int = 10, trains: int = 300, steps: int = 300, rate: float = 0.05, seed: int = 0
) -> Tensor:
    """Random spike patterns `[patterns, T, trains]`, each bin a spike with probability ``rate``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(patterns, steps, trains, generator=generator) < rate).float()


def corrupt(patterns: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    """A noisy version of each pattern `[N, T, trains]`; spikes that are moved outside are lost."""
    count, steps, trains = patterns.shape
    kept = (patterns > 0) & (torch.rand(patterns.shape, generator=generator) >= noise.deletion)
    kept &= ~_region(noise.window, steps, count, generator)[:, :, None]
    kept &= ~_region(noise.band, trains, count, generator)[:, None, :]
    sample, t, train = kept.nonzero(as_tuple=True)
    shift = torch.randn(len(t), generator=generator) * noise.jitter
    t = t + shift.round().long()
    inside = (t >= 0) & (t < steps)
    shown = torch.rand(patterns.shape, generator=generator) < noise.background
    shown[sample[inside], t[inside], train[inside]] = True
    return shown.to(patterns.dtype)


def _region(share: float, length: int, count: int, generator: torch.Generator) -> Tensor:
    """For each of ``count`` samples a share of ``length`` places in a row, bool `[N, length]`."""
    size = round(share * length)
    start = torch.randint(length - size + 1, (count, 1), generator=generator)
    place = torch.arange(length)
    return (place >= start) & (place < start + size)


def noisy_data(
    patterns: Tensor, noise: Noise, *, versions: int = 64, test_versions: int = 5, seed: int = 0
) -> Dataset:
    """Noisy versions of patterns, labelled with the number of their pattern.

    Args:
        patterns: `[P, T, trains]`.
        noise: what is done to them.
        versions: of each pattern to learn from. Default: 64.
        test_versions: of each pattern that training never sees. Default: 5.
        seed: of the noise. Default: 0.

    Returns:
        x uint8 `[versions * P, T, trains]`, version by version.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for count in (versions, test_versions):
        x = torch.cat([corrupt(patterns, noise, generator).byte() for _ in range(count)])
        parts.append(Samples(x, torch.arange(len(patterns)).repeat(count)))
    return Dataset(*parts, classes=len(patterns))


class AssociativeMemory(SpikingClassifier):
    """Train a network to give back the clean pattern, by the van Rossum distance (eq. 8).

    The loss is the distance of the output to the pattern that the input was made from. Accuracy,
    measured on test samples alone, is the share of outputs that are closest to that pattern. The
    weights learn by `Muon`, the filters by Adam.

    Args:
        network: spikes `[T, N, trains]` to the same.
        patterns: `[P, T, trains]`.
        tau: time constant of the distance's exponential filter, in steps. Default: 4.
        lr: learning rate of the weights. Default: 0.4.
        filter_lr: of the synapses' coefficients. Default: 5e-4.
        backend: of the distance's filter. Default: "auto".
        **options: of `SpikingClassifier`.
    """

    def __init__(
        self,
        network: nn.Module,
        patterns: Tensor,
        *,
        tau: float = 4.0,
        lr: float = 0.4,
        filter_lr: float = 5e-4,
        backend: str = "auto",
        **options,
    ) -> None:
        super().__init__(
            network,
            classes=len(patterns),
            optimizer=partial(Muon, lr=lr),
            filter_lr=filter_lr,
            **options,
        )
        self.register_buffer("patterns", patterns, persistent=False)
        self.filter = exponential(tau)
        self.backend = backend

    def parameter_groups(self) -> list[dict]:
        """The weights, and the synapses' coefficients."""
        weights, *filters = super().parameter_groups()
        return [{**weights, "orthogonal": True}, *filters]

    def forward(self, x: Tensor) -> Tensor:
        """From spikes of any dtype `[N, T, trains]` to what is recalled, `[T, N, trains]`."""
        return self.network(x.transpose(0, 1).to(self.patterns))

    def distance(self, s: Tensor, label: Tensor, reduction: str = "mean") -> Tensor:
        """Van Rossum distance of outputs `[T, N, trains]` to patterns of these numbers `[N]`."""
        target = self.patterns[label].transpose(0, 1)
        return van_rossum_distance(
            s, target, *self.filter, reduction=reduction, backend=self.backend
        )

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Distance to the own pattern and, outside of training, closeness to each pattern."""
        s = self(x)
        if self.training:
            return self.distance(s, y), None
        distances = self.distances(s)
        return distances.gather(1, y[:, None]).mean(), -distances

    def distances(self, s: Tensor) -> Tensor:
        """Distance of each output to every pattern, `[N, P]`."""
        labels = torch.arange(len(self.patterns), device=s.device)[:, None].expand(-1, s.shape[1])
        return torch.stack([self.distance(s, y, "none") for y in labels], 1)
