"""The associative memory of Fang et al., 5.1: patterns, their noisy versions, the training."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from snnkernels.losses import van_rossum_distance
from snnkernels.synapses import IIRSynapse, exponential


class Noise(NamedTuple):
    """What is done to a pattern before it is shown.

    Attributes:
        deletion: share of spikes that are lost.
        jitter: standard deviation of a spike's shift in time, in steps.
        background: probability of an extra spike, per train and step.
    """

    deletion: float = 0.2
    jitter: float = 1.0
    background: float = 0.005


def make_patterns(
    patterns: int = 10, trains: int = 300, steps: int = 300, rate: float = 0.05, seed: int = 0
) -> Tensor:
    """Random spike patterns `[patterns, T, trains]`, each bin a spike with probability ``rate``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(patterns, steps, trains, generator=generator) < rate).float()


def corrupt(patterns: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    """A noisy version of each pattern `[N, T, trains]`; spikes that are moved outside are lost."""
    steps = patterns.shape[1]
    kept = (patterns > 0) & (torch.rand(patterns.shape, generator=generator) >= noise.deletion)
    sample, t, train = kept.nonzero(as_tuple=True)
    shift = torch.randn(len(t), generator=generator) * noise.jitter
    t = t + shift.round().long()
    inside = (t >= 0) & (t < steps)
    shown = torch.rand(patterns.shape, generator=generator) < noise.background
    shown[sample[inside], t[inside], train[inside]] = True
    return shown.to(patterns.dtype)


class NoisyPatterns(torch.utils.data.IterableDataset):
    """Batches of one noisy version of every pattern, ``batches`` of them an epoch.

    Yields:
        inputs `[T, N, trains]` and targets of the same shape, sample n being pattern n.
    """

    def __init__(self, patterns: Tensor, noise: Noise, batches: int, seed: int) -> None:
        self.patterns, self.noise, self.batches = patterns, noise, batches
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):
        for _ in range(self.batches):
            x = corrupt(self.patterns, self.noise, self.generator)
            yield x.transpose(0, 1), self.patterns.transpose(0, 1)


class AssociativeMemory(L.LightningModule):
    """Train a network to give back the clean pattern, by the van Rossum distance (eq. 8).

    Args:
        network: `[T, N, trains]` to the same.
        tau: time constant of the loss's exponential filter, in steps. Default: 4.
        lr: Adam's learning rate of the weights. Default: 1e-2.
        filter_lr: the same of the synapses' coefficients, of which each acts on every spike of its
            input: at the rate of the weights they undo what those learn. Default: 5e-4.
        backend: of the loss's filter. Default: "auto".
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        tau: float = 4.0,
        lr: float = 1e-2,
        filter_lr: float = 5e-4,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.network = network
        self.filter = exponential(tau)
        self.lr = lr
        self.filter_lr = filter_lr
        self.backend = backend

    def distance(self, s: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        """Van Rossum distance of spike trains, per sample or their mean."""
        return van_rossum_distance(
            s, target, *self.filter, reduction=reduction, backend=self.backend
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of one batch."""
        x, target = batch
        return self.distance(self.network(x), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        synapses = [m for m in self.network.modules() if isinstance(m, IIRSynapse)]
        filters = [p for m in synapses for p in m.parameters()]
        taken = {id(p) for p in filters}
        groups = [{"params": [p for p in self.parameters() if id(p) not in taken]}]
        if filters:
            groups.append({"params": filters, "lr": self.filter_lr})
        return torch.optim.Adam(groups, lr=self.lr, fused=True)

    @torch.no_grad()
    def recall(self, x: Tensor, patterns: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of each output to every pattern.

        Args:
            x: noisy inputs `[T, N, trains]`.
            patterns: `[P, T, trains]`.

        Returns:
            output spikes `[T, N, trains]`, distances `[N, P]`.
        """
        s = self.network(x)
        distances = [
            self.distance(s, p.unsqueeze(1).expand_as(s).contiguous(), "none") for p in patterns
        ]
        return s, torch.stack(distances, 1)
