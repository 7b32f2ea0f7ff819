"""Bad input: errors name the argument, what came and what is allowed, before any kernel runs."""

from __future__ import annotations

import pytest
import torch

import snnkernels
from snnkernels import ATan, FastSigmoid, Gaussian, Rectangle, Sigmoid, State, Triangle, lif
from snnkernels import backends as registry
from snnkernels.backends import BACKENDS, load
from snnkernels.core.surrogates import Surrogate

X = torch.zeros(4, 2, 3)
META = torch.zeros(4, 2, 3, device="meta")
NAN = float("nan")


class Unknown(Surrogate):
    code = 99


# name: (arguments, keywords, error, what its message must hold)
BAD = {
    "x is a list": (([0.0],), {}, TypeError, ("x", "list", "tensor")),
    "x of int64": ((X.long(),), {}, TypeError, ("x", "int64", "float32", "bfloat16")),
    "x of complex64": ((X.cfloat(),), {}, TypeError, ("x", "complex64", "float32")),
    "x of one dimension": ((X[0, 0],), {}, ValueError, ("x", "[3]", "[T, N, *]")),
    "x of no dimension": ((X[0, 0, 0],), {}, ValueError, ("x", "[]", "[T, N, *]")),
    "float64 on cpp": ((X.double(),), {"backend": "cpp"}, TypeError, ("float64", "cpp", "float32")),
    "cpp on meta": ((META,), {"backend": "cpp"}, RuntimeError, ("cpp", "meta", "CPU")),
    "unknown backend": ((X,), {"backend": "cudnn"}, ValueError, ("backend", "cudnn", *BACKENDS)),
    "backend None": ((X,), {"backend": None}, (TypeError, ValueError), ("backend", "None", "cpp")),
    "unknown reset": ((X,), {"reset": "zero"}, ValueError, ("reset", "zero", "hard", "soft")),
    "reset None": ((X,), {"reset": None}, ValueError, ("reset", "None", "none")),
    "unknown record": ((X,), {"record": "v"}, ValueError, ("record", "'v'", "'h'")),
    "surrogate name": ((X,), {"surrogate": "atan"}, TypeError, ("surrogate", "atan", "ATan")),
    "surrogate class": ((X,), {"surrogate": ATan}, TypeError, ("surrogate", "ATan", "instance")),
    "own surrogate": ((X,), {"surrogate": Unknown()}, TypeError, ("surrogate", "Unknown", "ATan")),
    "negative refractory": ((X,), {"refractory": -1}, ValueError, ("refractory", "-1", ">= 0")),
    "bool refractory": ((X,), {"refractory": True}, TypeError, ("refractory", "True", "whole")),
    "float refractory": ((X,), {"refractory": 1.5}, TypeError, ("refractory", "1.5", "whole")),
    "long refractory": ((X,), {"refractory": 1 << 25}, ValueError, ("refractory", "33554432")),
    "int detach": ((X,), {"detach_reset": 1}, TypeError, ("detach_reset", "1", "True or False")),
    "NaN v_reset": ((X,), {"v_reset": NAN}, ValueError, ("v_reset", "nan")),
    "v_reset tensor": ((X,), {"v_reset": X[0]}, TypeError, ("v_reset", "tensor", "number")),
    "bool v_reset": ((X,), {"v_reset": True}, TypeError, ("v_reset", "True", "number")),
}
for name in ("decay", "v_threshold"):
    BAD |= {
        f"{name} NaN": ((X,), {name: NAN}, ValueError, (name, "NaN")),
        f"{name} NaN tensor": ((X,), {name: torch.tensor(NAN)}, ValueError, (name, "NaN", "nan")),
        f"{name} string": ((X,), {name: "0.5"}, TypeError, (name, "'0.5'", "number")),
        f"{name} bool": ((X,), {name: True}, TypeError, (name, "True", "number")),
        f"{name} of bool": (
            (X,),
            {name: torch.ones(3).bool()},
            TypeError,
            (name, "bool", "numbers"),
        ),
        f"{name} of complex64": (
            (X,),
            {name: torch.ones(3).cfloat()},
            TypeError,
            (name, "complex64"),
        ),
        f"{name} of 2 channels": ((X,), {name: torch.ones(2)}, ValueError, (name, "[2]", "[3]")),
        f"{name} matrix": ((X,), {name: torch.ones(2, 3)}, ValueError, (name, "[2, 3]", "[3]")),
        f"{name} for [T, M]": ((X[0],), {name: torch.ones(3)}, ValueError, (name, "[3]", "0-d")),
        f"{name} elsewhere": (
            (X,),
            {name: torch.ones(3, device="meta")},
            ValueError,
            (name, "meta", "cpu"),
        ),
    }
