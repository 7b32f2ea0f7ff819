"""Steps for tests of `snnkernels.fuse`: LIF with its options, random ones, and the plain loop."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

import snnkernels
from snnkernels import spike
from snnkernels.backends import available_backends
from snnkernels.backends.cpp import _core
from snnkernels.core.call import as_tensor
from snnkernels.core.reference import Fire, HardReset

BACKENDS = [b for b in ("torch", "cpp") if b in available_backends()]
ISAS = _core.available_isas().split() if "cpp" in BACKENDS else []


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in bits, NaN in the same places."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(torch.nan_to_num(a, nan=1e30), torch.nan_to_num(b, nan=1e30))
    )


def near(a: Tensor, b: Tensor, bound: float = 1e-6) -> bool:
    if a.numel() == 0:
        return a.shape == b.shape
    return (a - b).abs().max().item() <= bound * max(b.abs().max().item(), 1e-30)


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def leaky(x, v, *, decay, theta=1.0):
    h = decay * v + x
    s = spike(h - theta)
    return s, h * (1 - s)


def loop(step, x, states, inputs=1, **parameters):
    """The step over time in PyTorch: outputs stacked, then the states after the last step."""
    xs = (x,) if isinstance(x, Tensor) else x
    dtype = torch.promote_types(xs[0].dtype, torch.float32)
    states = [
        s if isinstance(s, Tensor) else torch.full(xs[0].shape[1:], float(s), dtype=dtype)
        for s in states
    ]
    steps = []
    for t in range(xs[0].shape[0]):
        results = step(*(each[t].to(dtype) for each in xs), *states, **parameters)
        out, states = results[: len(results) - len(states)], results[len(results) - len(states) :]
        steps.append(out)
    return *map(torch.stack, zip(*steps, strict=True)), *states


def _named(step, positional, keywords):
    """A function of ``*args, **kwargs`` with names for its arguments."""
    kind = inspect.Parameter
    step.__signature__ = inspect.Signature(
        [kind(n, kind.POSITIONAL_OR_KEYWORD) for n in positional]
        + [kind(n, kind.KEYWORD_ONLY) for n in keywords]
    )
    return step


def lif_step(reset="hard", detach=False, refractory=0, orders=None, gain=False, surrogate=None):
    """One step of `snnkernels.lif` with these options, by the reference's own functions."""
    surrogate = surrogate or snnkernels.Triangle()
    P, Q = orders or (0, 0)
    names = ["v"] + ["wait"] * (refractory > 0) + ["r"] * (reset == "trace")
    names += [f"f{p}" for p in range(1, P + 1)] + [f"x{q}" for q in range(1, Q + 1)]
    keywords = ["decay", "theta", "v_reset"] + ["gain"] * gain + ["rho"] * (reset == "trace")
    keywords += [f"alpha{p}" for p in range(1, P + 1)] + [f"beta{q}" for q in range(Q + 1)] * (
        orders is not None
    )

    def step(x, *states, **p):
        s = dict(zip(names, states, strict=True))
        i, after = x, {}
        if orders is not None:
            past = [x, *(s[f"x{q}"] for q in range(1, Q + 1))]
            i = p[f"beta{Q}"] * past[Q]
            for q in range(Q - 1, -1, -1):
                i = i + p[f"beta{q}"] * past[q]
            for k in range(P, 0, -1):
                i = i + p[f"alpha{k}"] * s[f"f{k}"]
            after = {f"x{q}": past[q - 1] for q in range(1, Q + 1)}
            after |= {f"f{k}": i if k == 1 else s[f"f{k - 1}"] for k in range(1, P + 1)}
        h = p["decay"] * s["v"] + (p["gain"] * i if gain else i)
        theta = p["theta"]
        if reset == "trace":
            h = h - theta * s["r"]
        live = s["wait"] <= 0 if refractory else None
        theta_tensor = theta if isinstance(theta, Tensor) else torch.full_like(h, theta)
        fired = Fire.apply(h, theta_tensor, live, surrogate)
        r = fired.detach() if detach else fired
        v_reset = as_tensor(p["v_reset"], h.dtype, h.device)
        v = HardReset.apply(h, r, v_reset) if reset == "hard" else h
        if reset == "soft":
            v = h - theta * r
        after["v"] = v
        if reset == "trace":
            after["r"] = p["rho"] * s["r"] + r
        if refractory:
            left = (s["wait"] - 1).clamp(min=0)
            after["wait"] = torch.where(fired.detach() > 0, float(refractory), left)
        return fired, *(after[n] for n in names)

    return _named(step, ["x", *names], keywords)


