"""The public function `lif`: checks, the choice of a backend, the call.

The way of one tensor: `lif` checks and picks a backend; ``torch.ops.snnkernels.neuron_forward``
(``_neuron.py``) allocates and hands the buffers to ``backends/<name>``; the backward pass goes the
same way. Backend "torch" is the plain loop of `snnkernels.core.reference` under PyTorch's autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from snnkernels.backends import checkpoint_every, choose, faster_on_gpu
from snnkernels.core import reference
from snnkernels.core.call import RESETS, Options
from snnkernels.core.state import State
from snnkernels.core.surrogates import SURROGATES, Surrogate, Triangle
from snnkernels.ops._neuron import Neuron, split_state
from snnkernels.ops._registration import check_input, check_values
from snnkernels.ops.iir import check_filter, check_orders, lags_first

MAX_REFRACTORY = 1 << 24  # float32 counts the steps
MAX_SYNAPSE_ORDER = 2  # of the filter that is fused into the neuron
DEFAULT_SURROGATE = Triangle()
_NO_STATE = State()


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
    synapse: tuple[Tensor | Sequence[float], Tensor | Sequence[float]] | None = None,
    gain: float | Tensor = 1.0,
    trace_decay: float | Tensor | None = None,
    regulariser: tuple[float, float] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Run leaky integrate-and-fire neurons over all time steps in one fused pass.

    For t = 0 ... T-1, each product and sum rounded by itself in float32::

        h[t] = decay * v[t-1] + x[t]
        s[t] = 1 if h[t] >= v_threshold and not refractory, else 0
        v[t] = v_reset where s[t], else h[t]      (reset="hard")
               h[t] - v_threshold * s[t]          (reset="soft")
               h[t]                               (reset="none", "trace")

    The general neuron (Fang et al., eq. 5a-e) has more before the threshold: a filter as synapse,
    a gain, and with ``reset="trace"`` a trace of earlier spikes in place of a reset::

        i[t] = beta[Q] * x[t-Q] + ... + beta[0] * x[t] + alpha[P] * i[t-P] + ... + alpha[1] * i[t-1]
        r[t] = trace_decay * r[t-1] + s[t-1]
        h[t] = decay * v[t-1] + gain * i[t] - v_threshold * r[t]

    Parts that are not asked for cost nothing and change no bit.

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
        reset: "hard", "soft", "none" or "trace". Default: "hard".
        detach_reset: cut the gradient through the spike in the reset and in the trace. Default:
            False.
        refractory: after a spike at t a neuron fires at none of t+1 ... t+refractory; its potential
            goes on, its surrogate gradient is 0 there. Default: 0.
        surrogate: one of `Triangle`, `Rectangle`, `Gaussian`, `ATan`, `Sigmoid`, `FastSigmoid`.
            Default: ``Triangle()``.
        record: "h" returns the potentials before firing as a third value. Default: None.
        synapse: (alpha, beta) of a filter on x, of order P, Q <= 2, as `snnkernels.iir` takes
            them. Default: None.
        gain: factor on the filtered input: a number, 0-d tensor or `[C]`. Default: 1.
        trace_decay: of the trace per step, only and always with ``reset="trace"``: a number, 0-d
            tensor or `[C]`. Default: None.
        regulariser: (tolerance, shift), numbers in the units of h: also return the mean over steps
            and neurons of ``max(0, abs(h - (v_threshold + shift)) - tolerance) ** 2`` (Stöckl, fig.
            5.8), computed as the steps are run; no potential is stored. The thesis weights it with
            5 to 10 in the loss, with (0.012, 0) for WSCNN and (0.01, -0.008) for RSCNN at a
            threshold of 0.01. Default: None.
        backend: "auto", "torch", "cpp", "triton" or "cuda"; a backend that is named works or
            raises. See `available_backends`. Default: "auto".

    Returns:
        ``(s, state)``, followed by h with ``record="h"`` and by the penalty with ``regulariser``:
        spikes in the shape, dtype and strides of x; the state after the last step; h in float32;
        the penalty as a float32 scalar. Gradients flow from all of them to x, to the starting
        state, and to every coefficient that is a tensor.

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
    gain = _check_coefficient("gain", gain, x)
    if (trace_decay is None) == (reset == "trace"):
        raise ValueError(
            f"trace_decay goes with reset='trace' and only with it; got {trace_decay!r}, {reset!r}"
        )
    if trace_decay is not None:
        trace_decay = _check_coefficient("trace_decay", trace_decay, x)
    if synapse is not None:
        synapse = _check_synapse(synapse, x)
    if regulariser is not None:
        regulariser = _check_regulariser(regulariser)
    state = _check_state(state, x, refractory, synapse, reset)
    gain_is_on = isinstance(gain, Tensor) or gain != 1.0
    general = synapse is not None or reset == "trace" or gain_is_on
    needs = "regulariser" if regulariser else "general" if general else "neuron"
    first = faster_on_gpu(x) if backend == "auto" and needs == "neuron" else None
    backend = choose(backend, x.device.type, x.dtype, needs, 0, first)
    if backend == "torch":
        s, state, *more = reference.lif(
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
            synapse=synapse,
            gain=gain,
            trace_decay=trace_decay,
            regulariser=regulariser,
        )
        return (s, state, *(part for part in more if part is not None))

    decay_tensor, decay_number = _split(decay)
    threshold_tensor, threshold_number = _split(v_threshold)
    v, wait = state.v, state.refractory
    more, more_numbers = (), []
    if general or regulariser:
        gain, gain_number = _split(gain)
        trace_decay, trace_number = _split(0.0 if trace_decay is None else trace_decay)
        filters = (None, None) if synapse is None else lags_first(*synapse)
        more = (gain, trace_decay, *filters, state.trace, state.synapse)
        more_numbers = [gain_number, trace_number, *(regulariser or ())]
    graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, v, decay_tensor, threshold_tensor, *more)
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
        int(regulariser is not None),
    ]
    numbers = [decay_number, threshold_number, float(v_reset), p, q, *more_numbers]
    arguments = (x, v, wait, decay_tensor, threshold_tensor, options, numbers, backend, *more)
    if graph:
        s, h, penalty, *parts = Neuron.apply(*arguments)
    else:
        s, rows, h, _ = torch.ops.snnkernels.neuron_forward(*arguments)
        *parts, penalty = split_state(rows, x.shape[0], Options(*options), more)
    out = [s, State(*parts)]
    if record is not None:
        out.append(h)
    if regulariser is not None:
        out.append(penalty)
    return tuple(out)


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


def _check_synapse(synapse, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(synapse, (tuple, list)) or len(synapse) != 2:
        raise TypeError(f"synapse must be None or a pair (alpha, beta); got {synapse!r}")
    alpha, beta = check_filter("synapse ", *synapse, x)
    check_orders(
        "synapse ", alpha, beta, MAX_SYNAPSE_ORDER, ": put snnkernels.iir in front of the neuron"
    )
    return alpha, beta


def _check_regulariser(regulariser) -> tuple[float, float]:
    pair = isinstance(regulariser, (tuple, list)) and len(regulariser) == 2
    if not pair or any(type(n) not in (int, float) for n in regulariser):
        raise TypeError(
            f"regulariser must be None or a pair of numbers (tolerance, shift); got {regulariser!r}"
        )
    tolerance, shift = map(float, regulariser)
    if not (tolerance >= 0 and math.isfinite(shift)):
        raise ValueError(
            "regulariser must be (tolerance, shift) with tolerance >= 0 and a finite shift; "
            f"got {regulariser!r}"
        )
    return tolerance, shift


def _check_state(
    state: State | Tensor | float | None,
    x: Tensor,
    refractory: int,
    synapse: tuple[Tensor, Tensor] | None,
    reset: str,
) -> State:
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
        if name == "synapse":
            continue
        if part.ndim and part.shape != x.shape[1:]:
            raise ValueError(
                f"state.{name} must have the shape of one step of x, {list(x.shape[1:])}; "
                f"got {list(part.shape)}"
            )
    if state.synapse is not None:
        if synapse is None:
            raise ValueError("state.synapse is set, but synapse=None: pass the filter, or drop it")
        rows = synapse[0].shape[-1] + synapse[1].shape[-1] - 1
        if list(state.synapse.shape) != [rows, *x.shape[1:]]:
            raise ValueError(
                f"state.synapse must be [P + Q, N, *] = {[rows, *x.shape[1:]]}; "
                f"got {list(state.synapse.shape)}"
            )
    if state.trace is not None and reset != "trace":
        raise ValueError("state.trace is set, but reset is not 'trace': pass it, or drop the trace")
    if not refractory and state.refractory is not None:
        raise ValueError("state.refractory is set, but refractory=0: pass the period, or drop it")
    return State(*(p if p is None or p.ndim else p.expand(x.shape[1:]) for p in state))


def _split(value: float | Tensor) -> tuple[Tensor | None, float]:
    """A coefficient as the ops take it: a float32 tensor, or a number."""
    if isinstance(value, float):
        return None, value
    return value.to(torch.float32).contiguous(), 0.0
