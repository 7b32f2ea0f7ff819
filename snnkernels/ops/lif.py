"""The public function `lif`: checks, the choice of a backend, the call.

The way of one tensor: `lif` checks, picks a backend and makes one `Call`; the private op of
``_neuron.py`` allocates and hands the call and its buffers to ``backends/<name>``; the backward
pass goes the same way. Backend "torch" is the plain loop of `snnkernels.core.reference` under
PyTorch's autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from snnkernels.backends import checkpoint_every, choose, faster_on_gpu
from snnkernels.core import reference
from snnkernels.core.call import RESETS, Call
from snnkernels.core.state import State
from snnkernels.core.surrogates import Surrogate, Triangle
from snnkernels.ops._checks import (
    as_coefficient,
    check_coefficient,
    check_input,
    check_policy,
    check_regulariser,
    check_state,
    check_synapse,
    lags_first,
)
from snnkernels.ops._neuron import run

DEFAULT_SURROGATE = Triangle()


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

        i[t] = beta[Q] * x[t-Q] + ... + beta[0] * x[t]
               + alpha[P] * i[t-P] + ... + alpha[1] * i[t-1]
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
    refractory, v_reset = check_policy(
        reset=reset,
        refractory=refractory,
        detach_reset=detach_reset,
        v_reset=v_reset,
        surrogate=surrogate,
        record=record,
        has_trace_decay=trace_decay is not None,
    )
    regulariser = check_regulariser(regulariser)
    decay = check_coefficient("decay", decay, x)
    v_threshold = check_coefficient("v_threshold", v_threshold, x)
    gain = check_coefficient("gain", gain, x)
    if trace_decay is not None:
        trace_decay = check_coefficient("trace_decay", trace_decay, x)
    synapse = check_synapse(synapse, x)
    rows = None if synapse is None else synapse[0].shape[-1] + synapse[1].shape[-1] - 1
    state = check_state(state, x, refractory=refractory, reset=reset, filter_rows=rows)
    general = synapse is not None or reset == "trace" or isinstance(gain, Tensor) or gain != 1.0
    needs = "regulariser" if regulariser else "general" if general else "neuron"
    first = faster_on_gpu(x) if backend == "auto" and needs == "neuron" else None
    backend = choose(backend, x.device.type, x.dtype, needs, 0, first, x.device.index)
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

    alpha, beta = (None, None) if synapse is None else lags_first(*synapse)
    p, q = surrogate.constants()
    tolerance, shift = regulariser or (0.0, 0.0)
    call = Call(
        decay=as_coefficient(decay),
        v_threshold=as_coefficient(v_threshold),
        gain=as_coefficient(gain),
        trace_decay=as_coefficient(0.0 if trace_decay is None else trace_decay),
        alpha=alpha,
        beta=beta,
        state=state,
        reset=RESETS.index(reset),
        detach_reset=int(detach_reset),
        surrogate=surrogate.code,
        refractory=refractory,
        checkpoint_every=checkpoint_every(backend),
        record_h=int(record is not None),
        regularise=int(regulariser is not None),
        v_reset=v_reset,
        surrogate_p=p,
        surrogate_q=q,
        tolerance=tolerance,
        shift=shift,
    )
    s, h, penalty, state = run(x, call, backend)
    return (s, state, *(part for part in (h, penalty) if part is not None))
