"""The filter's time loop, forward and backward; in all that is not said here as the neuron's."""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import narrow, widen
from snnkernels.backends.triton.filter import (
    adjoint_filter_step,
    filter_step,
    load_past,
    load_taps,
    past_before,
    store_before_first,
    store_past,
    tap_terms,
)
from snnkernels.backends.triton.rows import (
    SIZES,
    add_rows,
    at,
    load_steps,
    place,
    store_rows,
    where_also,
    zero_rows,
)


@triton.jit(do_not_specialize=SIZES)
def iir_fwd_kernel(
    x,
    start,
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
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
):
    """Fill f (``out.s``), the state after the last step and the checkpoints."""
    U: tl.constexpr = TILE.ahead
    K: tl.constexpr = TILE.every
    where = place(rows, inner_size, TILE)
    taps = load_taps(taps, where, channels, channel_inner, ORDER)
    past = load_past(start, where, ORDER)
    x_at = at(x, x_outer, where, TILE.inner[0], TILE)
    f_at = at(out.s, out_outer, where, 1, TILE)
    x_time, out_time = x_time * TILE.align, out_time * TILE.align
    whole = steps // U * U
    for phase in tl.static_range(2):  # pieces of U steps, then what is left, once
        if phase == 0:
            begin, end = whole * 0, whole
        else:
            begin, end = whole, steps
        for t in range(begin, end, U):
            x_rows = load_steps(x_at, t, steps, x_time, where.valid, U, phase == 0)
            f_to = f_at + t * out_time
            for u in tl.static_range(U):
                if phase == 0 or t + u < steps:
                    if K > 0 and u % K == 0:
                        keep = where_also(where_also(where.valid, t + u > 0), (t + u) % K == 0)
                        to = out.checkpoints + ((t + u) // K - 1) * (ORDER.P * where.neurons)
                        store_rows(to, past.outputs, where, keep, ORDER.P)
                    f_t, past = filter_step(widen(x_rows[u]), past, taps, ORDER)
                    tl.store(f_to, narrow(f_t, out.s.dtype.element_ty), mask=where.valid)
                f_to += out_time
    store_past(out.synapse, past, where, ORDER)


@triton.jit
def replay_filter(
    x_at,
    x_time,
    start,
    checkpoints,
    t,
    steps,
    taps,
    where,
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
    FULL: tl.constexpr,
):
    """The steps of the piece from t on, once more, from the checkpoint before them.

    Returns:
        inputs: x from Q steps before t on, a row for each step, the oldest first.
        outputs: f from P steps before t on.
    """
    U: tl.constexpr = TILE.ahead
    K: tl.constexpr = TILE.every
    c = t // K
    kept = checkpoints + (c - 1) * (ORDER.P * where.neurons)
    past = past_before(start, kept, x_at, x_time, c * K, c, where, ORDER)
    for part in tl.static_range(K // U - 1):  # the steps between the checkpoint and t
        if t - c * K > part * U:
            rows = load_steps(x_at, c * K + part * U, steps, x_time, where.valid, U, True)
            for k in tl.static_range(U):
                _, past = filter_step(widen(rows[k]), past, taps, ORDER)
    inputs, outputs = past.inputs[::-1], past.outputs[::-1]
    x_rows = load_steps(x_at, t, steps, x_time, where.valid, U, FULL)
    for k in tl.static_range(U):
        x_t = widen(x_rows[k])
        f_t, past = filter_step(x_t, past, taps, ORDER)
        inputs, outputs = inputs + (x_t,), outputs + (f_t,)
    return inputs, outputs


@triton.jit(do_not_specialize=SIZES)
def iir_bwd_kernel(
    df,
    x,
    start,
    taps,
    checkpoints,
    dstate,
    dx,
    dstart,
    dtaps,
    steps: tl.int32,
    rows: tl.int64,
    inner_size: tl.int64,
    channels: tl.int64,
    channel_inner: tl.int64,
    df_outer: tl.int64,
    df_time: tl.int64,
    x_outer: tl.int64,
    x_time: tl.int64,
    out_outer: tl.int64,
    out_time: tl.int64,
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
):
    """Fill the gradients that are not None; dtaps are sums over time, [P + Q + 1, M].

    Only they need x, the starting state and the checkpoints: the rest is the adjoint filter.
    """
    U: tl.constexpr = TILE.ahead
    tl.static_assert(dtaps is None or TILE.every % U == 0, "a checkpoint lies before each piece")
    where = place(rows, inner_size, TILE)
    taps = load_taps(taps, where, channels, channel_inner, ORDER)
    df_at = at(df, df_outer, where, TILE.inner[0], TILE)
    df_time, x_time, out_time = df_time * TILE.align, x_time * TILE.align, out_time * TILE.align
    if dtaps is not None:
        x_at = at(x, x_outer, where, TILE.inner[1], TILE)
    if dx is not None:
        dx_at = at(dx, out_outer, where, 1, TILE)
    later = zero_rows(where, ORDER.P if ORDER.P > ORDER.Q else ORDER.Q, tl.float32)
    # Sums over time: float32 within a piece, float64 over them.
    TERMS: tl.constexpr = ORDER.P + ORDER.Q + 1 if dtaps is not None else 0
    totals = zero_rows(where, TERMS, tl.float64)
    pieces = (steps + U - 1) // U
    for phase in tl.static_range(2):  # the last piece, which may be short, then all before it
        if phase == 1:
            begin, end = pieces * 0 + 1, pieces
        else:
            begin, end = pieces * 0, pieces * 0 + 1
        for back in range(begin, end):
            t = (pieces - 1 - back) * U
            df_rows = load_steps(df_at, t, steps, df_time, where.valid, U, phase == 1)
            if dtaps is not None:
                inputs, outputs = replay_filter(
                    x_at,
                    x_time,
                    start,
                    checkpoints,
                    t,
                    steps,
                    taps,
                    where,
                    ORDER,
                    TILE,
                    phase == 1,
                )
            sums = zero_rows(where, TERMS, tl.float32)
            if dx is not None:
                dx_to = dx_at + (t + U - 1) * out_time
            for k in tl.static_range(U - 1, -1, -1):
                if phase == 1 or t + k < steps:
                    dx_t, g, later = adjoint_filter_step(
                        widen(df_rows[k]),
                        later,
                        taps,
                        dstate,
                        steps - 1 - (t + k),
                        where,
                        ORDER,
                        U - k if phase == 1 else 0,  # steps that follow for certain
                    )
                    if dtaps is not None:
                        terms = tap_terms(g, outputs, ORDER.P + k - 1, inputs, ORDER.Q + k, ORDER)
                        sums = add_rows(sums, terms, TERMS)
                    if dx is not None:
                        tl.store(dx_to, narrow(dx_t, dx.dtype.element_ty), mask=where.valid)
                if dx is not None:
                    dx_to -= out_time
            totals = add_rows(totals, sums, TERMS)
    if dstart is not None:
        store_before_first(dstart, taps, later, dstate, steps, where, ORDER)
    if dtaps is not None:
        store_rows(dtaps, totals, where, where.valid, TERMS)