def _where(a, b, c):
    return torch.where(a > b, c, a)


# What random steps are made of: each gives the same bits in every backend.
EXACT = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "rsub": lambda a, b, c: 1.5 - a,
    "mul": lambda a, b, c: a * b,
    "div": lambda a, b, c: a / (1 + b.abs()),
    "reciprocal": lambda a, b, c: 1 / (2 + a.abs()),
    "where": _where,
    "spike": lambda a, b, c: snnkernels.spike(a - b, snnkernels.ATan()),
    "strict": lambda a, b, c: snnkernels.spike(a, snnkernels.Triangle(0.4, 2.0), strict=True),
    "clamp": lambda a, b, c: a.clamp(-0.5, 1.25),
    "relu": lambda a, b, c: torch.relu(a),
    "min": lambda a, b, c: torch.minimum(a, b),
    "max": lambda a, b, c: torch.maximum(a, b),
    "abs": lambda a, b, c: a.abs(),
    "neg": lambda a, b, c: -a,
    "square": lambda a, b, c: a**2,
    "cube": lambda a, b, c: (0.5 * a) ** 3,
    "floor": lambda a, b, c: a.floor() + b,
    "round": lambda a, b, c: a.round() * b,
    "trunc": lambda a, b, c: c - a.trunc(),
    "div trunc": lambda a, b, c: torch.div(a, 0.3 + b.abs(), rounding_mode="trunc") + c,
    "mask": lambda a, b, c: ((a > 0) & (b <= c)).float() + a,
    "either": lambda a, b, c: ((a == b) | ~(b < c)).float() * c,
    "not equal": lambda a, b, c: (a != c).float() - b,
    "detach": lambda a, b, c: a.detach() * b,
    "in place": lambda a, b, c: (a + b).mul_(c).sub_(0.25),
    "muladd": lambda a, b, c: a * b + c,
    "ceil": lambda a, b, c: a.ceil() + c,
    "masked": lambda a, b, c: a.masked_fill(b > c, 0.75),
    "sign": lambda a, b, c: torch.sign(a) + b,
}
# These are another library's functions, equal within 2 units in the last place.
NEAR = {
    "sqrt": lambda a, b, c: (a.abs() + 1).sqrt(),  # of MKL, 1 unit off in 15 % of values
    "exp": lambda a, b, c: torch.exp(-a.abs()),
    "log": lambda a, b, c: torch.log(1 + a.abs()),
    "tanh": lambda a, b, c: torch.tanh(a),
    "sigmoid": lambda a, b, c: torch.sigmoid(a),
    "sin": lambda a, b, c: torch.sin(a),
    "cos": lambda a, b, c: torch.cos(b),
    "pow": lambda a, b, c: (1 + a.abs()) ** 1.7,
}


def random_step(operations, states, tensors):
    """A step of the operations ``(name, i, j, k)``, arguments being numbers of earlier values."""
    table = EXACT | NEAR

    def step(x, *before, number, **p):
        pool = [x, *before, *p.values(), x * (1 - number) + number]
        for name, i, j, k in operations:
            # Recent values more often; bounded, so that nothing overflows.
            a, b, c = (pool[-1 - (m % min(len(pool), 9))] for m in (i, j, k))
            a = a if isinstance(a, Tensor) and a.shape == x.shape else a + 0 * x
            pool.append(table[name](a, b + 0 * x, c + 0 * x).clamp(-8, 8))
        after = [0.75 * v + pool[-1 - m] for m, v in enumerate(before)]
        return pool[-1], *after

    return _named(step, ["x", *(f"v{k}" for k in range(states))], [*tensors, "number"])