STATES = {
    "string": ("zero", TypeError, ("state", "'zero'", "State")),
    "bool": (True, TypeError, ("state", "True", "number")),
    "tuple": ((X[0], None), TypeError, ("state", "State")),
    "NaN": (NAN, ValueError, ("state", "nan")),
    "of another shape": (torch.zeros(2, 4), ValueError, ("state.v", "[2, 4]", "[2, 3]")),
    "that would broadcast": (torch.zeros(1, 3), ValueError, ("state.v", "[1, 3]", "[2, 3]")),
    "of all steps": (X, ValueError, ("state.v", "[4, 2, 3]", "[2, 3]")),
    "of bool": (X[0].bool(), TypeError, ("state.v", "bool", "numbers")),
    "of complex64": (X[0].cfloat(), TypeError, ("state.v", "complex64", "numbers")),
    "elsewhere": (META[0], ValueError, ("state.v", "meta", "cpu")),
    "of strings": (State("0.5"), TypeError, ("state.v", "'0.5'", "number")),
    "refractory without period": (
        State(X[0], X[0]),
        ValueError,
        ("state.refractory", "refractory=0"),
    ),
}
BAD |= {f"state {k}": ((X, state), {}, error, words) for k, (state, error, words) in STATES.items()}
BAD["refractory of another shape"] = (
    (X, State(X[0], torch.zeros(3))),
    {"refractory": 2},
    ValueError,
    ("state.refractory", "[3]", "[2, 3]"),
)


@pytest.fixture
def no_kernel(monkeypatch):
    def run(*_, **__):
        raise AssertionError("a kernel ran")

    monkeypatch.setattr(snnkernels.core.reference, "lif", run)
    monkeypatch.setattr(load("cpp"), "neuron_forward", run)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, no_kernel):
    arguments, keywords, error, words = BAD[name]
    with pytest.raises(error) as caught:
        lif(*arguments, **keywords)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_the_kernel_guard_works(no_kernel):
    for backend in ("torch", "cpp"):
        with pytest.raises(AssertionError, match="a kernel ran"):
            lif(X, backend=backend)


def test_a_backend_that_is_missing_does_not_fall_back(monkeypatch, no_kernel):
    def gone(name):
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(registry, "load", gone)
    for cached in (registry.why_unavailable, registry.choose):
        inner = cached.__wrapped__
        monkeypatch.setattr(registry, inner.__name__, inner)
    assert registry.available_backends("cpu") == ("torch",)
    with pytest.raises(RuntimeError, match="'cpp' cannot run on device 'cpu'.*not installed"):
        registry.choose("cpp", "cpu", torch.float32)
    assert registry.choose("auto", "cpu", torch.float32) == "torch"


@pytest.mark.parametrize("kind", (Triangle, Rectangle, Gaussian, ATan, Sigmoid, FastSigmoid))
@pytest.mark.parametrize("value", (0, -1.0, NAN, float("inf"), True, "1", None))
def test_bad_surrogate(kind, value):
    error = TypeError if isinstance(value, (bool, str, type(None))) else ValueError
    with pytest.raises(error, match=rf"{kind.__name__}: \w+ must be .*got {value!r}"):
        kind(value)


@pytest.mark.parametrize("backend", ("torch", "cpp"))
def test_differentiating_twice(backend):
    x = torch.randn(4, 3, requires_grad=True)
    s, _ = lif(x, backend=backend)
    (dx,) = torch.autograd.grad(s.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="lif.*cannot be differentiated twice"):
        dx.sum().backward()
    with pytest.raises(RuntimeError, match="lif.*cannot be differentiated twice"):
        torch.autograd.grad(dx.sum(), x)


def test_backward_twice_after_the_graph_is_freed():
    x = torch.randn(4, 3, requires_grad=True)
    s, _ = lif(x)
    s.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        s.sum().backward()


def test_an_input_changed_in_place_is_noticed():
    x = torch.randn(4, 3, requires_grad=True)
    y = x * 1
    s, _ = lif(y)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        s.sum().backward()
