"""The neuron's time loop, forward.

Neurons lie across a program, time runs inside it. Several steps are loaded before the first of them
is stored, so that many loads are in flight. T, N and all strides are run-time values that are never
specialised, so that a new size never compiles again. A part of the neuron that is absent is not
compiled.
"""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import neuron_step, penalty, spike, widen
from snnkernels.backends.triton.filter import filter_step, load_past, load_taps, store_past
from snnkernels.backends.triton.neuron_state import (
    load_neuron,
    load_start,
    store_checkpoint,
    store_end,
)
from snnkernels.backends.triton.rows import (
    SIZES,
    at,
    load_steps,
    place,
    store_row,
    store_rows,
    where_also,
)


@triton.jit(do_not_specialize=SIZES)
def neuron_fwd_kernel(
    x,
    start,
    neuron,
    taps,
    out,
    steps: tl.int32,
    rows: tl.int64,
    inner_size: tl.int64,
    channels: tl.int64,
    channel_inner: tl.int64,
    x_outer: tl.int64,
    x_time: tl.int64,
    out_outer: tl.int64,
    out_time: tl.int64,
    POLICY: tl.constexpr,
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
):
    """Fill the outputs that are not None.

    start, a `State`, and out, the `Outputs`, are those of ``snnkernels/core``, of pointers; neuron
    is a `Neuron` with the `Policy` POLICY, taps are the `Taps` of a synapse with the `Order` ORDER,
    TILE is a `Tile` with the inner stride of x. The sizes and strides are those of ``rows.py``.
    """
    U: tl.constexpr = TILE.ahead
    K: tl.constexpr = TILE.every
    where = place(rows, inner_size, TILE)
    neuron = load_neuron(neuron, where, channels, channel_inner, POLICY)
    taps = load_taps(taps, where, channels, channel_inner, ORDER)
    state, past = load_start(start, where), load_past(start.synapse, where, ORDER)
    x_at = at(x, x_outer, where, TILE.inner[0], TILE)
    s_at = at(out.s, out_outer, where, 1, TILE)
    if out.h is not None:
        h_at = at(out.h, out_outer, where, 1, TILE)
    x_time, out_time = x_time * TILE.align, out_time * TILE.align

    # The sum over time of the penalties: float32 within U steps, float64 over them.
    zero = tl.full(where.lane.shape, 0.0, tl.float32)
    total = zero.to(tl.float64)
    whole = steps // U * U
    for phase in tl.static_range(2):  # pieces of U steps, then what is left, once
        if phase == 0:
            begin, end = whole * 0, whole
        else:
            begin, end = whole, steps
        for t in range(begin, end, U):
            x_rows = load_steps(x_at, t, steps, x_time, where.valid, U, phase == 0)
            s_to = s_at + t * out_time
            if out.h is not None:
                h_to = h_at + t * out_time
            penalties = zero
            for u in tl.static_range(U):
                if phase == 0 or t + u < steps:
                    if K > 0 and u % K == 0:
                        keep = where_also(where_also(where.valid, t + u > 0), (t + u) % K == 0)
                        size = (POLICY.rows + ORDER.P) * where.neurons
                        to = out.checkpoints + ((t + u) // K - 1) * size
                        store_checkpoint(to, state, where, keep, POLICY)
                        to += POLICY.rows * where.neurons
                        store_rows(to, past.outputs, where, keep, ORDER.P)
                    i, past = filter_step(widen(x_rows[u]), past, taps, ORDER)
                    step, state = neuron_step(neuron, state, i, POLICY)
                    tl.store(s_to, spike(step.fired, out.s.dtype.element_ty), mask=where.valid)
                    if out.h is not None:
                        tl.store(h_to, step.h, mask=where.valid)
                    if POLICY.regularise:
                        penalties += penalty(neuron, step.h)
                s_to += out_time
                if out.h is not None:
                    h_to += out_time
            if POLICY.regularise:
                total += penalties.to(tl.float64)
    store_end(out, state, where, POLICY)
    if ORDER.kind is not None:
        store_past(out.synapse, past, where, ORDER)
    if POLICY.regularise:
        store_row(out.penalty, total, where, where.valid)
