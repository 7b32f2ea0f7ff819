"""The filter of ``equations.py`` on rows in registers: its steps, its state, and its adjoint.

Rows are tuples ordered by time from the newest to the oldest: rows[k] lies k steps back. Only what
exists takes part in a sum: a term from behind the last step is `no_term`.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import (  # noqa: A004
    add_products,
    filter,
    no_term,
    widen,
)
from snnkernels.backends.triton.rows import (
    PER_CHANNEL,
    load_coefficient,
    load_rows,
    load_rows_before,
    store_row,
    store_rows,
    where_also,
)


class Order(NamedTuple):
    """Of a filter, known at compile time.

    Attributes:
        P: of the outputs.
        Q: of the inputs.
        kind: of its coefficients, see ``rows.py``; None: there is no filter.
    """

    P: int = 0
    Q: int = 0
    kind: int | None = None


class Taps(NamedTuple):
    """Coefficients of a filter: pointers `[P, c]` and `[Q + 1, c]`, or tuples of rows."""

    alpha: object
    beta: object


class Past(NamedTuple):
    """The state of a filter: its outputs at lags 1 ... P and its inputs at lags 1 ... Q."""

    outputs: tuple
    inputs: tuple


@triton.jit
def load_taps(taps, where, channels, channel_inner, ORDER: tl.constexpr):
    """The `Taps` as rows; empty without a filter."""
    alpha, beta = (), ()
    if ORDER.kind is not None:
        alpha = _taps(taps.alpha, where, channels, channel_inner, ORDER.P, ORDER.kind)
        beta = _taps(taps.beta, where, channels, channel_inner, ORDER.Q + 1, ORDER.kind)
    return Taps(alpha, beta)


@triton.jit
def _taps(pointer, where, channels, channel_inner, COUNT: tl.constexpr, KIND: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (load_coefficient(pointer, where, channels, channel_inner, KIND),)
        pointer += channels if KIND == PER_CHANNEL else 1
    return rows


@triton.jit
def load_past(pointer, where, ORDER: tl.constexpr):
    """The state before the first step, zero where it is absent."""
    outputs = load_rows(pointer, where, where.valid, 0, ORDER.P)
    return Past(outputs, load_rows(pointer, where, where.valid, ORDER.P, ORDER.Q))


@triton.jit
def store_past(pointer, past, where, ORDER: tl.constexpr):
    """Write the state after the last step."""
    store_rows(pointer, past.outputs, where, where.valid, ORDER.P)
    store_rows(pointer + ORDER.P * where.neurons, past.inputs, where, where.valid, ORDER.Q)


@triton.jit
def filter_step(x, past, taps, ORDER: tl.constexpr):
    """f[t] and the state after it. Without a filter f is x."""
    f = x
    if ORDER.kind is not None:
        inputs = (x,) + past.inputs
        f = filter(taps.beta, inputs, taps.alpha, past.outputs, ORDER.P, ORDER.Q)
        past = Past(((f,) + past.outputs)[: ORDER.P], inputs[: ORDER.Q])
    return f, past


@triton.jit
def past_before(start, kept, x_at, x_time, t, c, where, ORDER: tl.constexpr):
    """The state before step t, which begins chunk c.

    Args:
        start: pointer to the state before the first step, or None.
        kept: pointer to the outputs in the checkpoint before t.
        x_at: addresses of x at step 0.
        x_time: its stride over time.
        t: step.
        c: chunk.
        where: `Place`.
        ORDER: of the filter.
    """
    inputs = ()
    for q in tl.static_range(1, ORDER.Q + 1):
        in_call = where_also(where.valid, t >= q)
        row = widen(tl.load(x_at + (t - q) * x_time, mask=in_call, other=0.0))
        if start is not None:
            before = start + (ORDER.P + q - 1 - t) * where.neurons + where.first_m
            mask = where_also(where.valid, t < q)
            row = tl.where(t < q, tl.load(before + where.lane, mask=mask, other=0.0), row)
        inputs = inputs + (row,)
    return Past(load_rows_before(start, kept, where, c, ORDER.P), inputs)


@triton.jit
def arriving(dstate, row, where, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Row ``row`` of COUNT in the gradient on the state after the last step, or `no_term`."""
    there = row < COUNT
    at_row = dstate + (FIRST + tl.where(there, row, 0)) * where.neurons + where.first_m
    kept = tl.load(at_row + where.lane, mask=where_also(where.valid, there), other=0.0)
    return tl.where(there, kept, no_term())


