"""The filter's time loop, forward and backward; in all that is not said here as the neuron's."""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import narrow, widen
from snnkernels.backends.triton.filter import (
    add_terms,
    filter_back,
    filter_step,
    first,
    inputs_before,
    reverse,
    store_before_first,
    to_input,
)
from snnkernels.backends.triton.rows import (
    add_double,
    at,
    coefficients,
    load_rows,
    load_state_rows,
    load_steps,
    place,
    store_rows,
    to_double,
    where_also,
    zero_rows,
)


@triton.jit
def iir_fwd_kernel(
    x,
    state0,
    alpha,
    beta,
    f,
    state_out,
    checkpoints,
    steps: tl.int32,
    rows: tl.int64,
    inner_size: tl.int64,
    tiles: tl.int32,
    channels: tl.int64,
    channel_inner: tl.int64,
    x_outer: tl.int64,
    x_time: tl.int64,
    out_outer: tl.int64,
    out_time: tl.int64,
    P: tl.constexpr,
    Q: tl.constexpr,
    FILTER_PER_CHANNEL: tl.constexpr,
    K: tl.constexpr,
    X_INNER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Fill f, the state after the last step and the checkpoints (``snncore.h: IirForward``)."""
    where = place(rows, inner_size, tiles, ALIGN, WIDE, BLOCK)
    first_m, lane, valid = where[4], where[5], where[6]
    neurons = rows * (inner_size * ALIGN)
    of_outputs = coefficients(
        alpha, first_m, lane, valid, channels, channel_inner, P, FILTER_PER_CHANNEL
    )
    of_inputs = coefficients(
        beta, first_m, lane, valid, channels, channel_inner, Q + 1, FILTER_PER_CHANNEL
    )
    outputs = load_rows(state0, neurons, first_m, lane, valid, 0, P, BLOCK)
    inputs = load_rows(state0, neurons, first_m, lane, valid, P, Q, BLOCK)
    x_at = at(x, x_outer, where, X_INNER, ALIGN)
    f_at = at(f, out_outer, where, 1, ALIGN)
    whole = steps // U * U
    for phase in tl.static_range(2):  # blocks of U steps, then what is left, once
        if phase == 0:
            begin, end = whole * 0, whole
        else:
            begin, end = whole, steps
        for t in range(begin, end, U):
            x_rows = load_steps(x_at, t, steps, x_time * ALIGN, valid, U, phase == 0)
            f_to = f_at + t * (out_time * ALIGN)
            for u in tl.static_range(U):
                if phase == 0 or t + u < steps:
                    if K > 0 and u % K == 0:
                        keep = where_also(where_also(valid, t + u > 0), (t + u) % K == 0)
                        to = checkpoints + ((t + u) // K - 1) * (P * neurons) + first_m
                        store_rows(to, outputs, neurons, 0, lane, keep, P)
                    f_t, inputs, outputs = filter_step(
                        widen(x_rows[u]), inputs, outputs, of_outputs, of_inputs, P, Q
                    )
                    tl.store(f_to, narrow(f_t, f.dtype.element_ty), mask=valid)
                f_to += out_time * ALIGN
    store_rows(state_out, outputs, neurons, first_m, lane, valid, P)
    store_rows(state_out + P * neurons, inputs, neurons, first_m, lane, valid, Q)


@triton.jit
def iir_bwd_kernel(
    df,
    dstate,
    alpha,
    beta,
    x,
    state0,
    checkpoints,
    dx,
    dstate0,
    dcoefficients,
    steps: tl.int32,
    rows: tl.int64,
    inner_size: tl.int64,
    tiles: tl.int32,
    channels: tl.int64,
    channel_inner: tl.int64,
    df_outer: tl.int64,
    df_time: tl.int64,
    x_outer: tl.int64,
    x_time: tl.int64,
    out_outer: tl.int64,
    out_time: tl.int64,
    P: tl.constexpr,
    Q: tl.constexpr,
    FILTER_PER_CHANNEL: tl.constexpr,
    K: tl.constexpr,
    DF_INNER: tl.constexpr,
    X_INNER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Fill the gradients that are not None; dcoefficients are sums over time, [P + Q + 1, M].

    Only they need x, the starting state and the checkpoints: the rest is the adjoint filter.
    """
    tl.static_assert(dcoefficients is None or K % U == 0, "a checkpoint lies before each piece")
    where = place(rows, inner_size, tiles, ALIGN, WIDE, BLOCK)
    first_m, lane, valid = where[4], where[5], where[6]
    neurons = rows * (inner_size * ALIGN)
    of_outputs = coefficients(
        alpha, first_m, lane, valid, channels, channel_inner, P, FILTER_PER_CHANNEL
    )
    of_inputs = coefficients(
        beta, first_m, lane, valid, channels, channel_inner, Q + 1, FILTER_PER_CHANNEL
    )
    df_at = at(df, df_outer, where, DF_INNER, ALIGN)
    if dcoefficients is not None:
        x_at = at(x, x_outer, where, X_INNER, ALIGN)
    if dx is not None:
        dx_at = at(dx, out_outer, where, 1, ALIGN)
    LOOK: tl.constexpr = P if P > Q else Q
    later = zero_rows(LOOK, BLOCK)
    # Sums over time: float32 within a piece, float64 over them.
    TERMS: tl.constexpr = P + Q + 1 if dcoefficients is not None else 0
    totals = to_double(zero_rows(TERMS, BLOCK), TERMS)
    pieces = (steps + U - 1) // U
    for phase in tl.static_range(2):  # the last piece, which may be short, then all before it
        if phase == 1:
            begin, end = pieces * 0 + 1, pieces
        else:
            begin, end = pieces * 0, pieces * 0 + 1
        for back in range(begin, end):
            t = (pieces - 1 - back) * U
            df_rows = load_steps(df_at, t, steps, df_time * ALIGN, valid, U, phase == 1)
            given, filtered = (), ()
            if dcoefficients is not None:
                x_rows = load_steps(x_at, t, steps, x_time * ALIGN, valid, U, phase == 1)
                c = t // K
                kept = checkpoints + (c - 1) * (P * neurons)
                outputs = load_state_rows(state0, kept, neurons, first_m, lane, valid, c, P, BLOCK)
                inputs = inputs_before(
                    x_at, state0, c * K, x_time * ALIGN, neurons, first_m, lane, valid, P, Q
                )
                for part in tl.static_range(K // U - 1):  # the steps between the checkpoint and t
                    if t - c * K > part * U:
                        early = load_steps(
                            x_at, c * K + part * U, steps, x_time * ALIGN, valid, U, True
                        )
                        for k in tl.static_range(U):
                            _, inputs, outputs = filter_step(
                                widen(early[k]), inputs, outputs, of_outputs, of_inputs, P, Q
                            )
                given, filtered = reverse(inputs, Q), reverse(outputs, P)  # from the oldest on
                for k in tl.static_range(U):  # f of the piece, once more
                    given = given + (widen(x_rows[k]),)
                    f_t, inputs, outputs = filter_step(
                        widen(x_rows[k]), inputs, outputs, of_outputs, of_inputs, P, Q
                    )
                    filtered = filtered + (f_t,)

            sums = zero_rows(TERMS, BLOCK)
            if dx is not None:
                dx_to = dx_at + (t + U - 1) * (out_time * ALIGN)
            for k in tl.static_range(U - 1, -1, -1):
                if phase == 1 or t + k < steps:
                    left = steps - 1 - (t + k)
                    g = filter_back(
                        widen(df_rows[k]),
                        of_outputs,
                        later,
                        dstate,
                        left,
                        neurons,
                        first_m,
                        lane,
                        valid,
                        P,
                        U - k if phase == 1 else 0,  # steps that follow for certain
                    )
                    later = (g,) + later
                    if dcoefficients is not None:
                        sums = add_terms(sums, g, filtered, P + k - 1, given, Q + k, P, Q)
                    if dx is not None:
                        dx_t = to_input(
                            of_inputs,
                            later,
                            dstate,
                            left,
                            neurons,
                            first_m,
                            lane,
                            valid,
                            P,
                            Q,
                            U - k if phase == 1 else 0,
                        )
                        tl.store(dx_to, narrow(dx_t, dx.dtype.element_ty), mask=valid)
                    later = first(later, LOOK)
                if dx is not None:
                    dx_to -= out_time * ALIGN
            totals = add_double(totals, sums, TERMS)
    if dstate0 is not None:
        store_before_first(
            dstate0, of_outputs, later, dstate, steps, neurons, first_m, lane, valid, P, 0, 1
        )
        store_before_first(
            dstate0, of_inputs, later, dstate, steps, neurons, first_m, lane, valid, Q, P, 0
        )
    if dcoefficients is not None:
        store_rows(dcoefficients, totals, neurons, first_m, lane, valid, TERMS)
