"""The equations of the neuron and its surrogates for Triton: a mirror of ``csrc/neuron.h``.

Same names, same order of operations, one rounding per operation (every launch passes
``enable_fp_fusion=False``). Enums are compile-time numbers.

Only built-in functions of ``triton.language`` are used, so that what decides between compiler and
interpreter is the variable TRITON_INTERPRET at the import of this module alone.
"""

from typing import NamedTuple

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

RESET_HARD = tl.constexpr(0)  # v_reset where s
RESET_SOFT = tl.constexpr(1)  # h - v_threshold * s
RESET_NONE = tl.constexpr(2)  # h
RESET_TRACE = tl.constexpr(3)  # h, and a trace of the spikes lowers the next potentials
TRIANGLE = tl.constexpr(0)
RECTANGLE = tl.constexpr(1)
GAUSSIAN = tl.constexpr(2)
ATAN = tl.constexpr(3)
SIGMOID = tl.constexpr(4)
FAST_SIGMOID = tl.constexpr(5)


class Policy(NamedTuple):
    """What is known of a neuron at compile time; a part that is absent is not compiled.

    Attributes:
        reset: a RESET.
        refractory: it waits after a spike.
        gain: its current is multiplied by a gain.
        regularise: potentials far from the threshold are penalised.
        rows: of a checkpoint before those of the synapse, see ``neuron_state.py``.
        kinds: of its coefficients, see ``rows.py``.
        detach: the reset does not reach back through the spikes.
        surrogate: which one.
        reciprocal: see `quotient`.
    """

    reset: int
    refractory: bool
    gain: bool
    regularise: bool
    rows: int
    kinds: tuple
    detach: bool = False
    surrogate: int = 0
    reciprocal: bool = False


class Neuron(NamedTuple):
    """Coefficients of a neuron: numbers, or of the first four pointers or rows."""

    decay: object
    theta: object
    gain: object
    trace_decay: object
    period: float  # steps that it waits after a spike
    numbers: object  # those that all neurons share, see ``core/call.py``


class State(NamedTuple):
    """What a neuron takes from one step to the next; zero where it does not have it."""

    v: object
    wait: object
    trace: object


class Step(NamedTuple):
    """What comes of a step, live being where the neuron may fire."""

    h: object
    fired: object
    live: object


