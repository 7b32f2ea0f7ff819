"""The neuron's time loop, backward.

It walks the steps from the last to the first in pieces of U: it loads them, recomputes h into
registers from the checkpoint before them (one every K steps, a multiple of U) and runs the adjoint
over them. Everything else is as in ``neuron_fwd.py``.
"""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import (
    RESET_TRACE,
    check_policy,
    fire,
    narrow,
    penalty_grad,
    reset,
    step,
    step_back,
    surrogate_grad,
    trace_back,
    widen,
)
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
    coefficient,
    coefficients,
    load_row,
    load_state,
    load_state_rows,
    load_steps,
    place,
    store_rows,
    to_double,
    zero_rows,
)


@triton.jit
def neuron_bwd_kernel(
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
    checkpoints,
    ds,
    dv_out,
    dtrace_out,
    dsynapse_out,
    dpenalty,
    dh,
    dx,
    dv0,
    dtrace0,
    dsynapse0,
    ddecay,
    dv_threshold,
    dgain,
    dtrace_decay,
    dcoefficients,
    steps: tl.int32,
    rows: tl.int64,
    inner_size: tl.int64,
    tiles: tl.int32,
    channels: tl.int64,
    channel_inner: tl.int64,
    x_outer: tl.int64,
    x_time: tl.int64,
    ds_outer: tl.int64,
    ds_time: tl.int64,
    dh_outer: tl.int64,
    dh_time: tl.int64,
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
    p: tl.float32,
    q: tl.float32,
    CHARGE: tl.constexpr,
    COMPARE: tl.constexpr,
    SPIKES: tl.constexpr,
    WHEN: tl.constexpr,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
    RECIPROCAL: tl.constexpr,
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
    DS_INNER: tl.constexpr,
    DH_INNER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Fill the gradients that are not None; those of coefficients are sums over time, [M]."""
    check_policy(CHARGE, COMPARE, SPIKES, WHEN)
    tl.static_assert(K % U == 0, "a checkpoint lies before each piece")
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
    x_at = at(x, x_outer, where, X_INNER, ALIGN)
    if ds is not None:
        ds_at = at(ds, ds_outer, where, DS_INNER, ALIGN)
    if dh is not None:
        dh_at = at(dh, dh_outer, where, DH_INNER, ALIGN)
    if dx is not None:
        dx_at = at(dx, out_outer, where, 1, ALIGN)
    dv = load_row(dv_out, first_m, lane, valid, BLOCK)
    dtrace = load_row(dtrace_out, first_m, lane, valid, BLOCK)
    LOOK: tl.constexpr = P if P > Q else Q
    later = ()  # gradients on the outputs of the synapse at the steps after this one
    if beta is not None:
        of_outputs = coefficients(
            alpha, first_m, lane, valid, channels, channel_inner, P, FILTER_PER_CHANNEL
        )
        of_inputs = coefficients(
            beta, first_m, lane, valid, channels, channel_inner, Q + 1, FILTER_PER_CHANNEL
        )
        later = zero_rows(LOOK, BLOCK)
    if dpenalty is not None:
        pull = tl.load(dpenalty)
    # Sums over time of the coefficients' gradients: float32 within a piece, float64 over them.
    TERMS: tl.constexpr = P + Q + 1 if dcoefficients is not None else 0
    decay_total = zero.to(tl.float64)
    theta_total = zero.to(tl.float64)
    gain_total = zero.to(tl.float64)
    trace_total = zero.to(tl.float64)
    filter_totals = to_double(zero_rows(TERMS, BLOCK), TERMS)

    trace_row: tl.constexpr = 2 if REFRACTORY else 1
    synapse_row: tl.constexpr = trace_row + 1 if RESET == RESET_TRACE else trace_row
    state_rows: tl.constexpr = synapse_row + P
    pieces = (steps + U - 1) // U
    for phase in tl.static_range(2):  # the last piece, which may be short, then all before it
        if phase == 1:
            begin, end = pieces * 0 + 1, pieces
        else:
            begin, end = pieces * 0, pieces * 0 + 1
        for back in range(begin, end):
            t = (pieces - 1 - back) * U
            c = t // K
            x_rows = load_steps(x_at, t, steps, x_time * ALIGN, valid, U, phase == 1)
            if ds is not None:
                ds_rows = load_steps(ds_at, t, steps, ds_time * ALIGN, valid, U, phase == 1)
            if dh is not None:
                dh_rows = load_steps(dh_at, t, steps, dh_time * ALIGN, valid, U, phase == 1)

            # The state before the chunk of K: where the call started, or a checkpoint.
            kept = checkpoints + (c - 1) * (state_rows * neurons)
            v = load_state(v0, kept, first_m, lane, valid, c, BLOCK)
            wait, trace = zero, zero
            if REFRACTORY:
                wait = load_state(wait0, kept + neurons, first_m, lane, valid, c, BLOCK)
            if RESET == RESET_TRACE:
                trace = load_state(
                    trace0, kept + trace_row * neurons, first_m, lane, valid, c, BLOCK
                )
            inputs, outputs = (), ()
            if beta is not None:
                outputs = load_state_rows(
                    synapse0,
                    kept + synapse_row * neurons,
                    neurons,
                    first_m,
                    lane,
                    valid,
                    c,
                    P,
                    BLOCK,
                )
                inputs = inputs_before(
                    x_at, synapse0, c * K, x_time * ALIGN, neurons, first_m, lane, valid, P, Q
                )
            for part in tl.static_range(K // U - 1):  # the steps between the checkpoint and t
                if t - c * K > part * U:
                    early = load_steps(
                        x_at, c * K + part * U, steps, x_time * ALIGN, valid, U, True
                    )
                    for k in tl.static_range(U):
                        i = widen(early[k])
                        if beta is not None:
                            i, inputs, outputs = filter_step(
                                i, inputs, outputs, of_outputs, of_inputs, P, Q
                            )
                        _, _, v, wait, trace = step(
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

            start = v
            potentials, alive, traces = (), (), ()
            given, currents = reverse(inputs, Q), reverse(outputs, P)  # from the oldest on
            for k in tl.static_range(U):  # h of the piece, once more
                if REFRACTORY:
                    alive = alive + (wait <= 0.0,)
                traces = traces + (trace,)
                i = widen(x_rows[k])
                given = given + (i,)
                if beta is not None:
                    i, inputs, outputs = filter_step(
                        i, inputs, outputs, of_outputs, of_inputs, P, Q
                    )
                currents = currents + (i,)
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
                potentials = potentials + (h_t,)

            decay_sum, theta_sum, gain_sum, trace_sum = zero, zero, zero, zero
            filter_sums = zero_rows(TERMS, BLOCK)
            if dx is not None:
                dx_to = dx_at + (t + U - 1) * (out_time * ALIGN)
            for k in tl.static_range(U - 1, -1, -1):
                if phase == 1 or t + k < steps:
                    h_t = potentials[k]
                    live = zero == zero
                    if REFRACTORY:
                        live = alive[k]
                    v_before = start
                    if k > 0:
                        fired_before = fire(potentials[k - 1], theta)
                        if REFRACTORY:
                            fired_before = fired_before & alive[k - 1]
                        v_before = reset(potentials[k - 1], fired_before, theta, v_reset, RESET)
                    ds_t, dh_t = zero, zero
                    if ds is not None:
                        ds_t = widen(ds_rows[k])
                    if dh is not None:
                        dh_t = dh_rows[k]
                    if dpenalty is not None:
                        pulled = pull * penalty_grad(h_t, theta, tolerance, shift)
                        if dh is not None:
                            dh_t = dh_t + pulled
                        else:
                            dh_t = pulled
                    carried, trace_carried = True, True
                    if phase == 0 and dv_out is None:
                        carried = t + k + 1 < steps
                    if phase == 0 and dtrace_out is None:
                        trace_carried = t + k + 1 < steps
                    if RESET == RESET_TRACE and not DETACH:
                        ds_t = tl.where(trace_carried, ds_t + dtrace, ds_t)
                    di, dv, dtheta_t, ddecay_t = step_back(
                        ds_t,
                        dh_t,
                        dv,
                        carried,
                        h_t,
                        fire(h_t, theta) & live,
                        live,
                        surrogate_grad(h_t - theta, p, q, SURROGATE, RECIPROCAL),
                        v_before,
                        a,
                        theta,
                        v_reset,
                        RESET,
                        DETACH,
                        dh is not None or dpenalty is not None,
                    )
                    if dpenalty is not None:
                        dtheta_t = dtheta_t - pulled
                    if RESET == RESET_TRACE:
                        dtrace, dtheta_r, drho_t = trace_back(
                            di, traces[k], dtrace, trace_carried, theta, rho
                        )
                        dtheta_t = dtheta_t + dtheta_r
                        trace_sum += drho_t
                    decay_sum += ddecay_t
                    theta_sum += dtheta_t
                    if GAIN:
                        gain_sum += di * currents[P + k]
                        di = di * b
                    if beta is not None:
                        left = steps - 1 - (t + k)
                        g = filter_back(
                            di,
                            of_outputs,
                            later,
                            dsynapse_out,
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
                            filter_sums = add_terms(
                                filter_sums, g, currents, P + k - 1, given, Q + k, P, Q
                            )
                        if dx is not None:
                            di = to_input(
                                of_inputs,
                                later,
                                dsynapse_out,
                                left,
                                neurons,
                                first_m,
                                lane,
                                valid,
                                P,
                                Q,
                                U - k if phase == 1 else 0,
                            )
                        later = first(later, LOOK)
                    if dx is not None:
                        tl.store(dx_to, narrow(di, dx.dtype.element_ty), mask=valid)
                if dx is not None:
                    dx_to -= out_time * ALIGN
            decay_total += decay_sum.to(tl.float64)
            theta_total += theta_sum.to(tl.float64)
            gain_total += gain_sum.to(tl.float64)
            trace_total += trace_sum.to(tl.float64)
            filter_totals = add_double(filter_totals, filter_sums, TERMS)
    if dv0 is not None:
        tl.store(dv0 + first_m + lane, dv, mask=valid)
    if dtrace0 is not None:
        tl.store(dtrace0 + first_m + lane, dtrace, mask=valid)
    if dsynapse0 is not None:
        store_before_first(
            dsynapse0,
            of_outputs,
            later,
            dsynapse_out,
            steps,
            neurons,
            first_m,
            lane,
            valid,
            P,
            0,
            1,
        )
        store_before_first(
            dsynapse0, of_inputs, later, dsynapse_out, steps, neurons, first_m, lane, valid, Q, P, 0
        )
    if ddecay is not None:
        tl.store(ddecay + first_m + lane, decay_total.to(tl.float32), mask=valid)
    if dv_threshold is not None:
        tl.store(dv_threshold + first_m + lane, theta_total.to(tl.float32), mask=valid)
    if dgain is not None:
        tl.store(dgain + first_m + lane, gain_total.to(tl.float32), mask=valid)
    if dtrace_decay is not None:
        tl.store(dtrace_decay + first_m + lane, trace_total.to(tl.float32), mask=valid)
    if dcoefficients is not None:
        store_rows(dcoefficients, filter_totals, neurons, first_m, lane, valid, TERMS)
