"""The neuron of `snnkernels.lif`: plain, general (synapse, gain, trace) and regularised."""

from __future__ import annotations

import random
from contextlib import nullcontext
from unittest import mock

import torch
from torch import Tensor

import snnkernels
from snnkernels import State
from snnkernels.core import surrogates
from tests.tools.ptx.families.base import Case, Family, differences
from tests.tools.ptx.families.inputs import (
    DTYPES,
    LAYOUTS,
    OFFSETS,
    arrange,
    draw,
    expanded,
    sizes,
)

SURROGATES = ("Triangle",) * 3 + ("Rectangle",) * 2 + ("Gaussian", "ATan", "Sigmoid", "FastSigmoid")
_PRODUCTS = ("Triangle", "Rectangle")  # surrogates of + - * alone
_QUOTIENTS = ("ATan", "FastSigmoid")
ARRIVING = {"s": 0.85, "v": 0.4, "h": 0.6, "trace": 0.5, "synapse": 0.5, "penalty": 0.7}
_ORDERS = ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (0, 2), (1, 2))


class Plain(Family):
    """LIF neurons with all options of the plain kernels."""

    name, weight = "plain", 3
    most = 12_000  # neuron-steps
    resets: tuple[str, ...] = ("hard", "soft", "none")

    def draw(self, rng: random.Random, backend: str) -> Case:
        case = {
            "dtype": rng.choice(DTYPES),
            "shape": sizes(rng, self.most),
            "layout": rng.choice(LAYOUTS),
            "offset": rng.choice(OFFSETS),
            "values": rng.choice(("normal",) * 4 + ("grid", "special")),
            "reset": rng.choice(self.resets),
            "detach_reset": rng.random() < 0.3,
            "refractory": rng.choice((0, 0, 0, 1, 3)),
            "surrogate": rng.choice(SURROGATES),
            "record": rng.choice((None, None, "h")),
            "coefficients": rng.choice(("number", "number", "scalar", "channel")),
            "v_threshold": rng.choice((1.0,) * 30 + (1e39,)),
            "v_reset": rng.choice((0.0, -0.1)),
            "start": rng.random() < 0.5,
            "arriving": [name for name, share in ARRIVING.items() if rng.random() < share],
            "ds": rng.choice(("dense", "dense", "expand0", "expand1", "x", "one_value")),
            "need_x": rng.random() < 0.85,
        }
        return case | self.more(rng)

    def more(self, rng: random.Random) -> Case:
        """Options beyond those of the plain neuron."""
        return {"synapse": None, "gain": None, "regulariser": None, "per_channel_filter": False}

    def again(self, case: Case, rng: random.Random) -> Case:
        values = rng.choice(("normal", "normal", "grid", "special"))
        return super().again(case, rng) | {"values": values}

    def check(self, case: Case, rng: random.Random, backend: str, ulps: int) -> list[str]:
        leaves, arriving = _inputs(case, rng)
        exact = case["surrogate"] in _PRODUCTS
        on_a_gpu = nullcontext()
        if ulps == 0 and case["surrogate"] in _QUOTIENTS:
            exact = True
            on_a_gpu = mock.patch.object(surrogates, "_divide", _by_reciprocal)
        with on_a_gpu:
            want = _run(case, "torch", leaves, arriving)
        got = _run(case, backend, leaves, arriving)
        perturbed = ulps > 0 and not exact
        return differences(got, want, exact=exact, values=case["values"], perturbed=perturbed)


class General(Plain):
    """LIF neurons with a synapse, a gain, a trace, or more than one of them."""

    name, weight = "general", 2
    most = 6000
    resets = ("hard", "soft", "none", "trace", "trace")

    def more(self, rng: random.Random) -> Case:
        return {
            "synapse": rng.choice((None, *_ORDERS)),
            "gain": rng.choice((None, "number", "scalar", "channel")),
            "regulariser": rng.choice((None, None, (0.1, 0.0), (0.0, -0.2))),
            "per_channel_filter": rng.random() < 0.5,
        }


class Regulariser(General):
    """Neurons, half of them plain, with the penalty on potentials."""

    name, weight = "regulariser", 1

    def more(self, rng: random.Random) -> Case:
        case = super().more(rng)
        if rng.random() < 0.5:
            case |= {"synapse": None, "gain": None}
        return case | {"regulariser": rng.choice(((0.1, 0.0), (0.0, -0.2), (0.3, 0.5)))}