@triton.jit
def adjoint_filter_step(
    df, later, taps, dstate, left, where, ORDER: tl.constexpr, LEFT: tl.constexpr
):
    """One step of the adjoint, which is the filter backward in time. Without a filter dx is df.

    Args:
        df: gradient on f[t] from outside.
        later: tuple of the gradients on f[t+1], f[t+2], ... in all.
        taps: `Taps`, as rows.
        dstate: pointer to the gradient `[P + Q, M]` on the state after the last step, or None.
        left: steps after t.
        where: `Place`.
        ORDER: of the filter.
        LEFT: least value of ``left`` that is known at compile time.

    Returns:
        dx[t] = beta[Q] g[t+Q] + ... + beta[0] g[t].
        g[t] = df[t] + alpha[P] g[t+P] + ... + alpha[1] g[t+1].
        ``later`` for the step before.
    """
    g, dx = df, df
    if ORDER.kind is not None:
        P: tl.constexpr = ORDER.P
        Q: tl.constexpr = ORDER.Q
        dx = no_term()
        if dstate is not None and LEFT < P:
            g = g + arriving(dstate, left, where, 0, P)
        g = add_products(g, taps.alpha, later, P, left, LEFT)
        later = (g,) + later
        if dstate is not None and LEFT < Q:
            dx = dx + arriving(dstate, left, where, P, Q)
        dx = add_products(dx, taps.beta, later, Q + 1, left + 1, LEFT + 1)
        later = later[: P if P > Q else Q]
    return dx, g, later


@triton.jit
def store_before_first(dstart, taps, later, dstate, steps, where, ORDER: tl.constexpr):
    """Write the gradient `[P + Q, M]` on the state before the first step."""
    _store_before_first(dstart, taps.alpha, later, dstate, steps, where, ORDER.P, 0, 1)
    _store_before_first(dstart, taps.beta, later, dstate, steps, where, ORDER.Q, ORDER.P, 0)


@triton.jit
def _store_before_first(
    to,
    weights,
    g,
    dstate,
    steps,
    where,
    COUNT: tl.constexpr,
    FIRST: tl.constexpr,
    SKIP: tl.constexpr,
):
    """COUNT rows from row FIRST on; the weight of lag k is weights[k - SKIP].

    Step -m gets weight m times g[0] + weight m + 1 times g[1] + ... where g reaches, after the part
    of the final state that the call was too short to replace.
    """
    for m in tl.static_range(1, COUNT + 1):
        total = tl.where(where.valid, no_term(), 0.0)
        if dstate is not None:
            total = total + arriving(dstate, steps + (m - 1), where, FIRST, COUNT)
        total = add_products(total, weights[m - SKIP :], g, COUNT - m + 1, steps, 0)
        store_row(to + (FIRST + m - 1) * where.neurons, total, where, where.valid)


@triton.jit
def tap_terms(g, f, last_f: tl.constexpr, x, last_x: tl.constexpr, ORDER: tl.constexpr):
    """A step's terms of the gradients of alpha, then of beta.

    f and x are ordered from the oldest to the newest here; f[last_f] is the output of lag 1,
    x[last_x] the input of lag 0.
    """
    P: tl.constexpr = ORDER.P
    terms = ()
    for k in tl.static_range(P):
        terms = terms + (g * f[last_f - k],)
    for k in tl.static_range(ORDER.Q + 1):
        terms = terms + (g * x[last_x - k],)
    return terms
