"""The public function `lif` and what lies under it: checks, registration, dispatch.

The way of one tensor: `lif` checks and picks a backend; ``torch.ops.snnkernels.neuron_forward``
allocates and hands the buffers to ``backends/<name>.py``; the backward pass goes the same way.
Backend "torch" is the plain loop of `snnkernels.reference` under PyTorch's own autograd.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels import reference
from snnkernels._op import (
    check_input,
    check_values,
    in_memory_order,
    lay_out,
    nothing,
    only_once,
    register,
)
from snnkernels.backends import checkpoint_every, choose, load
from snnkernels.layout import empty_rows
from snnkernels.state import State
from snnkernels.surrogates import SURROGATES, Surrogate, Triangle

RESETS = ("hard", "soft", "none")
MAX_REFRACTORY = 1 << 24  # float32 counts the steps
DEFAULT_SURROGATE = Triangle()
_NO_STATE = State()


class Options(NamedTuple):
    """The whole numbers of a neuron call, as the private ops take them (``int[] options``).

    charge, compare, spikes and when are the policies of ``csrc/neuron.h``; each has one value.
    """

    charge: int = 0
    compare: int = 0
    spikes: int = 0
    when: int = 0
    reset: int = 0
    detach_reset: int = 0
    surrogate: int = 0
    refractory: int = 0
    checkpoint_every: int = 0  # 0: nothing is kept for a backward pass
    record_h: int = 0
    wanted: int = 0  # backward: sum of the WANT_* below

    @property
    def state_rows(self) -> int:
        return 2 if self.refractory else 1


class Numbers(NamedTuple):
    """The real numbers of a neuron call (``float[] numbers``)."""

    decay: float = 0.0  # where the coefficient is no tensor
    v_threshold: float = 0.0
    v_reset: float = 0.0
    surrogate_p: float = 0.0
    surrogate_q: float = 0.0


WANT_X, WANT_V, WANT_DECAY, WANT_THRESHOLD = 1, 2, 4, 8


# --- the private ops -----------------------------------------------------------------------------


def _forward_buffers(x, v, refractory, decay, v_threshold, options, numbers, backend):
    options = Options(*options)
    s = torch.empty_like(x)
    kept = (x.shape[0] - 1) // options.checkpoint_every if options.checkpoint_every else 0
    h = torch.empty_like(s, dtype=torch.float32) if options.record_h else nothing(x)
    state = empty_rows(s, options.state_rows)
    checkpoints = empty_rows(s, kept, options.state_rows) if kept > 0 else nothing(x)
    return s, state, h, checkpoints


def _neuron_forward(x, v, refractory, decay, v_threshold, options, numbers, backend):
    outputs = s, state, h, checkpoints = _forward_buffers(
        x, v, refractory, decay, v_threshold, options, numbers, backend
    )
    options, numbers = Options(*options), Numbers(*numbers)
    if s.numel() == 0:
        for row, start in zip(state, (v, refractory), strict=False):
            row.zero_() if start is None else row.copy_(start)
        return outputs
    layout, (x,) = lay_out(s, x)
    load(backend).neuron_forward(
        layout,
        options,
        numbers,
        x,
        in_memory_order(v, state[0]),
        in_memory_order(refractory, state[0]),
        decay,
        v_threshold,
        s=s,
        state_out=state,
        h=h if options.record_h else None,
        checkpoints=checkpoints,
    )
    return outputs


def _backward_buffers(
    x, v, refractory, decay, v_threshold, checkpoints, ds, dv, dh, options, numbers, backend
):
    wanted = Options(*options).wanted
    return (
        torch.empty_like(x) if wanted & WANT_X else x.new_empty(0),
        empty_rows(torch.empty_like(x), 1)[0] if wanted & WANT_V else nothing(x),
        torch.empty_like(decay) if wanted & WANT_DECAY else nothing(x),
        torch.empty_like(v_threshold) if wanted & WANT_THRESHOLD else nothing(x),
    )


def _neuron_backward(
    x, v, refractory, decay, v_threshold, checkpoints, ds, dv, dh, options, numbers, backend
):
    outputs = dx, dv0, ddecay, dv_threshold = _backward_buffers(
        x, v, refractory, decay, v_threshold, checkpoints, ds, dv, dh, options, numbers, backend
    )
    options, numbers = Options(*options), Numbers(*numbers)
    if x.numel() == 0:
        for gradient in outputs:
            gradient.zero_()
        if dv is not None and options.wanted & WANT_V:
            dv0.copy_(dv)
        return outputs
    out = dx if options.wanted & WANT_X else torch.empty_like(x)
    layout, (x, ds, dh) = lay_out(out, x, ds, dh)
    row = empty_rows(out, 1)[0]
    load(backend).neuron_backward(
        layout,
        options,
        numbers,
        x,
        in_memory_order(v, row),
        in_memory_order(refractory, row),
        decay,
        v_threshold,
        checkpoints,
        ds,
        in_memory_order(dv, row),
        dh,
        dx=dx if options.wanted & WANT_X else None,
        dv0=dv0 if options.wanted & WANT_V else None,
        ddecay=ddecay if options.wanted & WANT_DECAY else None,
        dv_threshold=dv_threshold if options.wanted & WANT_THRESHOLD else None,
    )
    return outputs


register(
    "neuron_forward",
    "(Tensor x, Tensor? v, Tensor? refractory, Tensor? decay, Tensor? v_threshold, "
    "int[] options, float[] numbers, str backend) -> (Tensor s, Tensor state, Tensor h, "
    "Tensor checkpoints)",
    _neuron_forward,
    _forward_buffers,
)
register(
    "neuron_backward",
    "(Tensor x, Tensor? v, Tensor? refractory, Tensor? decay, Tensor? v_threshold, "
    "Tensor checkpoints, Tensor? ds, Tensor? dv, Tensor? dh, int[] options, float[] numbers, "
    "str backend) -> (Tensor dx, Tensor dv0, Tensor ddecay, Tensor dv_threshold)",
    _neuron_backward,
    _backward_buffers,
)
_run_backward = only_once(
    torch.ops.snnkernels.neuron_backward, "lif, whose surrogate gradient has no derivative here,"
)


class _Neuron(torch.autograd.Function):
    """One call of the neuron with a backward pass. Arguments as the private forward op's."""

    @staticmethod
    def forward(ctx, x, v, refractory, decay, v_threshold, options, numbers, backend):
        s, state, h, checkpoints = torch.ops.snnkernels.neuron_forward(
            x, v, refractory, decay, v_threshold, options, numbers, backend
        )
        ctx.save_for_backward(x, v, refractory, decay, v_threshold, checkpoints)
        ctx.call = options, numbers, backend
        ctx.set_materialize_grads(False)
        wait = None
        if options[Options._fields.index("refractory")]:
            wait = state[1]
            ctx.mark_non_differentiable(wait)
        return s, state[0], wait, h

    @staticmethod
    def backward(ctx, ds, dv, _, dh):
        if ds is None and dv is None and dh is None:
            return (None,) * 8
        x, v, refractory, decay, v_threshold, checkpoints = ctx.saved_tensors
        options, numbers, backend = ctx.call
        need_x, need_v, _, need_decay, need_threshold = ctx.needs_input_grad[:5]
        wanted = (
            need_x * WANT_X
            + need_v * WANT_V
            + need_decay * WANT_DECAY
            + need_threshold * WANT_THRESHOLD
        )
        options = [*options[:-1], wanted]
        if dh is not None and not options[Options._fields.index("record_h")]:
            dh = None
        dx, dv0, ddecay, dv_threshold = _run_backward(
            x, v, refractory, decay, v_threshold, checkpoints, ds, dv, dh, options, numbers, backend
        )
        return (
            dx if need_x else None,
            dv0 if need_v else None,
            None,
            ddecay if need_decay else None,
            dv_threshold if need_threshold else None,
            None,
            None,
            None,
        )


