"""The neuron and the filter in plain PyTorch: what every kernel must reproduce bit for bit.

One step of one neuron (design and order of operations are the contract; ``csrc/neuron.h`` and
``backends/triton/equations.py`` mirror them)::

    synapse   i[t] = beta[Q] x[t-Q] + ... + beta[0] x[t] + alpha[P] i[t-P] + ... + alpha[1] i[t-1]
    charge    h[t] = ((decay * v[t-1]) + (gain * i[t])) - (v_threshold * r[t])
    fire      s[t] = 1 if h[t] >= v_threshold and not refractory, else 0
    reset     v[t] = hard: v_reset where s, else h;  soft: h - v_threshold * s;  none, trace: h
    trace     r[t+1] = (trace_decay * r[t]) + s[t]

Where there is no synapse i = x, and without a gain or a trace their terms are not there at all.
Every product and every sum is rounded by itself, in float32 (float64 for float64 input). This is
also the backend "torch": the loop over time that everybody writes, with its memory and its speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.core.call import as_tensor
from snnkernels.core.derivatives import BackwardOnly, only_once
from snnkernels.core.state import State
from snnkernels.core.surrogates import Surrogate

# What backend "torch" and the kernels say where a gradient is differentiated.
NO_SECOND = "lif, whose surrogate gradient has no derivative here,"


def _sum_to(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.sum_to_size(like.shape) if gradient.shape != like.shape else gradient


class Fire(BackwardOnly):
    """``(h >= theta) & live`` with the surrogate's derivative in the backward pass."""

    @staticmethod
    def forward(h: Tensor, theta: Tensor, live: Tensor | None, surrogate: Surrogate):
        fired = h >= theta
        return (fired if live is None else fired & live).to(h.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *kept, ctx.surrogate = inputs
        ctx.save_for_backward(*kept)

    @staticmethod
    def backward(ctx, g: Tensor):
        dh, dtheta = _fire_adjoint(g, *ctx.saved_tensors, ctx.surrogate, ctx.needs_input_grad[1])
        return dh, dtheta, None, None


@only_once(NO_SECOND)
def _fire_adjoint(g, h, theta, live, surrogate, learns):
    dh = g * surrogate.derivative(h - theta)
    if live is not None:
        dh = torch.where(live, dh, 0.0)
    return dh, _sum_to(-dh, theta) if learns else None


class HardReset(BackwardOnly):
    """``v_reset where r > 0, else h``; its derivative by r is that of ``(1 - r) h + r v_reset``."""

    @staticmethod
    def forward(h: Tensor, r: Tensor, v_reset: Tensor):
        return torch.where(r > 0, v_reset, h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g: Tensor):
        return *_reset_adjoint(g, *ctx.saved_tensors, ctx.needs_input_grad[1]), None


@only_once(NO_SECOND)
def _reset_adjoint(g, h, r, v_reset, attached):
    return torch.where(r > 0, 0.0, g), g * (v_reset - h) if attached else None


class Penalty(BackwardOnly):
    """``max(0, |h - (theta + shift)| - tolerance)^2``, shape of h."""

    @staticmethod
    def forward(h: Tensor, theta: Tensor, tolerance: float, shift: float):
        return _beyond(h - (theta + shift), tolerance).square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        h, theta, *ctx.interval = inputs
        ctx.save_for_backward(h, theta)

    @staticmethod
    def backward(ctx, g: Tensor):
        learns = ctx.needs_input_grad[1]
        return *_penalty_adjoint(g, *ctx.saved_tensors, *ctx.interval, learns), None, None


@only_once(NO_SECOND)
def _penalty_adjoint(g, h, theta, tolerance, shift, learns):
    offset = h - (theta + shift)
    sign = torch.where(offset < 0, -2.0, 2.0).to(h.dtype)
    dh = g * (sign * _beyond(offset, tolerance))
    return dh, _sum_to(-dh, theta) if learns else None


def _beyond(offset: Tensor, tolerance: float) -> Tensor:
    excess = offset.abs() - tolerance
    return torch.where(excess <= 0, 0.0, excess)


def _coefficient(value: float | Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A float, 0-d tensor or [C] tensor as a tensor that broadcasts against x[t] = [N, C, *]."""
    value = value.to(dtype) if isinstance(value, Tensor) else as_tensor(value, dtype, x.device)
    return value if value.ndim == 0 else value.view(-1, *[1] * (x.ndim - 3))


class Filter:
    """The filter of `snnkernels.iir`, one step at a time.

    Autograd adds up the gradient on f[t] from the latest use to the earliest: from the output and
    the state, then over lags P ... 1, which is the order of the adjoint in the kernels.
    """

    def __init__(self, x: Tensor, alpha: Tensor, beta: Tensor, state: Tensor | None) -> None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        self.alpha = [_coefficient(c, x, dtype) for c in alpha.unbind(-1)]
        self.beta = [_coefficient(c, x, dtype) for c in beta.unbind(-1)]
        self.P, self.Q = len(self.alpha), len(self.beta) - 1
        self.zero = torch.zeros(x.shape[1:], dtype=dtype, device=x.device)
        rows = [self.zero] * (self.P + self.Q) if state is None else list(state.unbind(0))
        self.outputs, self.inputs = rows[: self.P], rows[self.P :]  # newest first

    def step(self, x_t: Tensor) -> Tensor:
        self.inputs = [x_t, *self.inputs]
        f = self.beta[self.Q] * self.inputs[self.Q]
        for q in range(self.Q - 1, -1, -1):
            f = f + self.beta[q] * self.inputs[q]
        for p in range(self.P, 0, -1):
            f = f + self.alpha[p - 1] * self.outputs[p - 1]
        self.inputs, self.outputs = self.inputs[: self.Q], [f, *self.outputs][: self.P]
        return f

    def state(self) -> Tensor:
        rows = [*self.outputs, *self.inputs]
        return torch.stack(rows) if rows else self.zero.new_empty(0, *self.zero.shape)


def lif(  # noqa: D417
    x: Tensor,
    state: State,
    *,
    decay: float | Tensor,
    v_threshold: float | Tensor,
    v_reset: float,
    reset: str,
    detach_reset: bool,
    refractory: int,
    surrogate: Surrogate,
    record: str | None,
    synapse: tuple[Tensor, Tensor] | None = None,
    gain: float | Tensor = 1.0,
    trace_decay: float | Tensor | None = None,
    regulariser: tuple[float, float] | None = None,
    smooth: bool = False,
) -> tuple[Tensor, State, Tensor | None, Tensor | None]:
    """The loop over time. Arguments as in `snnkernels.lif`, already checked.

    Args:
        x: `[T, N, *]`.
        state: v and, where refractory > 0, the steps that each neuron still has to wait.
        decay: this and what follows, up to ``regulariser``, as `snnkernels.lif` takes it.
        smooth: replace the spike by the surrogate's primitive and the select of the hard reset by
            ``(1 - s) h + s v_reset``, so that the whole is differentiable (for gradcheck).

    Returns:
        s in x's dtype and strides, the state after the last step, h or None, the regulariser's
        penalty or None.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    a = _coefficient(decay, x, dtype)
    theta = _coefficient(v_threshold, x, dtype)
    v_reset = _coefficient(v_reset, x, dtype)
    v = torch.zeros(x.shape[1:], dtype=dtype, device=x.device) if state.v is None else state.v
    wait = state.refractory
    if refractory and wait is None:
        wait = torch.zeros_like(v)
    filtered = None if synapse is None else Filter(x, *synapse, state.synapse)
    b = None if isinstance(gain, float) and gain == 1.0 else _coefficient(gain, x, dtype)
    trace = None
    if reset == "trace":
        rho = _coefficient(trace_decay, x, dtype)
        trace = torch.zeros_like(v) if state.trace is None else state.trace
    spikes, potentials = [], []
    currents = x.to(dtype).unbind(0)
    if filtered is not None:  # as a whole, before the neuron: so autograd adds up as `iir` does
        currents = [filtered.step(x_t) for x_t in currents]
    for i in currents:
        h = a * v + (i if b is None else b * i)
        if trace is not None:
            h = h - theta * trace
        live = wait <= 0 if refractory else None
        s = surrogate.primitive(h - theta) if smooth else Fire.apply(h, theta, live, surrogate)
        r = s.detach() if detach_reset else s
        if reset == "hard":
            v = (1 - r) * h + r * v_reset if smooth else HardReset.apply(h, r, v_reset)
        elif reset == "soft":
            v = h - theta * r
        else:
            v = h
        if trace is not None:
            trace = rho * trace + r
        if refractory:
            wait = torch.where(s.detach() > 0, float(refractory), (wait - 1).clamp(min=0))
        spikes.append(s)
        if record == "h" or regulariser:
            potentials.append(h)
    s_seq = _stack(spikes, x).to(x.dtype)
    h_seq = _stack(potentials, x) if record == "h" or regulariser else None
    mean = None if regulariser is None else mean_penalty(h_seq, theta, *regulariser)
    synapse_rows = None if filtered is None else filtered.state()
    # Parts are the caller's to change: no tensor that the graph keeps, nor the start.
    v, wait, trace = (None if part is None else part.clone() for part in (v, wait, trace))
    after = State(v, wait if refractory else None, synapse_rows, trace)
    return s_seq, after, h_seq if record == "h" else None, mean


def mean_penalty(h: Tensor, v_threshold: float | Tensor, tolerance: float, shift: float) -> Tensor:
    """The mean penalty on potentials `[T, N, *]` over steps and neurons, 0 of none, in h's dtype.

    Args:
        h: potentials before firing.
        v_threshold: see `snnkernels.lif`.
        tolerance: of the regulariser, see `snnkernels.lif`.
        shift: of the regulariser.
    """
    theta = _coefficient(v_threshold, h, h.dtype)
    each = Penalty.apply(h, theta, tolerance, shift)
    return (each.sum(dtype=torch.float64) / max(h.numel(), 1)).to(h.dtype)


def iir(x: Tensor, alpha: Tensor, beta: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The filter of `snnkernels.iir`, arguments already checked, as a loop over time."""
    filtered = Filter(x, alpha, beta, state)
    steps = [filtered.step(x_t) for x_t in x.to(filtered.zero.dtype).unbind(0)]
    return _stack(steps, x).to(x.dtype), filtered.state()


def _stack(steps: list[Tensor], like: Tensor) -> Tensor:
    """The steps as one tensor with the memory order of ``like``."""
    if steps:
        out = torch.stack(steps)
    else:  # no elements, but a place in the graph
        out = like.to(torch.promote_types(like.dtype, torch.float32), copy=True)
    strides = torch.empty_like(like, device="meta").stride()
    if out.stride() == strides:
        return out
    return torch.empty_like(like, dtype=out.dtype).copy_(out)
