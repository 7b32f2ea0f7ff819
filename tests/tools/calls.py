"""Calls of every public op with every argument it has: for tests of what all ops promise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import snnkernels
from snnkernels import State
from snnkernels.backends import load
from snnkernels.ops.bntt import NormaliseSteps

SHAPE = (18, 2, 3, 2, 2)  # T, N, C, H, W; T: more steps than between two checkpoints
PARTS = ("v", "refractory", "synapse", "trace")


class Op(NamedTuple):
    """One way to call a public op.

    Attributes:
        run: takes the arguments by name and a backend, gives the outputs by name.
        names: of its arguments in `tensors`.
    """

    run: Callable[..., dict[str, Tensor]]
    names: tuple[str, ...]

    def arguments(self, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> dict[str, Tensor]:
        """Its tensors, float32 on the CPU, without requires_grad."""
        every = tensors(shape, seed)
        return {name: every[name] for name in self.names}

    @property
    def learned(self) -> tuple[str, ...]:
        """Its arguments that have a gradient."""
        return tuple(name for name in self.names if name != "refractory")

    def results(self, arguments: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        """Outputs by name, and as "dx" the gradient on x of the sum of their squares."""
        leaves = {k: t.detach().requires_grad_(k in self.learned) for k, t in arguments.items()}
        outputs = self.run(backend=backend, **leaves)
        wanted = [leaves[name] for name in self.learned]
        grads = torch.autograd.grad(total(outputs), wanted)
        found = {name: out.detach() for name, out in outputs.items()}
        return found | {f"d{name}": g for name, g in zip(self.learned, grads, strict=True)}


def total(outputs: dict[str, Tensor], power: int = 2) -> Tensor:
    """The sum of powers of all outputs that have a gradient."""
    return sum((out**power).sum() for name, out in outputs.items() if name != "refractory")


def tensors(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """Every argument of every op: two values of each kind of coefficient, one for each channel."""
    random = torch.Generator().manual_seed(seed)
    step, C = shape[1:], shape[2]

    def around(mean: float, *sizes: int) -> Tensor:
        return mean + 0.2 * torch.rand(sizes, generator=random, dtype=torch.float32)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=random, dtype=torch.float32)

    return {
        "x": draw(*shape),
        "v": draw(*step),
        "refractory": torch.randint(0, 3, step, generator=random).to(torch.float32),
        "synapse": draw(3, *step),
        "trace": around(0.0, *step),
        "decay": around(0.8, C),
        "v_threshold": around(0.7, C),
        "gain": around(1.2, C),
        "trace_decay": around(0.5, C),
        "alpha": around(0.1, C, 2),
        "beta": around(0.7, C, 2),
        "weight": around(0.8, shape[0], C),
    }


def _lif(backend: str, x: Tensor, options: dict | None = None, **arguments: Tensor):
    state = State(**{name: arguments.pop(name) for name in PARTS if name in arguments})
    if "alpha" in arguments:
        arguments["synapse"] = arguments.pop("alpha"), arguments.pop("beta")
    options = options or {}
    s, after, *more = snnkernels.lif(x, state, backend=backend, **arguments, **options)
    asked = [name for name in ("record", "regulariser") if name in options]
    parts = {name: part for name, part in after._asdict().items() if part is not None}
    return {"s": s, **parts, **dict(zip(asked, more, strict=True))}


def _with(**options) -> Callable:
    return lambda **arguments: _lif(options=options, **arguments)


def _iir(backend: str, x: Tensor, alpha: Tensor, beta: Tensor, synapse: Tensor):
    f, state = snnkernels.iir(x, alpha, beta, synapse, backend=backend)
    return {"f": f, "state": state}


def _bntt(backend: str, x: Tensor, weight: Tensor):
    return {"out": NormaliseSteps.apply(x, weight, 1e-4)[0]}


def _adapting(x, v, w, *, decay, v_threshold, gain):
    """A step with two states and parameters of each kind of use."""
    h = decay * v + gain * (x - w)
    s = snnkernels.spike(h - v_threshold, snnkernels.ATan())
    return s, h, h * (1 - s), 0.75 * w + (1 - decay) * s


def _fuse(backend: str, x: Tensor, v: Tensor, trace: Tensor, **parameters: Tensor):
    if backend != "torch" and "program" not in load(backend).OPS:
        pytest.skip(f"backend {backend} runs no traced neurons")
    s, h, state = _fused(x, (v, trace), backend=backend, **parameters)
    return {"s": s, "h": h, "v": state.v, "trace": state.w}


_fused = snnkernels.fuse(_adapting, outputs=("x", "float32"))
OPS = {
    "lif": Op(_lif, ("x", "v", "decay", "v_threshold")),
    "lif refractory": Op(
        _with(reset="soft", refractory=2, record="h"),
        ("x", "v", "refractory", "decay", "v_threshold"),
    ),
    "lif general": Op(
        _with(reset="trace", regulariser=(0.2, 0.1), surrogate=snnkernels.ATan()),
        (
            *("x", "v", "synapse", "trace", "decay", "v_threshold"),
            *("gain", "trace_decay", "alpha", "beta"),
        ),
    ),
    "iir": Op(_iir, ("x", "alpha", "beta", "synapse")),
    "fuse": Op(_fuse, ("x", "v", "trace", "decay", "v_threshold", "gain")),
    "BNTT": Op(_bntt, ("x", "weight")),
}


# Factory functions: of sizes and numbers alone, and of another tensor, whose device they take.
OF_NUMBERS = ("empty", "empty_strided", "zeros", "ones", "full", "eye", "arange", "tensor")
OF_A_TENSOR = ("empty_like", "zeros_like", "ones_like", "full_like", "frombuffer")
METHODS = ("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")


@contextmanager
def allocations() -> Iterator[list[Tensor]]:
    """Collect what the engine makes with factory functions, which must name dtype and device.

    Raises:
        AssertionError: before anything writes into a tensor whose size is not what was meant.
    """
    made = []

    def watched(function: Callable) -> Callable:
        name = function.__name__

        def make(*arguments, **keywords):
            ours = sys._getframe(1).f_globals["__name__"].startswith("snnkernels.")
            if ours and name in OF_NUMBERS:
                missing = {"dtype", "device"} - keywords.keys()
                assert not missing, f"torch.{name} without {' and '.join(sorted(missing))}"
            out = function(*arguments, **keywords)
            if ours and out.device.type != "meta":
                made.append(out)
            return out

        return make

    with pytest.MonkeyPatch.context() as patch:
        for place, names in ((torch, OF_NUMBERS + OF_A_TENSOR), (Tensor, METHODS)):
            for name in names:
                patch.setattr(place, name, watched(getattr(place, name)))
        yield made
