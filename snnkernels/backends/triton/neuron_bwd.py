"""The neuron's time loop, backward.

It walks the steps from the last to the first in pieces of U: it loads them, recomputes h into
registers from the checkpoint before them (one every K steps, a multiple of U) and runs the adjoint
over them. Everything else is as in ``neuron_fwd.py``.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import (
    Arriving,
    StateGradients,
    Step,
    StepInputs,
    adjoint_step,
    narrow,
    neuron_step,
    reset,
    widen,
)
from snnkernels.backends.triton.filter import (
    adjoint_filter_step,
    filter_step,
    load_taps,
    past_before,
    store_before_first,
    tap_terms,
)
from snnkernels.backends.triton.neuron_state import load_neuron, load_state_before
from snnkernels.backends.triton.rows import (
    SIZES,
    add_rows,
    at,
    load_row,
    load_steps,
    place,
    store_row,
    store_rows,
    zero_rows,
)


class Wanted(NamedTuple):
    """Pointers to the gradients to fill; None: it is not wanted.

    Those of coefficients, ``taps`` being all of the synapse's, are sums over time, `[M]` each.
    """

    x: object
    v: object
    trace: object
    synapse: object
    decay: object
    v_threshold: object
    gain: object
    trace_decay: object
    taps: object


class Replayed(NamedTuple):
    """The steps of a piece, once more: a row for each, the oldest first.

    What a `Step` has is in tuples of their own: a tuple in a tuple loses its names in Triton 3.6.

    Attributes:
        v: before the first of them.
        h, fired, live: of each `Step`.
        traces: before each.
        inputs: x, and Q before the first step.
        currents: what the synapse made of it, and P before the first step.
    """

    v: object
    h: tuple
    fired: tuple
    live: tuple
    traces: tuple
    inputs: tuple
    currents: tuple


@triton.jit
def state_before(
    x_at,
    x_time,
    start,
    checkpoints,
    t,
    steps,
    neuron,
    taps,
    where,
    POLICY: tl.constexpr,
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
):
    """The states of neuron and synapse before step t: from the checkpoint before it, on to t."""
    U: tl.constexpr = TILE.ahead
    K: tl.constexpr = TILE.every
    c = t // K
    kept = checkpoints + (c - 1) * ((POLICY.rows + ORDER.P) * where.neurons)
    state = load_state_before(start, kept, where, c, POLICY)
    kept += POLICY.rows * where.neurons
    past = past_before(start.synapse, kept, x_at, x_time, c * K, c, where, ORDER)
    for part in tl.static_range(K // U - 1):
        if t - c * K > part * U:
            rows = load_steps(x_at, c * K + part * U, steps, x_time, where.valid, U, True)
            for k in tl.static_range(U):
                i, past = filter_step(widen(rows[k]), past, taps, ORDER)
                _, state = neuron_step(neuron, state, i, POLICY)
    return state, past


@triton.jit
def replay(
    x_rows,
    state,
    past,
    neuron,
    taps,
    POLICY: tl.constexpr,
    ORDER: tl.constexpr,
    U: tl.constexpr,
):
    """Run the steps of a piece from the states before it."""
    v = state.v
    h, fired, live, traces = (), (), (), ()
    inputs, currents = past.inputs[::-1], past.outputs[::-1]
    for k in tl.static_range(U):
        traces = traces + (state.trace,)
        x_t = widen(x_rows[k])
        i, past = filter_step(x_t, past, taps, ORDER)
        inputs, currents = inputs + (x_t,), currents + (i,)
        step, state = neuron_step(neuron, state, i, POLICY)
        h, fired, live = h + (step.h,), fired + (step.fired,), live + (step.live,)
    return Replayed(v, h, fired, live, traces, inputs, currents)


@triton.jit
def step_of(replayed, k: tl.constexpr):
    """The `Step` number k."""
    return Step(replayed.h[k], replayed.fired[k], replayed.live[k])


@triton.jit
def adjoint_piece(
    t,
    steps,
    ds_rows,
    dh_rows,
    dpenalty,
    replayed,
    after,
    later,
    dx_at,
    out_time,
    arriving,
    neuron,
    taps,
    where,
    POLICY: tl.constexpr,
    ORDER: tl.constexpr,
    U: tl.constexpr,
    TERMS: tl.constexpr,
    FULL: tl.constexpr,
):
    """Run the adjoint over the steps of a piece, from the last to the first, and store dx.

    Returns:
        ``after`` (`StateGradients`) and ``later`` for the piece before.
        Sums over the piece of the coefficients' gradients: 4, then TERMS of the synapse.
    """
    sums = zero_rows(where, 4 + TERMS, tl.float32)
    dx_to = dx_at
    if dx_at is not None:
        dx_to = dx_at + (t + U - 1) * out_time
    for k in tl.static_range(U - 1, -1, -1):
        if FULL or t + k < steps:
            ds_t, dh_t = None, None
            if arriving.s is not None:
                ds_t = widen(ds_rows[k])
            if arriving.h is not None:
                dh_t = dh_rows[k]
            carried, trace_carried = True, True
            if not FULL and arriving.v is None:
                carried = t + k + 1 < steps
            if not FULL and arriving.trace is None:
                trace_carried = t + k + 1 < steps
            v_before = replayed.v
            if k > 0:
                v_before = reset(neuron, step_of(replayed, k - 1), POLICY)
            gradients, after = adjoint_step(
                neuron,
                step_of(replayed, k),
                StepInputs(v_before, replayed.traces[k], replayed.currents[ORDER.P + k]),
                Arriving(ds_t, dh_t, dpenalty, carried, trace_carried),
                after,
                POLICY,
            )
            dx_t, g, later = adjoint_filter_step(
                gradients.current,
                later,
                taps,
                arriving.synapse,
                steps - 1 - (t + k),
                where,
                ORDER,
                U - k if FULL else 0,  # steps that follow for certain
            )
            terms = gradients[1:]
            if TERMS > 0:
                terms = terms + tap_terms(
                    g, replayed.currents, ORDER.P + k - 1, replayed.inputs, ORDER.Q + k, ORDER
                )
            sums = add_rows(sums, terms, 4 + TERMS)
            if dx_at is not None:
                tl.store(dx_to, narrow(dx_t, dx_to.dtype.element_ty), mask=where.valid)
        if dx_at is not None:
            dx_to -= out_time
    return after, later, sums


@triton.jit(do_not_specialize=SIZES)
def neuron_bwd_kernel(
    x,
    start,
    neuron,
    taps,
    checkpoints,
    arriving,
    wanted,
    steps: tl.int32,
    rows: tl.int64,
    inner_size: tl.int64,
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
    POLICY: tl.constexpr,
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
):
    """Fill the gradients that are `Wanted`.

    arriving are those of ``snnkernels/core``, of pointers; the other arguments are those of
    `neuron_fwd_kernel`. TILE has the inner strides of x, ds and dh.
    """
    U: tl.constexpr = TILE.ahead
    tl.static_assert(TILE.every % U == 0, "a checkpoint lies before each piece")
    where = place(rows, inner_size, TILE)
    neuron = load_neuron(neuron, where, channels, channel_inner, POLICY)
    taps = load_taps(taps, where, channels, channel_inner, ORDER)
    x_time, ds_time = x_time * TILE.align, ds_time * TILE.align
    dh_time, out_time = dh_time * TILE.align, out_time * TILE.align
    x_at = at(x, x_outer, where, TILE.inner[0], TILE)
    dx_at, dpenalty = None, None
    if arriving.s is not None:
        ds_at = at(arriving.s, ds_outer, where, TILE.inner[1], TILE)
    if arriving.h is not None:
        dh_at = at(arriving.h, dh_outer, where, TILE.inner[2], TILE)
    if wanted.x is not None:
        dx_at = at(wanted.x, out_outer, where, 1, TILE)
    if arriving.penalty is not None:
        dpenalty = tl.load(arriving.penalty)
    after = StateGradients(
        load_row(arriving.v, where, where.valid), load_row(arriving.trace, where, where.valid)
    )
    later = ()  # gradients on the outputs of the synapse at the steps after this one
    if ORDER.kind is not None:
        later = zero_rows(where, ORDER.P if ORDER.P > ORDER.Q else ORDER.Q, tl.float32)
    # Sums over time of the coefficients' gradients: float32 within a piece, float64 over them.
    TERMS: tl.constexpr = ORDER.P + ORDER.Q + 1 if wanted.taps is not None else 0
    totals = zero_rows(where, 4 + TERMS, tl.float64)
    pieces = (steps + U - 1) // U
    for phase in tl.static_range(2):  # the last piece, which may be short, then all before it
        if phase == 1:
            begin, end = pieces * 0 + 1, pieces
        else:
            begin, end = pieces * 0, pieces * 0 + 1
        for back in range(begin, end):
            t = (pieces - 1 - back) * U
            x_rows = load_steps(x_at, t, steps, x_time, where.valid, U, phase == 1)
            ds_rows, dh_rows = (), ()
            if arriving.s is not None:
                ds_rows = load_steps(ds_at, t, steps, ds_time, where.valid, U, phase == 1)
            if arriving.h is not None:
                dh_rows = load_steps(dh_at, t, steps, dh_time, where.valid, U, phase == 1)
            state, past = state_before(
                x_at, x_time, start, checkpoints, t, steps, neuron, taps, where, POLICY, ORDER, TILE
            )
            replayed = replay(x_rows, state, past, neuron, taps, POLICY, ORDER, U)
            after, later, sums = adjoint_piece(
                t,
                steps,
                ds_rows,
                dh_rows,
                dpenalty,
                replayed,
                after,
                later,
                dx_at,
                out_time,
                arriving,
                neuron,
                taps,
                where,
                POLICY,
                ORDER,
                U,
                TERMS,
                phase == 1,
            )
            totals = add_rows(totals, sums, 4 + TERMS)
    if wanted.v is not None:
        store_row(wanted.v, after.v, where, where.valid)
    if wanted.trace is not None:
        store_row(wanted.trace, after.trace, where, where.valid)
    if wanted.synapse is not None:
        store_before_first(wanted.synapse, taps, later, arriving.synapse, steps, where, ORDER)
    if wanted.decay is not None:
        store_row(wanted.decay, totals[0], where, where.valid)
    if wanted.v_threshold is not None:
        store_row(wanted.v_threshold, totals[1], where, where.valid)
    if wanted.gain is not None:
        store_row(wanted.gain, totals[2], where, where.valid)
    if wanted.trace_decay is not None:
        store_row(wanted.trace_decay, totals[3], where, where.valid)
    if wanted.taps is not None:
        store_rows(wanted.taps, totals[4:], where, where.valid, TERMS)
