"""The libraries that people use, as functions of x `[T, N, *]` with our default case's options.

Each entry imports its library when it is built; one that is not installed is left out by name.
Decay, threshold 1, hard reset to 0, a surrogate of its own that is as cheap as ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]
Build = Callable[[float], Run]  # by the decay


def spikingjelly(decay: float) -> Run:
    """SpikingJelly's multi-step LIFNode: v <- v - v / tau + x, tau = 1 / (1 - decay)."""
    from spikingjelly.activation_based import neuron, surrogate

    node = neuron.LIFNode(
        tau=1.0 / (1.0 - decay),
        decay_input=False,
        v_reset=0.0,
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),
        step_mode="m",
    )
    if torch.cuda.is_available():
        node.backend = "triton"  # its fastest there

    def run(x: Tensor) -> Tensor:
        node.reset()
        return node(x)

    return run


def snntorch(decay: float) -> Run:
    """snnTorch's Leaky in the loop that its tutorials write; spikes where h > 1."""
    import snntorch as snn
    from snntorch import surrogate

    leaky = snn.Leaky(
        beta=decay, reset_mechanism="zero", spike_grad=surrogate.fast_sigmoid(slope=25)
    )

    def run(x: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(x[0]), []
        for step in x.unbind(0):
            spike, membrane = leaky(step, membrane)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def norse(decay: float) -> Run:
    """Norse's LIFBoxCell, stepped: v <- v + k ((0 - v) + x / k), k = 1 - decay; spikes at >."""
    from norse.torch.module.lif_box import LIFBoxCell, LIFBoxParameters

    rate = 1.0 - decay
    cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(rate)), dt=1.0)

    def run(x: Tensor) -> Tensor:
        state, spikes = None, []
        for step in (x / rate).unbind(0):
            spike, state = cell(step, state)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


def sinabs(decay: float) -> Run:
    """sinabs' LIF over `[B, T, *]`: v <- decay v + x, one spike a step where h >= 1, then v = 0."""
    from sinabs import activation
    from sinabs.layers import LIF

    layer = LIF(
        tau_mem=-1.0 / math.log(decay),
        spike_fn=activation.SingleSpike,
        reset_fn=activation.MembraneReset(),
        norm_input=False,
    )

    def run(x: Tensor) -> Tensor:
        layer.reset_states()
        batch_first = x.unsqueeze(0) if x.ndim == 2 else x.transpose(0, 1)
        s = layer(batch_first)
        return s.squeeze(0) if x.ndim == 2 else s.transpose(0, 1)

    return run


PEERS = {"spikingjelly": spikingjelly, "snntorch": snntorch, "norse": norse, "sinabs": sinabs}


def installed(decay: float) -> tuple[dict[str, Run], dict[str, str]]:
    """(what can run, why the others cannot)."""
    there, missing = {}, {}
    for name, build in PEERS.items():
        try:
            there[name] = build(decay)
        except Exception as error:  # not installed, or of a version that does not load here
            missing[name] = str(error)
    return there, missing
