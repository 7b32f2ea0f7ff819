"""The filter of ``equations.py`` on rows in registers: its steps, its state, and its adjoint.

Rows are tuples ordered by time from the newest to the oldest: rows[k] lies k steps back. Only what
exists takes part in a sum: a term from behind the last step is `no_term`.
"""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import filter, no_term, widen  # noqa: A004
from snnkernels.backends.triton.rows import where_also


@triton.jit
def first(rows, COUNT: tl.constexpr):
    """The first COUNT of a tuple."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (rows[k],)
    return out


@triton.jit
def reverse(rows, COUNT: tl.constexpr):
    """The first COUNT of a tuple, the last of them first."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (rows[COUNT - 1 - k],)
    return out


@triton.jit
def filter_step(x, inputs, outputs, alpha, beta, P: tl.constexpr, Q: tl.constexpr):
    """f[t], and what the next step looks back on: Q inputs and P outputs."""
    inputs = (x,) + inputs
    f = filter(beta, inputs, alpha, outputs, P, Q)
    return f, first(inputs, Q), first((f,) + outputs, P)


@triton.jit
def inputs_before(
    x_at, state, t, time, neurons, first_m, lane, valid, P: tl.constexpr, Q: tl.constexpr
):
    """x[t-1] ... x[t-Q], float32; those before the first step are in the state."""
    rows = ()
    for q in tl.static_range(1, Q + 1):
        in_call = where_also(valid, t >= q)
        row = widen(tl.load(x_at + (t - q) * time, mask=in_call, other=0.0))
        if state is not None:
            before = state + (P + q - 1 - t) * neurons + first_m
            kept = tl.load(before + lane, mask=where_also(valid, t < q), other=0.0)
            row = tl.where(t < q, kept, row)
        rows = rows + (row,)
    return rows


@triton.jit
def arriving(dstate, row, neurons, first_m, lane, valid, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Row ``row`` of COUNT in the gradient on the state after the last step, or `no_term`."""
    there = row < COUNT
    at_row = dstate + (FIRST + tl.where(there, row, 0)) * neurons + first_m
    kept = tl.load(at_row + lane, mask=where_also(valid, there), other=0.0)
    return tl.where(there, kept, no_term())


@triton.jit
def filter_back(
    incoming,
    alpha,
    later,
    dstate,
    left,
    neurons,
    first_m,
    lane,
    valid,
    P: tl.constexpr,
    LEFT: tl.constexpr,
):
    """g[t], the gradient on f[t] in all: ``incoming`` + alpha[P] g[t+P] + ... + alpha[1] g[t+1].

    Args:
        incoming: gradient on the output at t.
        alpha: tuple of P.
        later: tuple: g[t+1], g[t+2], ...
        dstate: pointer [P + Q, M] or None.
        left: steps after t.
        neurons: M.
        first_m: as `memory.place` says, like the following.
        lane: as there.
        valid: as there.
        P: order.
        LEFT: least value of ``left`` that is known at compile time.
    """
    if dstate is not None and LEFT < P:
        incoming = incoming + arriving(dstate, left, neurons, first_m, lane, valid, 0, P)
    for p in tl.static_range(P, 0, -1):
        term = alpha[p - 1] * later[p - 1]
        if p > LEFT:
            term = tl.where(p <= left, term, no_term())
        incoming = incoming + term
    return incoming


@triton.jit
def to_input(
    beta,
    g,
    dstate,
    left,
    neurons,
    first_m,
    lane,
    valid,
    P: tl.constexpr,
    Q: tl.constexpr,
    LEFT: tl.constexpr,
):
    """dx[t] = beta[Q] g[t+Q] + ... + beta[0] g[t], g being the tuple g[t], g[t+1], ..."""
    total = no_term()
    if dstate is not None and LEFT < Q:
        total = total + arriving(dstate, left, neurons, first_m, lane, valid, P, Q)
    for q in tl.static_range(Q, -1, -1):
        term = beta[q] * g[q]
        if q > LEFT:
            term = tl.where(q <= left, term, no_term())
        total = total + term
    return total


@triton.jit
def store_before_first(
    to,
    c,
    g,
    dstate,
    steps,
    neurons,
    first_m,
    lane,
    valid,
    ORDER: tl.constexpr,
    FIRST: tl.constexpr,
    SKIP: tl.constexpr,
):
    """Gradients on the state before the first step: ORDER rows from row FIRST on.

    Step -m gets c[m] g[0] + c[m+1] g[1] + ... where g reaches, after the part of the final state
    that the call was too short to replace. c(k) is c[k - SKIP].
    """
    for m in tl.static_range(1, ORDER + 1):
        total = tl.where(valid, no_term(), 0.0)
        if dstate is not None:
            last = steps + (m - 1)
            total = total + arriving(dstate, last, neurons, first_m, lane, valid, FIRST, ORDER)
        for k in tl.static_range(ORDER - m, -1, -1):
            total = total + tl.where(k < steps, c[m + k - SKIP] * g[k], no_term())
        tl.store(to + (FIRST + m - 1) * neurons + first_m + lane, total, mask=valid)


@triton.jit
def add_terms(
    sums, g, f, last_f: tl.constexpr, x, last_x: tl.constexpr, P: tl.constexpr, Q: tl.constexpr
):
    """Sums + this step's terms of the gradients of alpha, then of beta.

    f and x are ordered from the oldest to the newest here; f[last_f] is the output of lag 1,
    x[last_x] the input of lag 0.
    """
    out = ()
    for k in tl.static_range(P):
        out = out + (sums[k] + g * f[last_f - k],)
    for k in tl.static_range(Q + 1):
        out = out + (sums[P + k] + g * x[last_x - k],)
    return out
