"""A second, independent reference: the equations as one writes them down, under plain autograd.

It shares no code with `snnkernels.core.reference`: the spike's derivative comes from autograd
through the surrogate's primitive, and the resets are written as products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.core.surrogates import Surrogate
from tests.tools.cases import Inputs, Neuron


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


def general_terms(
    x: Tensor, want: dict, arriving: dict, spikes: Tensor, reset: str, surrogate: Surrogate
) -> dict[str, Tensor]:
    """As `parameter_terms`, for the neuron with a synapse and a gain, and a trace or a reset.

    Args:
        x: [T, N, C, *].
        want: coefficients and starting state by name; alpha and beta with their lags last.
        arriving: gradients on s, v, synapse and trace.
        spikes: of the float32 run.
        reset: "hard" or "trace".
        surrogate: of the neuron.

    Returns:
        Terms by name: of alpha and beta one entry for each lag, ``"alpha[0]"``.
    """
    x = x.double()
    state = {k: want[k].double() for k in ("v", "synapse", "trace") if k in want}
    names = [n for n in ("decay", "v_threshold", "gain", "trace_decay") if n in want]
    parts = {name: want[name] for name in names}
    for name in ("alpha", "beta"):
        parts |= {f"{name}[{k}]": c for k, c in enumerate(want[name].unbind(-1))}
    c = {name: spread(value, x).requires_grad_() for name, value in parts.items()}
    P, Q = want["alpha"].shape[-1], want["beta"].shape[-1] - 1
    f, inputs = list(state["synapse"][:P]), list(state["synapse"][P:])
    v, trace, s_all = state["v"], state.get("trace"), []
    for t in range(x.shape[0]):
        inputs = [x[t], *inputs][: Q + 1]
        i = sum(c[f"beta[{q}]"][t] * inputs[q] for q in range(Q + 1))
        i = i + sum(c[f"alpha[{p}]"][t] * f[p] for p in range(P))
        f = [i, *f][:P]
        h = c["decay"][t] * v + c["gain"][t] * i
        if reset == "trace":
            h = h - c["v_threshold"][t] * trace
        smooth = surrogate.primitive(h - c["v_threshold"][t])
        s = spikes[t].double() + smooth - smooth.detach()
        v = h if reset == "trace" else (1 - s) * h
        trace = c["trace_decay"][t] * trace + s if reset == "trace" else None
        s_all.append(s)
    outputs = {"s": torch.stack(s_all), "v": v, "trace": trace}
    outputs["synapse"] = torch.stack([*f, *inputs[:Q]])
    names = [n for n in arriving if outputs[n] is not None and outputs[n].requires_grad]
    gradients = torch.autograd.grad(
        [outputs[name] for name in names], list(c.values()), [arriving[n].double() for n in names]
    )
    return dict(zip(c, gradients, strict=True))
