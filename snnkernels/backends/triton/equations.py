"""The equations of the neuron and its surrogates for Triton: a mirror of ``csrc/neuron.h``.

Same names, same order of operations, one rounding per operation (every launch passes
``enable_fp_fusion=False``). Enums are compile-time numbers and stand where neuron.h has them; an
enum with one value marks a place where other libraries' neurons differ.

Only built-in functions of ``triton.language`` are used, so that what decides between compiler and
interpreter is the variable TRITON_INTERPRET at the import of this module alone.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

CHARGE_DECAY = tl.constexpr(0)  # h = decay * v + x
COMPARE_GREATER_EQUAL = tl.constexpr(0)  # fires where h >= v_threshold
SPIKES_SINGLE = tl.constexpr(0)  # 0 or 1 a step
WHEN_NOW = tl.constexpr(0)  # resets in the step of the spike
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
def check_policy(
    CHARGE: tl.constexpr, COMPARE: tl.constexpr, SPIKES: tl.constexpr, WHEN: tl.constexpr
):
    """Refuse, at compile time, policies that these kernels do not have."""
    tl.static_assert(CHARGE == CHARGE_DECAY, "charge has one value: decay")
    tl.static_assert(COMPARE == COMPARE_GREATER_EQUAL, "compare has one value: greater_equal")
    tl.static_assert(SPIKES == SPIKES_SINGLE, "spikes has one value: single")
    tl.static_assert(WHEN == WHEN_NOW, "when has one value: now")


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
    total = beta[Q] * x[Q]
    for q in tl.static_range(Q - 1, -1, -1):
        total = total + beta[q] * x[q]
    for p in tl.static_range(P - 1, -1, -1):
        total = total + alpha[p] * f[p]
    return total


@triton.jit
def charge(decay, v, x):
    """The potential before firing."""
    return decay * v + x


@triton.jit
def inhibit(h, theta, r):
    """The trace r of earlier spikes lowers the potential (Fang et al., eq. 5a)."""
    return h - theta * r


@triton.jit
def fire(h, theta):
    """Where the potential is at or above the threshold, as a mask."""
    return h >= theta


@triton.jit
def reset(h, s, theta, v_reset, RESET: tl.constexpr):
    """v[t], from h[t] and the mask of spikes."""
    if RESET == RESET_HARD:
        return tl.where(s, v_reset, h)
    elif RESET == RESET_SOFT:
        return h - theta * tl.where(s, 1.0, 0.0)
    else:
        return h


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
def step(
    v,
    wait,
    trace,
    i,
    decay,
    theta,
    gain,
    trace_decay,
    v_reset,
    period,
    RESET: tl.constexpr,
    REFRACTORY: tl.constexpr,
    GAIN: tl.constexpr,
):
    """One step of the neuron: h, the spike as a mask, and the state after it: v, wait, trace."""
    if GAIN:
        i = gain * i
    h = charge(decay, v, i)
    if RESET == RESET_TRACE:
        h = inhibit(h, theta, trace)
    s = fire(h, theta)
    if REFRACTORY:
        s = s & (wait <= 0.0)
        wait = wait_after(wait, s, period)
    if RESET == RESET_TRACE:
        trace = trace_after(trace, s, trace_decay)
    return h, s, reset(h, s, theta, v_reset, RESET), wait, trace


@triton.jit
def beyond(offset, tolerance):
    """What of a distance is over the tolerance."""
    excess = tl.abs(offset) - tolerance
    return tl.where(excess <= 0.0, 0.0, excess)


@triton.jit
def penalty(h, theta, tolerance, shift):
    """What a potential far from the threshold costs (Stöckl, fig. 5.8)."""
    excess = beyond(h - (theta + shift), tolerance)
    return excess * excess


@triton.jit
def penalty_grad(h, theta, tolerance, shift):
    """Its derivative by h; that by theta is the same with the other sign."""
    offset = h - (theta + shift)
    return tl.where(offset < 0.0, -2.0, 2.0) * beyond(offset, tolerance)


@triton.jit
def no_term():
    """-0.0: added to any number it changes no bit of it."""
    # A literal -0.0 becomes +0.0 on its way through the compiler.
    return tl.full((), -(1 << 31), tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def step_back(
    ds,
    dh,
    dv,
    carried,
    h,
    s,
    live,
    f,
    v_before,
    decay,
    theta,
    v_reset,
    RESET: tl.constexpr,
    DETACH: tl.constexpr,
    RECORDED: tl.constexpr,
):
    """One step of the adjoint: dx[t] (which is dh[t]), dv[t-1], and this step's terms.

    carried: false where nothing arrives on v[t] (the last step of a call whose state got no
    gradient). Its terms are then `no_term`.

    Returns:
        dx, dv on v[t-1], the term of dtheta, the term of ddecay (given v[t-1]).
    """
    if not DETACH and (RESET == RESET_HARD or RESET == RESET_SOFT):
        if RESET == RESET_HARD:
            attached = ds + dv * (v_reset - h)
        else:
            attached = ds - dv * theta
        ds = tl.where(carried, attached, ds)
    through = dv
    if RESET == RESET_HARD:
        through = tl.where(s, 0.0, dv)
    through = tl.where(carried, through, no_term())
    if RECORDED:
        through = dh + through
    fired = tl.where(live, ds * f, 0.0)
    dx = through + fired
    dtheta = 0.0 - fired
    if RESET == RESET_SOFT:
        dtheta = tl.where(carried, dtheta - tl.where(s, dv, 0.0), dtheta)
    return dx, dx * decay, dtheta, dx * v_before


@triton.jit
def trace_back(dh, r, after, carried, theta, trace_decay):
    """The adjoint of the trace: from gradients on h[t] and r[t+1] (``after``) to that on r[t].

    carried: as in `step_back`, for r.

    Returns:
        dr, the term of dtheta beside that of step_back, the term of dtrace_decay.
    """
    dr = tl.where(carried, after * trace_decay, no_term()) - dh * theta
    return dr, no_term() - dh * r, tl.where(carried, after * r, no_term())
