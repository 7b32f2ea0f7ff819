"""The neuron's time loop, forward.

Neurons lie across a program (BLOCK of them), time runs inside it. U steps are loaded before the
first of them is stored, so that many loads are in flight. T, N and all strides are run-time values,
so that a new size never compiles again. A part of the neuron that is absent (None, or a number that
says so) is not compiled.
"""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import (
    RESET_TRACE,
    check_policy,
    penalty,
    spike,
    step,
    widen,
)
from snnkernels.backends.triton.filter import filter_step
from snnkernels.backends.triton.rows import (
    at,
    coefficient,
    coefficients,
    load_row,
    load_rows,
    load_steps,
    place,
    store_rows,
    where_also,
)


@triton.jit
def neuron_fwd_kernel(
    x,
    v0,
    wait0,
    trace0,
    synapse0,
    decay,
    v_threshold,
    gain,
    trace_decay,
    alpha,
    beta,
    s,
    h,
    v_out,
    wait_out,
    trace_out,
    synapse_out,
    penalty_out,
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
    decay_number: tl.float32,
    threshold_number: tl.float32,
    gain_number: tl.float32,
    trace_number: tl.float32,
    v_reset: tl.float32,
    period: tl.float32,
    tolerance: tl.float32,
    shift: tl.float32,
    CHARGE: tl.constexpr,
    COMPARE: tl.constexpr,
    SPIKES: tl.constexpr,
    WHEN: tl.constexpr,
    RESET: tl.constexpr,
    REFRACTORY: tl.constexpr,
    GAIN: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    DECAY_PER_CHANNEL: tl.constexpr,
    THRESHOLD_PER_CHANNEL: tl.constexpr,
    GAIN_PER_CHANNEL: tl.constexpr,
    TRACE_PER_CHANNEL: tl.constexpr,
    FILTER_PER_CHANNEL: tl.constexpr,
    K: tl.constexpr,
    X_INNER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Fill s, h, the state after the last step and the checkpoints (``snncore.h``)."""
    check_policy(CHARGE, COMPARE, SPIKES, WHEN)
    where = place(rows, inner_size, tiles, ALIGN, WIDE, BLOCK)
    first_m, lane, valid = where[4], where[5], where[6]
    neurons = rows * (inner_size * ALIGN)
    zero = tl.full((BLOCK,), 0.0, tl.float32)
    a = coefficient(
        decay, decay_number, first_m, lane, valid, channels, channel_inner, DECAY_PER_CHANNEL
    )
    theta = coefficient(
        v_threshold,
        threshold_number,
        first_m,
        lane,
        valid,
        channels,
        channel_inner,
        THRESHOLD_PER_CHANNEL,
    )
    b = coefficient(
        gain, gain_number, first_m, lane, valid, channels, channel_inner, GAIN_PER_CHANNEL
    )
    rho = coefficient(
        trace_decay, trace_number, first_m, lane, valid, channels, channel_inner, TRACE_PER_CHANNEL
    )
    v = load_row(v0, first_m, lane, valid, BLOCK)
    wait = load_row(wait0, first_m, lane, valid, BLOCK)
    trace = load_row(trace0, first_m, lane, valid, BLOCK)
    outputs, inputs = (), ()
    if beta is not None:
        of_outputs = coefficients(
            alpha, first_m, lane, valid, channels, channel_inner, P, FILTER_PER_CHANNEL
        )
        of_inputs = coefficients(
            beta, first_m, lane, valid, channels, channel_inner, Q + 1, FILTER_PER_CHANNEL
        )
        outputs = load_rows(synapse0, neurons, first_m, lane, valid, 0, P, BLOCK)
        inputs = load_rows(synapse0, neurons, first_m, lane, valid, P, Q, BLOCK)
    x_at = at(x, x_outer, where, X_INNER, ALIGN)
    s_at = at(s, out_outer, where, 1, ALIGN)
    if h is not None:
        h_at = at(h, out_outer, where, 1, ALIGN)

    # The sum over time of the penalties: float32 within U steps, float64 over them.
    total = zero.to(tl.float64)
    wait_row: tl.constexpr = 1
    trace_row: tl.constexpr = 2 if REFRACTORY else 1
    synapse_row: tl.constexpr = trace_row + 1 if RESET == RESET_TRACE else trace_row
    state_rows: tl.constexpr = synapse_row + P
    whole = steps // U * U
    for phase in tl.static_range(2):  # blocks of U steps, then what is left, once
        if phase == 0:
            begin, end = whole * 0, whole
        else:
            begin, end = whole, steps
        for t in range(begin, end, U):
            x_rows = load_steps(x_at, t, steps, x_time * ALIGN, valid, U, phase == 0)
            s_to = s_at + t * (out_time * ALIGN)
            if h is not None:
                h_to = h_at + t * (out_time * ALIGN)
            chunk = zero
            for u in tl.static_range(U):
                if phase == 0 or t + u < steps:
                    if K > 0 and u % K == 0:
                        keep = where_also(where_also(valid, t + u > 0), (t + u) % K == 0)
                        to = checkpoints + ((t + u) // K - 1) * (state_rows * neurons) + first_m
                        tl.store(to + lane, v, mask=keep)
                        if REFRACTORY:
                            tl.store(to + wait_row * neurons + lane, wait, mask=keep)
                        if RESET == RESET_TRACE:
                            tl.store(to + trace_row * neurons + lane, trace, mask=keep)
                        store_rows(to + synapse_row * neurons, outputs, neurons, 0, lane, keep, P)
                    i = widen(x_rows[u])
                    if beta is not None:
                        i, inputs, outputs = filter_step(
                            i, inputs, outputs, of_outputs, of_inputs, P, Q
                        )
                    h_t, fired, v, wait, trace = step(
                        v,
                        wait,
                        trace,
                        i,
                        a,
                        theta,
                        b,
                        rho,
                        v_reset,
                        period,
                        RESET,
                        REFRACTORY,
                        GAIN,
                    )
                    tl.store(s_to, spike(fired, s.dtype.element_ty), mask=valid)
                    if h is not None:
                        tl.store(h_to, h_t, mask=valid)
                    if penalty_out is not None:
                        chunk += penalty(h_t, theta, tolerance, shift)
                s_to += out_time * ALIGN
                if h is not None:
                    h_to += out_time * ALIGN
            if penalty_out is not None:
                total += chunk.to(tl.float64)
    tl.store(v_out + first_m + lane, v, mask=valid)
    if REFRACTORY:
        tl.store(wait_out + first_m + lane, wait, mask=valid)
    if RESET == RESET_TRACE:
        tl.store(trace_out + first_m + lane, trace, mask=valid)
    if beta is not None:
        store_rows(synapse_out, outputs, neurons, first_m, lane, valid, P)
        store_rows(synapse_out + P * neurons, inputs, neurons, first_m, lane, valid, Q)
    if penalty_out is not None:
        tl.store(penalty_out + first_m + lane, total.to(tl.float32), mask=valid)
