"""The two kernels: the time loop of the neuron, forward and backward.

Neurons lie across a program (BLOCK of them), time runs inside it. U steps are loaded before the
first of them is stored, so that many loads are in flight. T, N and all strides are run-time values,
so that a new size never compiles again. The backward kernel walks the checkpoints from the last to
the first: it loads K steps, recomputes h into registers and runs the adjoint over them.

Element (o, t, i) of a sequence lies at o * outer + t * time + i * inner elements. Sizes and strides
come divided by ALIGN, which tells the compiler that they are multiples of it: that is what lets it
use 16-byte accesses. WIDE: the neurons of a program lie in one row o, else it takes BLOCK neurons
m = o * I + i as they come.
"""

import triton
import triton.language as tl

from snnkernels.backends.triton.neuron import (
    check_policy,
    fire,
    narrow,
    reset,
    spike,
    step,
    step_back,
    surrogate_grad,
    widen,
)


@triton.jit
def place(rows, inner_size, tiles, ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the neurons of this program lie: o, i and m, each as a start and a lane's distance.

    Returns:
        first_o, lane_o, first_i, lane_i: row and place in it.
        first_m, lane: number of the neuron, m = first_m + lane.
        valid: lanes that stand for a neuron.
    """
    size = inner_size * ALIGN
    lane = tl.arange(0, BLOCK)
    if WIDE:
        row = tl.program_id(0) // tiles
        first_o = row.to(tl.int64)
        first_i = (tl.program_id(0) - row * tiles).to(tl.int64) * BLOCK
        return first_o, 0, first_i, lane, first_o * size + first_i, lane, lane < size - first_i
    else:
        first_m = tl.program_id(0).to(tl.int64) * BLOCK
        first_o = first_m // size
        width = size.to(tl.int32)  # a row is narrower than a block
        run = (first_m - first_o * size).to(tl.int32) + lane
        lane_o = run // width
        lane_i = run - lane_o * width
        return first_o, lane_o.to(tl.int64), 0, lane_i, first_m, lane, lane < rows * size - first_m


@triton.jit
def at(base, outer, where, INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Addresses of the program's neurons in a sequence, at step 0."""
    first = where[0] * (outer * ALIGN) + where[2] * INNER
    return base + first + (where[1] * (outer * ALIGN) + where[3] * INNER)


@triton.jit
def coefficient(
    pointer, number, first_m, lane, valid, channels, channel_inner, PER_CHANNEL: tl.constexpr
):
    """A number, or a tensor with one value, or with one for each channel."""
    if pointer is None:
        return number
    elif PER_CHANNEL:
        span = channels * channel_inner
        run = (first_m % span).to(tl.int32) + lane
        channel = (run // channel_inner.to(tl.int32)) % channels.to(tl.int32)
        return tl.load(pointer + channel, mask=valid, other=0.0)
    else:
        return tl.load(pointer)


@triton.jit
def where_also(mask, condition):
    """A mask, where one condition for all holds; `&` of the two breaks Triton 3.9's interpreter."""
    return tl.where(condition, mask, False)


@triton.jit
def load_row(pointer, first_m, lane, mask, BLOCK: tl.constexpr):
    """A row of the state, zero where it is absent."""
    if pointer is None:
        return tl.full((BLOCK,), 0.0, tl.float32)
    else:
        return tl.load(pointer + first_m + lane, mask=mask, other=0.0)


@triton.jit
def load_steps(pointer, t, steps, time, valid, COUNT: tl.constexpr, FULL: tl.constexpr):
    """COUNT steps from t on, as they lie in memory; zero from step ``steps`` on, unless FULL."""
    rows = ()
    pointer += t * time
    for k in tl.static_range(COUNT):
        if FULL:
            row = tl.load(pointer, mask=valid, other=0.0)
        else:
            row = tl.load(pointer, mask=where_also(valid, t + k < steps), other=0.0)
        rows = rows + (row,)
        pointer += time
    return rows


@triton.jit
def neuron_fwd_kernel(
    x,
    v0,
    wait0,
    decay,
    v_threshold,
    s,
    h,
    v_out,
    wait_out,
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
    v_reset: tl.float32,
    period: tl.float32,
    CHARGE: tl.constexpr,
    COMPARE: tl.constexpr,
    SPIKES: tl.constexpr,
    WHEN: tl.constexpr,
    RESET: tl.constexpr,
    REFRACTORY: tl.constexpr,
    DECAY_PER_CHANNEL: tl.constexpr,
    THRESHOLD_PER_CHANNEL: tl.constexpr,
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
    v = load_row(v0, first_m, lane, valid, BLOCK)
    wait = load_row(wait0, first_m, lane, valid, BLOCK)
    x_at = at(x, x_outer, where, X_INNER, ALIGN)
    s_at = at(s, out_outer, where, 1, ALIGN)
    if h is not None:
        h_at = at(h, out_outer, where, 1, ALIGN)

    state_rows = 2 if REFRACTORY else 1
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
            for u in tl.static_range(U):
                if phase == 0 or t + u < steps:
                    if K > 0 and u % K == 0:
                        keep = where_also(where_also(valid, t + u > 0), (t + u) % K == 0)
                        to = checkpoints + ((t + u) // K - 1) * (state_rows * neurons) + first_m
                        tl.store(to + lane, v, mask=keep)
                        if REFRACTORY:
                            tl.store(to + neurons + lane, wait, mask=keep)
                    h_t, fired, v, wait = step(
                        v, wait, widen(x_rows[u]), a, theta, v_reset, period, RESET, REFRACTORY
                    )
                    tl.store(s_to, spike(fired, s.dtype.element_ty), mask=valid)
                    if h is not None:
                        tl.store(h_to, h_t, mask=valid)
                s_to += out_time * ALIGN
                if h is not None:
                    h_to += out_time * ALIGN
    tl.store(v_out + first_m + lane, v, mask=valid)
    if REFRACTORY:
        tl.store(wait_out + first_m + lane, wait, mask=valid)


@triton.jit
def neuron_bwd_kernel(
    x,
    v0,
    wait0,
    decay,
    v_threshold,
    checkpoints,
    ds,
    dv_out,
    dh,
    dx,
    dv0,
    ddecay,
    dv_threshold,
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
    v_reset: tl.float32,
    period: tl.float32,
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
    DECAY_PER_CHANNEL: tl.constexpr,
    THRESHOLD_PER_CHANNEL: tl.constexpr,
    K: tl.constexpr,
    X_INNER: tl.constexpr,
    DS_INNER: tl.constexpr,
    DH_INNER: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fill the gradients that are not None; ddecay and dv_threshold are sums over time, [M]."""
    check_policy(CHARGE, COMPARE, SPIKES, WHEN)
    where = place(rows, inner_size, tiles, ALIGN, WIDE, BLOCK)
    first_m, lane, valid = where[4], where[5], where[6]
    neurons = rows * (inner_size * ALIGN)
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
    x_at = at(x, x_outer, where, X_INNER, ALIGN)
    if ds is not None:
        ds_at = at(ds, ds_outer, where, DS_INNER, ALIGN)
    if dh is not None:
        dh_at = at(dh, dh_outer, where, DH_INNER, ALIGN)
    if dx is not None:
        dx_at = at(dx, out_outer, where, 1, ALIGN)
    dv = load_row(dv_out, first_m, lane, valid, BLOCK)
    zero = tl.full((BLOCK,), 0.0, tl.float32)
    # Sums over time of the parameters' gradients: float32 within K steps, float64 over them.
    decay_total = zero.to(tl.float64)
    theta_total = zero.to(tl.float64)

    state_rows = 2 if REFRACTORY else 1
    chunks = (steps + K - 1) // K
    for phase in tl.static_range(2):  # the last chunk, which may be short, then all before it
        if phase == 1:
            begin, end = chunks * 0 + 1, chunks
        else:
            begin, end = chunks * 0, chunks * 0 + 1
        for back in range(begin, end):
            c = chunks - 1 - back
            t = c * K
            x_rows = load_steps(x_at, t, steps, x_time * ALIGN, valid, K, phase == 1)
            if ds is not None:
                ds_rows = load_steps(ds_at, t, steps, ds_time * ALIGN, valid, K, phase == 1)
            if dh is not None:
                dh_rows = load_steps(dh_at, t, steps, dh_time * ALIGN, valid, K, phase == 1)

            # The state before the chunk: where the call started, or a checkpoint.
            v = load_row(v0, first_m, lane, where_also(valid, c == 0), BLOCK)
            kept = checkpoints + (c - 1) * (state_rows * neurons) + first_m
            v = tl.where(c > 0, tl.load(kept + lane, mask=where_also(valid, c > 0), other=0.0), v)
            wait = zero
            if REFRACTORY:
                wait = load_row(wait0, first_m, lane, where_also(valid, c == 0), BLOCK)
                kept_wait = tl.load(kept + neurons + lane, mask=where_also(valid, c > 0), other=0.0)
                wait = tl.where(c > 0, kept_wait, wait)

            start = v
            potentials, alive = (), ()
            for k in tl.static_range(K):  # h of the chunk, once more
                h_t = zero
                if REFRACTORY:
                    alive = alive + (wait <= 0.0,)
                if phase == 1 or t + k < steps:
                    h_t, fired, v, wait = step(
                        v, wait, widen(x_rows[k]), a, theta, v_reset, period, RESET, REFRACTORY
                    )
                potentials = potentials + (h_t,)

            decay_sum, theta_sum = zero, zero
            if dx is not None:
                dx_to = dx_at + (t + K - 1) * (out_time * ALIGN)
            for k in tl.static_range(K - 1, -1, -1):
                if phase == 1 or t + k < steps:
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
                    carried = True
                    if phase == 0 and dv_out is None:
                        carried = t + k + 1 < steps
                    dx_t, dv, dtheta_t, ddecay_t = step_back(
                        ds_t,
                        dh_t,
                        dv,
                        carried,
                        potentials[k],
                        fire(potentials[k], theta) & live,
                        live,
                        surrogate_grad(potentials[k] - theta, p, q, SURROGATE, RECIPROCAL),
                        v_before,
                        a,
                        theta,
                        v_reset,
                        RESET,
                        DETACH,
                        dh is not None,
                    )
                    decay_sum += ddecay_t
                    theta_sum += dtheta_t
                    if dx is not None:
                        dx_t = narrow(dx_t, dx.dtype.element_ty)
                        tl.store(dx_to, dx_t, mask=valid)
                if dx is not None:
                    dx_to -= out_time * ALIGN
            decay_total += decay_sum.to(tl.float64)
            theta_total += theta_sum.to(tl.float64)
    if dv0 is not None:
        tl.store(dv0 + first_m + lane, dv, mask=valid)
    if ddecay is not None:
        tl.store(ddecay + first_m + lane, decay_total.to(tl.float32), mask=valid)
    if dv_threshold is not None:
        tl.store(dv_threshold + first_m + lane, theta_total.to(tl.float32), mask=valid)