@triton.jit
def widen(a):
    """Float32 of a float32, float16 or bfloat16 value, exactly; denormals stay."""
    if a.dtype == tl.bfloat16:  # by its bits: the interpreter's conversion flushes denormals
        return (a.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return a.to(tl.float32)


@triton.jit
def to_bf16(a):
    """Round float32 to the nearest bfloat16, ties to even; denormals stay, NaN stays NaN.

    In whole numbers, so that it is one rule for every target: what conversions do to denormals
    differs, and the interpreter's truncates. The bits of NaN could carry into the sign.
    """
    bits = a.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(a == a, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def narrow(a, dtype: tl.constexpr):
    """A float32 value as it is written to memory."""
    if dtype == tl.bfloat16:
        return to_bf16(a)
    else:
        return a.to(dtype)


@triton.jit
def spike(fired, dtype: tl.constexpr):
    """0 or 1 as it is written to memory, from a mask."""
    if dtype == tl.bfloat16:
        return tl.where(fired, 0x3F80, 0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return tl.where(fired, 1.0, 0.0).to(dtype)


@triton.jit
def quotient(a, b, RECIPROCAL: tl.constexpr):
    """Of surrogates only: a / b, or with RECIPROCAL a times NVIDIA's reciprocal, right to 1 ulp.

    Dividing exactly takes as many instructions there as all the rest of a step, and ``/`` compiles
    to an instruction that is 2 ulp off. Elsewhere `div_rn` is what ``/`` gives too.
    """
    if RECIPROCAL:
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b], dtype=tl.float32, is_pure=True, pack=1
        )
        return a * inverse
    else:
        return tl.div_rn(a, b)


@triton.jit
def surrogate_grad(u, p, q, KIND: tl.constexpr, RECIPROCAL: tl.constexpr):
    """ds/dh at u = h - v_threshold; p and q are ``Surrogate.constants()``."""
    if KIND == TRIANGLE:  # p * max(0, 1 - |u| q), q = 1 / width
        m = 1.0 - tl.abs(u) * q
        return tl.where(m > 0.0, m, 0.0) * p
    elif KIND == RECTANGLE:  # p where |u| < q
        return tl.where(tl.abs(u) < q, p, 0.0)
    elif KIND == GAUSSIAN:  # p * exp(q u^2), q = -1 / (2 sigma^2)
        return tl.exp((u * u) * q) * p
    elif KIND == ATAN:  # p / (1 + (q u)^2)
        z = u * q
        return quotient(p, 1.0 + z * z, RECIPROCAL)
    elif KIND == SIGMOID:  # p y (1 - y), y = 1 / (1 + exp(q u))
        y = quotient(1.0, 1.0 + tl.exp(u * q), RECIPROCAL)
        return (y * p) * (1.0 - y)
    else:  # fast sigmoid: q / (1 + p |u|)^2
        d = 1.0 + tl.abs(u) * p
        return quotient(q, d * d, RECIPROCAL)


@triton.jit
def no_term():
    """-0.0: added to any number it changes no bit of it."""
    # A literal -0.0 becomes +0.0 on its way through the compiler.
    return tl.full((), -(1 << 31), tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def add_products(total, weights, rows, COUNT: tl.constexpr, there, CERTAIN: tl.constexpr):
    """The sum: total + weights[COUNT - 1] rows[COUNT - 1] + ... + weights[0] rows[0].

    Products from number ``there`` on are absent; there is at least CERTAIN.
    """
    for k in tl.static_range(COUNT - 1, -1, -1):
        product = weights[k] * rows[k]
        if k >= CERTAIN:
            product = tl.where(k < there, product, no_term())
        total = total + product
    return total


@triton.jit
def filter(beta, x, alpha, f, P: tl.constexpr, Q: tl.constexpr):  # noqa: A001
    """One step of the filter of order P, Q (Fang et al., eq. 5d).

    Args:
        beta: tuple of Q + 1, for lags 0 ... Q.
        x: tuple of inputs at those lags.
        alpha: tuple of P, for lags 1 ... P.
        f: tuple of outputs at those lags.
        P: order of the outputs.
        Q: order of the inputs.
    """
    total = add_products(no_term(), beta, x, Q + 1, Q + 1, Q + 1)
    return add_products(total, alpha, f, P, P, P)


@triton.jit
def charge(decay, v, x):
    """The potential before firing."""
    return decay * v + x


@triton.jit
def inhibit(h, theta, r):
    """The trace r of earlier spikes lowers the potential (Fang et al., eq. 5a)."""
    return h - theta * r


@triton.jit
def fire(neuron, h, wait, POLICY: tl.constexpr):
    """The `Step` with potential h: it fires where that is at or above the threshold."""
    fired = h >= neuron.theta
    if POLICY.refractory:
        live = wait <= 0.0
        fired = fired & live
    else:
        live = tl.full(h.shape, 0, tl.int32) == 0
    return Step(h, fired, live)


@triton.jit
def reset(neuron, step, POLICY: tl.constexpr):
    """v[t]."""
    if POLICY.reset == RESET_HARD:
        return tl.where(step.fired, neuron.numbers.v_reset, step.h)
    elif POLICY.reset == RESET_SOFT:
        return step.h - neuron.theta * tl.where(step.fired, 1.0, 0.0)
    else:
        return step.h


@triton.jit
def trace_after(r, s, trace_decay):
    """The trace of the next step (Fang et al., eq. 5c), from this one's and the mask of spikes."""
    return trace_decay * r + tl.where(s, 1.0, 0.0)


@triton.jit
def wait_after(wait, s, period):
    """Steps that a neuron still has to wait after this one: ``period`` after a spike."""
    left = wait - 1.0
    return tl.where(s, period, tl.where(left < 0.0, 0.0, left))


@triton.jit
def neuron_step(neuron, state, i, POLICY: tl.constexpr):
    """One step, from the current i[t] and the state before it to its `Step` and the state after."""
    wait, trace = state.wait, state.trace
    if POLICY.gain:
        i = neuron.gain * i
    h = charge(neuron.decay, state.v, i)
    if POLICY.reset == RESET_TRACE:
        h = inhibit(h, neuron.theta, trace)
    step = fire(neuron, h, wait, POLICY)
    if POLICY.refractory:
        wait = wait_after(wait, step.fired, neuron.period)
    if POLICY.reset == RESET_TRACE:
        trace = trace_after(trace, step.fired, neuron.trace_decay)
    return step, State(reset(neuron, step, POLICY), wait, trace)


@triton.jit
def beyond(offset, tolerance):
    """What of a distance is over the tolerance."""
    excess = tl.abs(offset) - tolerance
    return tl.where(excess <= 0.0, 0.0, excess)


@triton.jit
def penalty(neuron, h):
    """What a potential far from the threshold costs (Stöckl, fig. 5.8)."""
    excess = beyond(h - (neuron.theta + neuron.numbers.shift), neuron.numbers.tolerance)
    return excess * excess


@triton.jit
def penalty_grad(neuron, h):
    """Its derivative by h; that by theta is the same with the other sign."""
    offset = h - (neuron.theta + neuron.numbers.shift)
    return tl.where(offset < 0.0, -2.0, 2.0) * beyond(offset, neuron.numbers.tolerance)


class StepInputs(NamedTuple):
    """What a step started from: v[t-1], r[t] and the current i[t]."""

    v: object
    trace: object
    current: object


class Arriving(NamedTuple):
    """What arrives at step t from outside of it; a gradient that is absent is None.

    Attributes:
        ds, dh, dpenalty: gradients on s[t], on h[t] and on each neuron's penalty.
        carried: false where nothing arrives on v[t]: in the last step of a call whose state got no
            gradient.
        trace_carried: the same for r[t+1].
    """

    ds: object
    dh: object
    dpenalty: object
    carried: object
    trace_carried: object


class StateGradients(NamedTuple):
    """Gradients on the state after a step, or before it."""

    v: object
    trace: object


class StepGradients(NamedTuple):
    """The gradient on the current i[t], and this step's terms of those on the coefficients."""

    current: object
    decay: object
    theta: object
    gain: object
    trace_decay: object


@triton.jit
def adjoint_step(neuron, step, before, arriving, after, POLICY: tl.constexpr):
    """One step of the adjoint. Terms that are not there are left out, or `no_term`.

    Args:
        neuron: `Neuron`.
        step: `Step`, of the forward pass.
        before: `StepInputs`, of the forward pass.
        arriving: `Arriving`.
        after: `StateGradients` after the step.
        POLICY: `Policy`.

    Returns:
        `StepGradients`.
        `StateGradients` before the step.
    """
    ds, dh, carried = arriving.ds, arriving.dh, arriving.carried
    theta = neuron.theta
    fed: tl.constexpr = arriving.ds is not None
    attached: tl.constexpr = POLICY.reset != RESET_NONE and not POLICY.detach

    # On s[t]: from outside, and through the reset or the trace.
    arrives = fed
    if attached:
        arrives = carried
        if POLICY.reset == RESET_HARD:
            back = after.v * (neuron.numbers.v_reset - step.h)
        elif POLICY.reset == RESET_SOFT:
            back = no_term() - after.v * theta
        else:
            back = after.trace
            arrives = arriving.trace_carried
        if fed:
            ds = tl.where(arrives, ds + back, ds)
        else:
            ds = back
    fired = no_term()
    if fed or attached:
        f = surrogate_grad(
            step.h - theta,
            neuron.numbers.surrogate_p,
            neuron.numbers.surrogate_q,
            POLICY.surrogate,
            POLICY.reciprocal,
        )
        fired = tl.where(step.live, ds * f, 0.0)
        if not fed:
            fired = tl.where(arrives, fired, no_term())

    # On h[t]: from outside, through the reset, through the spike.
    through = after.v
    if POLICY.reset == RESET_HARD:
        through = tl.where(step.fired, 0.0, through)
    through = tl.where(carried, through, no_term())
    dtheta = 0.0 - fired
    if POLICY.reset == RESET_SOFT:
        dtheta = tl.where(carried, dtheta - tl.where(step.fired, after.v, 0.0), dtheta)
    if arriving.dpenalty is not None:
        pulled = arriving.dpenalty * penalty_grad(neuron, step.h)
        dtheta = dtheta - pulled
        if dh is not None:
            dh = dh + pulled
        else:
            dh = pulled
    if dh is not None:
        through = dh + through
    total = through + fired
    if not fed and dh is None:  # it may get nothing at all
        total = tl.where(carried, total, tl.where(arrives, total, 0.0))

    # On the trace, the coefficients and the current.
    dtrace, drho, dgain, di = after.trace, no_term(), no_term(), total
    if POLICY.reset == RESET_TRACE:
        kept = arriving.trace_carried
        dtrace = tl.where(kept, dtrace * neuron.trace_decay, no_term()) - total * theta
        dtheta = dtheta + (no_term() - total * before.trace)
        drho = tl.where(kept, after.trace * before.trace, no_term())
    if POLICY.gain:
        dgain = total * before.current
        di = total * neuron.gain
    gradients = StepGradients(di, total * before.v, dtheta, dgain, drho)
    return gradients, StateGradients(total * neuron.decay, dtrace)