def _by_reciprocal(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient as the kernels have it on NVIDIA, the reciprocal being rounded to nearest."""

    def flushed(t: Tensor) -> Tensor:
        return torch.where(t.abs() < torch.finfo(torch.float32).tiny, t * 0, t)

    return numerator * flushed(1.0 / flushed(denominator))


def _inputs(case: Case, rng: random.Random) -> tuple[dict, dict]:
    """Arguments of the call, and the gradients that arrive on its outputs, by name."""
    shape, kind, dtype = case["shape"], case["values"], getattr(torch, case["dtype"])
    step = shape[1:]
    channels = shape[2] if len(shape) > 2 else None

    def coefficient(value: float, how: str = case["coefficients"]) -> float | Tensor:
        if how == "number":
            return value
        if how == "scalar" or channels is None:
            return torch.tensor(value)
        return value + torch.rand(channels) * 0.1

    x = arrange(draw(shape, rng, kind).to(dtype), case["layout"], case["offset"])
    leaves = {
        "x": x,
        "decay": coefficient(0.5 if kind == "grid" else 0.9),
        "v_threshold": coefficient(case["v_threshold"]),
    }
    rows = 0
    if case["synapse"] is not None:
        P, Q = case["synapse"]
        rows = P + Q
        per = (channels,) if case["per_channel_filter"] and channels else ()
        leaves["alpha"] = (torch.rand(*per, P) - 0.5) * 0.8 / max(P, 1)
        leaves["beta"] = torch.rand(*per, Q + 1) * 0.8 + 0.1
    if case["gain"] is not None:
        leaves["gain"] = coefficient(1.3, case["gain"])
    if case["reset"] == "trace":
        leaves["trace_decay"] = coefficient(0.8)
    if case["start"]:
        leaves["v"] = draw(step, rng, kind)
        if case["refractory"]:
            leaves["refractory"] = torch.randint(0, case["refractory"] + 1, step).float()
        if rows:
            leaves["synapse"] = draw((rows, *step), rng, kind)
        if case["reset"] == "trace":
            leaves["trace"] = draw(step, rng, "normal").abs()
    ds = draw(shape, rng, kind).to(dtype)
    if case["ds"] == "x" and 0 not in x.stride():
        ds = torch.empty_like(x).copy_(ds)
    arriving = {
        "s": expanded(ds, case["ds"]),
        "v": draw(step, rng, kind),
        "h": draw(shape, rng, kind),
        "trace": draw(step, rng, kind),
        "synapse": draw((rows, *step), rng, kind),
        "penalty": torch.tensor(1.7),
    }
    return leaves, {name: arriving[name] for name in case["arriving"]}


def _run(case: Case, backend: str, leaves: dict, arriving: dict) -> dict[str, Tensor | None]:
    """One call; outputs by name, and gradients by name of what they belong to."""
    needs = {name: name != "refractory" for name in leaves} | {"x": case["need_x"]}
    given = {
        name: value.detach().requires_grad_(needs[name]) if isinstance(value, Tensor) else value
        for name, value in leaves.items()
    }
    options = {
        name: case[name]
        for name in ("reset", "detach_reset", "refractory", "record", "v_reset", "regulariser")
        if case[name] is not None
    }
    options |= {
        name: given[name]
        for name in ("decay", "v_threshold", "gain", "trace_decay")
        if name in given
    }
    if case["synapse"] is not None:
        options["synapse"] = given["alpha"], given["beta"]
    state = None
    if case["start"]:
        state = State(*(given.get(name) for name in ("v", "refractory", "synapse", "trace")))
    surrogate = getattr(snnkernels, case["surrogate"])()
    s, state, *more = snnkernels.lif(
        given["x"], state, surrogate=surrogate, backend=backend, **options
    )
    out = {"s": s} | {name: getattr(state, name) for name in State._fields}
    if case["record"]:
        out["h"] = more.pop(0)
    if case["regulariser"]:
        out["penalty"] = more.pop(0)
    ends = [n for n in arriving if out.get(n) is not None and out[n].requires_grad]
    wanted = {n: t for n, t in given.items() if isinstance(t, Tensor) and t.requires_grad}
    found = {name: None if t is None else t.detach() for name, t in out.items()}
    if ends and wanted:
        grads = torch.autograd.grad(
            [out[n] for n in ends],
            list(wanted.values()),
            [arriving[n] for n in ends],
            allow_unused=True,
        )
        found |= {f"d{name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return found
