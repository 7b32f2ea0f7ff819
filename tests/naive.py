"""A second, independent reference: the equations as one writes them down, under plain autograd.

It shares no code with `snnkernels.reference`: the spike's derivative comes from autograd through
the surrogate's primitive, and the resets are written as products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cases import Inputs, Neuron


def loop(
    x: Tensor,
    v: Tensor,
    wait: Tensor,
    decay: Tensor,
    theta: Tensor,
    neuron: Neuron,
    spikes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(s, v, wait, h) of one call.

    Args:
        x: [T, N, *].
        v: the potential to start from [N, *].
        wait: steps still without spikes [N, *].
        decay: one value per step and neuron, x's shape.
        theta: the same.
        neuron: its options.
        spikes: taken for the values of s where given; the derivatives stay the surrogate's.
    """
    s_all, h_all = [], []
    for t in range(x.shape[0]):
        h = decay[t] * v + x[t]
        live = wait == 0
        fired = ((h >= theta[t]) & live).to(h.dtype) if spikes is None else spikes[t].to(h.dtype)
        smooth = neuron.surrogate.primitive(h - theta[t])
        s = fired + torch.where(live, smooth - smooth.detach(), 0)
        r = s.detach() if neuron.detach_reset else s
        if neuron.reset == "hard":
            v = (1 - r) * h + r * neuron.v_reset
        elif neuron.reset == "soft":
            v = h - theta[t] * r
        else:
            v = h
        wait = torch.where(fired > 0, float(neuron.refractory), (wait - 1).clamp(min=0))
        s_all.append(s)
        h_all.append(h)
    return torch.stack(s_all), v, wait, torch.stack(h_all)


def spread(value: float | Tensor, x: Tensor) -> Tensor:
    """A coefficient as one float64 value per step and neuron."""
    value = torch.as_tensor(value, dtype=torch.float32).double()
    if value.ndim:
        value = value.view(-1, *[1] * (x.ndim - 3))
    return value.expand(x.shape).clone()


def start(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """v and wait to start from, in float64."""
    zero = torch.zeros(inputs.x.shape[1:], dtype=torch.float64)
    state = inputs.state
    if state is None:
        return zero, zero
    return state.v.double(), zero if state.refractory is None else state.refractory.double()


def parameter_terms(inputs: Inputs, neuron: Neuron, spikes: Tensor) -> tuple[Tensor, Tensor]:
    """The terms, one per step and neuron, whose sums are the gradients of decay and v_threshold.

    In float64, with the spikes of the float32 run: a spike more or less would change the gradient
    by far more than any rounding.
    """
    x = inputs.x.double()
    decay = spread(inputs.decay, x).requires_grad_()
    theta = spread(inputs.v_threshold, x).requires_grad_()
    s, v, _, h = loop(x, *start(inputs), decay, theta, neuron, spikes)
    outputs, gradients = [s, v], [inputs.ds.double(), inputs.dv.double()]
    if neuron.record:
        outputs.append(h)
        gradients.append(inputs.dh.double())
    return torch.autograd.grad(outputs, (decay, theta), gradients)