# --- the public op -------------------------------------------------------------------------------


def lif(
    x: Tensor,
    state: State | Tensor | float | None = None,
    *,
    decay: float | Tensor = 0.5,
    v_threshold: float | Tensor = 1.0,
    v_reset: float = 0.0,
    reset: str = "hard",
    detach_reset: bool = False,
    refractory: int = 0,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    record: str | None = None,
    backend: str = "auto",
) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
    """Run leaky integrate-and-fire neurons over all time steps in one fused pass.

    For t = 0 ... T-1, each product and sum rounded by itself in float32::

        h[t] = decay * v[t-1] + x[t]
        s[t] = 1 if h[t] >= v_threshold and not refractory, else 0
        v[t] = v_reset where s[t], else h[t]      (reset="hard")
               h[t] - v_threshold * s[t]          (reset="soft")
               h[t]                               (reset="none")

    The backward pass is exact back-propagation through time with ds/dh replaced by the surrogate.
    It keeps x and one state every few steps, and recomputes h.

    Args:
        x: input current `[T, N, *]`, float32, bfloat16 or float16 (float64 with backend "torch"),
            in any memory format; `[B, T, *]` data is passed as ``x.transpose(0, 1)``.
        state: where to start: a `State`, a tensor `[N, *]` or number for v, or None for zero. v is
            float32 (float64 for float64 input).
        decay: factor on the potential per step: a number, 0-d tensor, or one value per channel
            (`[C]`, C = ``x.shape[2]``). Default: 0.5.
        v_threshold: a number, 0-d tensor or `[C]`. Default: 1.
        v_reset: potential after a spike, for the hard reset. Default: 0.
        reset: "hard", "soft" or "none". Default: "hard".
        detach_reset: cut the gradient through the spike in the reset. Default: False.
        refractory: after a spike at t a neuron fires at none of t+1 ... t+refractory; its potential
            goes on, its surrogate gradient is 0 there. Default: 0.
        surrogate: one of `Triangle`, `Rectangle`, `Gaussian`, `ATan`, `Sigmoid`, `FastSigmoid`.
            Default: ``Triangle()``.
        record: "h" returns the potentials before firing as a third value. Default: None.
        backend: "auto", "torch", "cpp", "triton" or "cuda"; a backend that is named works or
            raises. See `available_backends`. Default: "auto".

    Returns:
        ``(s, state)`` or, with ``record="h"``, ``(s, state, h)``: spikes in the shape, dtype and
        strides of x; the state after the last step; h in float32. Gradients flow from all of them
        to x, to the starting v, and to decay and v_threshold where these are tensors.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
        RuntimeError: the backend asked for is not available; differentiated twice.

    Example:
        >>> import torch, snnkernels
        >>> x = torch.full((4, 1), 0.75)
        >>> s, state = snnkernels.lif(x, decay=0.5, v_threshold=1.0)
        >>> s.squeeze(1).tolist(), state.v.item()
        ([0.0, 1.0, 0.0, 1.0], 0.0)
    """
    check_input(x)
    if reset not in RESETS:
        raise ValueError(f"reset must be one of {', '.join(RESETS)}; got {reset!r}")
    if type(surrogate) not in SURROGATES:
        names = ", ".join(kind.__name__ for kind in SURROGATES)
        raise TypeError(f"surrogate must be an instance of one of {names}; got {surrogate!r}")
    if record is not None and record != "h":
        raise ValueError(f"record must be None or 'h'; got {record!r}")
    if type(refractory) is not int:
        raise TypeError(f"refractory must be a whole number of steps >= 0; got {refractory!r}")
    if not 0 <= refractory <= MAX_REFRACTORY:
        raise ValueError(f"refractory must be >= 0 and <= {MAX_REFRACTORY}; got {refractory}")
    if type(detach_reset) is not bool:
        raise TypeError(f"detach_reset must be True or False; got {detach_reset!r}")
    if not isinstance(v_reset, (int, float)) or isinstance(v_reset, bool):
        raise TypeError(f"v_reset must be a number; got {v_reset!r}")
    if math.isnan(v_reset):
        raise ValueError("v_reset must not be NaN; got nan")
    decay = _check_coefficient("decay", decay, x)
    v_threshold = _check_coefficient("v_threshold", v_threshold, x)
    state = _check_state(state, x, refractory)
    backend = choose(backend, x.device.type, x.dtype)
    if backend == "torch":
        s, state, h = reference.lif(
            x,
            state,
            decay=decay,
            v_threshold=v_threshold,
            v_reset=v_reset,
            reset=reset,
            detach_reset=detach_reset,
            refractory=refractory,
            surrogate=surrogate,
            record=record,
        )
        return (s, state) if record is None else (s, state, h)

    decay_tensor, decay_number = _split(decay)
    threshold_tensor, threshold_number = _split(v_threshold)
    v, wait = state.v, state.refractory
    graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, v, decay_tensor, threshold_tensor)
    )
    p, q = surrogate.constants()
    options = [
        0,
        0,
        0,
        0,
        RESETS.index(reset),
        int(detach_reset),
        surrogate.code,
        refractory,
        checkpoint_every(backend) if graph else 0,
        int(record is not None),
        0,
    ]
    numbers = [decay_number, threshold_number, float(v_reset), p, q]
    arguments = (x, v, wait, decay_tensor, threshold_tensor, options, numbers, backend)
    if graph:
        s, v, wait, h = _Neuron.apply(*arguments)
    else:
        s, rows, h, _ = torch.ops.snnkernels.neuron_forward(*arguments)
        v, wait = rows[0], rows[1] if refractory else None
    state = State(v, wait)
    return (s, state) if record is None else (s, state, h)


