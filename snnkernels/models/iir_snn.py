"""Networks of synapse filters and spiking neurons (Fang et al., IIR-SNN).

Every layer is eq. 5a-e: a filter per input, weights, and a leaky neuron whose spikes leave a trace
that lowers its potential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_positive, check_wholes
from snnkernels.core.surrogates import Gaussian, Surrogate
from snnkernels.nn.lif import LIF
from snnkernels.nn.readout import total
from snnkernels.nn.synapses import CurrentEncoder, IIRSynapse

SURROGATE = Gaussian(1.0)


class Dynamics(NamedTuple):
    """The synapses and neurons of eq. 5, with the time constants that the paper does not give.

    Attributes:
        tau_m: of the synapses' decay, in steps. Default: 4.
        tau_s: of the synapses' rise, in steps. Default: 1.
        tau: of the potential, in steps. Default: 4.
        tau_trace: of the reset trace, in steps. Default: 4.
        learn_filters: train the synapses' coefficients. Default: True.
        v_threshold: Default: 1.
        surrogate: Default: ``Gaussian(1.0)``.
        backend: as in `LIF`. Default: "auto".
    """

    tau_m: float = 4.0
    tau_s: float = 1.0
    tau: float = 4.0
    tau_trace: float = 4.0
    learn_filters: bool = True
    v_threshold: float = 1.0
    surrogate: Surrogate = SURROGATE
    backend: str = "auto"

    def synapse(self, channels: int) -> IIRSynapse:
        """Dual-exponential filters, one for each of ``channels`` (eq. 4c, 5d)."""
        return IIRSynapse.dual_exponential(
            self.tau_m,
            self.tau_s,
            channels=channels,
            learn=self.learn_filters,
            backend=self.backend,
        )

    def neuron_options(self) -> dict:
        """Of `LIF`: a leak, and a trace of the spikes that lowers the potential (eq. 5a-c)."""
        check_positive(tau=self.tau, tau_trace=self.tau_trace)
        return {
            "decay": math.exp(-1 / self.tau),
            "v_threshold": self.v_threshold,
            "reset": "trace",
            "trace_decay": math.exp(-1 / self.tau_trace),
            "surrogate": self.surrogate,
            "backend": self.backend,
        }


class IIRNetwork(nn.Module):
    """Dense layers of filtered inputs and neurons with a reset trace.

    The paper gives neither time constants nor the initial weights: those here are this library's
    choice, made so that every layer fires at first.

    Args:
        sizes: inputs, then neurons of each layer, such as ``(300, 500, 200, 500, 300)``.
        tau_m: of the synapses' decay, in steps. Default: 4.
        tau_s: of the synapses' rise, in steps. Default: 1.
        tau: of the potential, in steps. Default: 4.
        tau_trace: of the reset trace, in steps. Default: 4.
        learn_filters: train the synapses' coefficients. Default: True.
        scale: of the initial weights, in units of 1 / sqrt(inputs). Default: 2.
        surrogate: Default: ``Gaussian(1.0)``.
        backend: as in `LIF`. Default: "auto".

    Shape:
        x spikes `[T, N, inputs]`, output spikes `[T, N, neurons of the last layer]`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        tau_m: float = 4.0,
        tau_s: float = 1.0,
        tau: float = 4.0,
        tau_trace: float = 4.0,
        learn_filters: bool = True,
        scale: float = 2.0,
        surrogate: Surrogate = SURROGATE,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes must be the inputs and at least one layer; got {list(sizes)}")
        check_wholes(**{f"sizes[{k}]": size for k, size in enumerate(sizes)})
        check_positive(scale=scale)
        parts = Dynamics(
            tau_m, tau_s, tau, tau_trace, learn_filters, surrogate=surrogate, backend=backend
        )
        layers = []
        for inputs, neurons in zip(sizes[:-1], sizes[1:], strict=True):
            weights = nn.Linear(inputs, neurons, bias=False)
            nn.init.normal_(weights.weight, std=scale / math.sqrt(inputs))
            layers += [parts.synapse(inputs), weights, LIF(**parts.neuron_options())]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run T steps of every layer."""
        return self.layers(x)

    @torch.no_grad()
    def kernels(self, steps: int) -> list[Tensor]:
        """Responses of each layer's filters to one spike, `[steps, inputs]`."""
        return [m.kernel(steps) for m in self.layers if isinstance(m, IIRSynapse)]


class SeriesSNN(nn.Module):
    """Classify time series: an encoder, an `IIRNetwork`, and the spike counts of its last layer.

    Args:
        features: of a step.
        classes: neurons of the last layer.
        hidden: neurons of the layers before. Default: (300, 300), the paper's.
        hold: steps of the network for each step of the series. Default: 1.
        gain: of the encoder. Default: 0.2.
        scale: of the initial weights, as in `IIRNetwork`. Default: 1.5.
        **options: of `IIRNetwork`.

    Shape:
        x `[N, T, features]`, NaN after the end of a series; counts `[N, classes]`, the logits of
        eq. 7.
    """

    needs_all_steps = "its input has time second"

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        hidden: Sequence[int] = (300, 300),
        hold: int = 1,
        gain: float = 0.2,
        scale: float = 1.5,
        backend: str = "auto",
        **options,
    ) -> None:
        super().__init__()
        check_wholes(features=features, classes=classes, hold=hold)
        self.hold = hold
        self.encoder = CurrentEncoder(gain=gain, backend=backend)
        sizes = (2 * features, *hidden, classes)
        self.network = IIRNetwork(sizes, scale=scale, backend=backend, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Spike counts of the classes; after its end a series is silent."""
        x = x.transpose(0, 1).nan_to_num().repeat_interleave(self.hold, 0)
        return total(self.network(self.encoder(x)))


class SeriesLSTM(nn.Module):
    """What the paper compares with in section 5.3: two layers of LSTM cells, read at the end.

    Args:
        features: of a step.
        classes: number of logits.
        hidden: cells of a layer. Default: 300.

    Shape:
        x `[N, T, features]`, NaN after the end of a series; logits `[N, classes]`.
    """

    def __init__(self, features: int, classes: int, *, hidden: int = 300) -> None:
        super().__init__()
        check_wholes(features=features, classes=classes, hidden=hidden)
        self.lstm = nn.LSTM(features, hidden, num_layers=2)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the last step of each series."""
        last = (~x[..., 0].isnan()).sum(1) - 1
        out, _ = self.lstm(x.transpose(0, 1).nan_to_num())
        return self.fc(out[last, torch.arange(len(x), device=x.device)])
