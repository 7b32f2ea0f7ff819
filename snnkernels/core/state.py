"""The state that a neuron carries from one step, and from one call, to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class State(NamedTuple):
    """What a layer of neurons remembers; parts that a neuron does not have are None.

    Running T1 steps, handing the state over and running T2 more gives the bits of T1 + T2 steps.

    Attributes:
        v: membrane potential after the reset, shape of one step of the input `[N, *]`, float32
            (float64 for float64 input). Carries a gradient.
        refractory: steps that each neuron still has to wait before it may fire, same shape,
            float32 holding whole numbers; None without a refractory period. No gradient.
        synapse: the last outputs and inputs of the synapse's filter, `[P + Q, N, *]` as
            `snnkernels.iir` returns them; None without a synapse. Carries a gradient.
        trace: what earlier spikes take off the next potential, in units of the threshold, same
            shape as v; None unless reset is "trace". Carries a gradient.
    """

    v: Tensor | None = None
    refractory: Tensor | None = None
    synapse: Tensor | None = None
    trace: Tensor | None = None

    def detach(self) -> State:
        """The same values, cut from the graph (truncated back-propagation through time)."""
        return State(*(None if part is None else part.detach() for part in self))


torch.serialization.add_safe_globals([State])  # for torch.load(weights_only=True), its default