def _check_coefficient(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isnan(value):
            raise ValueError(f"{name} must not be NaN")
        return float(value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a number or a tensor (0-d, or one value per channel); got {value!r}"
        )
    check_values(name, value, x)
    if value.ndim and (value.ndim > 1 or x.ndim < 3 or value.shape[0] != x.shape[2]):
        allowed = f"0-d or [{x.shape[2]}], one per channel" if x.ndim > 2 else "0-d for x [T, M]"
        raise ValueError(f"{name} must be {allowed}; got shape {list(value.shape)}")
    return value


def _check_state(state: State | Tensor | float | None, x: Tensor, refractory: int) -> State:
    if state is None:
        return _NO_STATE
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(state, (int, float)) and not isinstance(state, bool):
        if math.isnan(state):
            raise ValueError("state must not be NaN; got nan")
        return State(torch.full(x.shape[1:], float(state), dtype=dtype, device=x.device))
    if isinstance(state, Tensor):
        state = State(state)
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, a tensor, a number or None; got {state!r}")
    for name, part in zip(State._fields, state, strict=True):
        if part is None:
            continue
        if not isinstance(part, Tensor) or part.dtype != dtype:
            got = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"state.{name} must be a {dtype} tensor for {x.dtype} x; got {got}")
        if part.device != x.device:
            raise ValueError(f"state.{name} is on {part.device}, x is on {x.device}")
        if part.ndim and part.shape != x.shape[1:]:
            raise ValueError(
                f"state.{name} must have the shape of one step of x, {list(x.shape[1:])}; "
                f"got {list(part.shape)}"
            )
    if not refractory and state.refractory is not None:
        raise ValueError("state.refractory is set, but refractory=0: pass the period, or drop it")
    return State(*(p if p is None or p.ndim else p.expand(x.shape[1:]) for p in state))


def _split(value: float | Tensor) -> tuple[Tensor | None, float]:
    """A coefficient as the ops take it: a float32 tensor, or a number."""
    if isinstance(value, float):
        return None, value
    return value.to(torch.float32).contiguous(), 0.0
