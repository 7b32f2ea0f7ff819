"""Losses of classifiers: each gives a loss and the scores by which the answer is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnkernels.core.checks import check_positive, check_whole
from snnkernels.nn.losses import van_rossum_distance
from snnkernels.nn.readout import mean, total
from snnkernels.nn.synapses import exponential

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mse_loss(rates: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of firing rates `[N, C]` to the one-hot label, summed over classes."""
    target = functional.one_hot(labels, rates.shape[1]).to(rates.dtype)
    return functional.mse_loss(rates, target) * rates.shape[1]


class Mse(nn.Module):
    """Squared distance of scores to the one-hot label, which suits firing rates (`mse_loss`)."""

    def forward(self, out: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and scores of the network's output `[N, C]`."""
        return mse_loss(out, labels), out


class BinaryCrossEntropy(nn.Module):
    """Every class by itself, against the one-hot label; the mean over samples and classes.

    Args:
        rates: the scores are probabilities, such as firing rates, which are kept 1e-3 away from 0
            and 1; False takes them for logits. Default: True.
    """

    def __init__(self, rates: bool = True) -> None:
        super().__init__()
        self.rates = rates

    def forward(self, out: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and scores of the network's output `[N, C]`."""
        target = functional.one_hot(labels, out.shape[1]).to(out.dtype)
        logits = out.clamp(1e-3, 1 - 1e-3).logit() if self.rates else out
        return functional.binary_cross_entropy_with_logits(logits, target), out


class CrossEntropy(nn.Module):
    """Cross-entropy of scores as logits: potentials, rates or spike counts, as the read-out gives.

    Args:
        voters: outputs of each class, whose mean is its score. Default: 1.
    """

    def __init__(self, voters: int = 1) -> None:
        super().__init__()
        check_whole("voters", voters)
        self.voters = voters

    def forward(self, out: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and scores `[N, C]` of the network's output `[N, C * voters]`."""
        scores = mean(out.unflatten(1, (-1, self.voters)), -1) if self.voters > 1 else out
        return functional.cross_entropy(scores, labels), scores


class VanRossum(nn.Module):
    """Distance of output spikes to a train of the right neuron alone, see `van_rossum_distance`.

    The neuron of the label is to fire at every ``period``-th step, the others never; the scores
    are the numbers of spikes.

    Args:
        period: steps between two spikes. Default: 2.
        tau: of the distance's exponential filter, in steps. Default: 4.
    """

    def __init__(self, period: int = 2, tau: float = 4.0) -> None:
        super().__init__()
        check_whole("period", period)
        check_positive(tau=tau)
        self.period, self.filter = period, exponential(tau)

    def forward(self, out: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and scores `[N, C]` of the network's output, spikes `[T, N, C]`."""
        if out.ndim != 3:
            raise ValueError(
                "loss van_rossum needs the network's spikes [T, N, C], as readout='spikes' gives; "
                f"got {list(out.shape)}"
            )
        on = torch.arange(1, out.shape[0] + 1, device=out.device) % self.period == 0
        right = functional.one_hot(labels, out.shape[2])
        target = (on.view(-1, 1, 1) * right).to(out.dtype)
        return van_rossum_distance(out, target, *self.filter), total(out)


LOSSES: dict[str, Callable[..., Loss]] = {
    "mse": Mse,
    "bce": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "van_rossum": VanRossum,
}
