"""What "equal" means: bit for bit, and the bound for gradients of parameters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import snnkernels
from snnkernels import Gaussian, Sigmoid, State
from tests.tools import naive
from tests.tools.cases import Inputs, Neuron

EPS = torch.finfo(torch.float32).eps
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Result(NamedTuple):
    """Outputs and gradients of one call; None where there is none."""

    s: Tensor
    v: Tensor
    refractory: Tensor | None
    h: Tensor | None
    dx: Tensor | None
    dv0: Tensor | None
    ddecay: Tensor | None
    dv_threshold: Tensor | None


def run(inputs: Inputs, neuron: Neuron, backend: str, gradients: bool = True) -> Result:
    """Call `snnkernels.lif` and differentiate by everything that has a derivative."""
    want = {"x": inputs.x, "decay": inputs.decay, "v_threshold": inputs.v_threshold}
    if inputs.state is not None:
        want["v"] = inputs.state.v
    want = {
        k: p.detach().requires_grad_(gradients) if isinstance(p, Tensor) else p
        for k, p in want.items()
    }
    state = None if inputs.state is None else State(want["v"], inputs.state.refractory)
    s, state, *h = snnkernels.lif(
        want["x"],
        state,
        decay=want["decay"],
        v_threshold=want["v_threshold"],
        backend=backend,
        **neuron.options(),
    )
    outputs, arriving = [s, state.v, *h], [inputs.ds, inputs.dv, inputs.dh]
    found = dict.fromkeys(("x", "v", "decay", "v_threshold"))
    used = [(o, g) for o, g in zip(outputs, arriving, strict=False) if o.requires_grad]
    if used:
        leaves = {k: p for k, p in want.items() if isinstance(p, Tensor)}
        found |= zip(
            leaves,
            torch.autograd.grad(
                [o for o, _ in used],
                list(leaves.values()),
                [g for _, g in used],
                allow_unused=True,
                materialize_grads=True,
            ),
            strict=True,
        )
    return Result(
        s.detach(),
        state.v.detach(),
        state.refractory,
        h[0].detach() if h else None,
        *found.values(),
    )


def assert_same(got: Tensor, want: Tensor, what: str = "", strides: bool = True) -> None:
    """Equal in dtype, shape, strides and every bit; NaN equals NaN whatever its payload."""
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert got.device == want.device, f"{what}: on {got.device}, expected {want.device}"
    if strides:
        assert got.stride() == want.stride(), (
            f"{what}: strides {got.stride()}, expected {want.stride()}"
        )
    bits = _BITS[got.element_size()]
    differ = got.contiguous().view(bits) != want.contiguous().view(bits)
    differ &= ~(got.isnan() & want.isnan())
    if differ.any():
        where = differ.nonzero()[0].tolist()
        first = tuple(where)
        raise AssertionError(
            f"{what}: {int(differ.sum())} of {differ.numel()} differ, first at {where}: "
            f"{got[first].item()!r}, expected {want[first].item()!r}"
        )


def assert_few_ulp(got: Tensor, want: Tensor, what: str = "") -> None:
    """For surrogates with an exponential: 16 units in the last place of the value or the largest.

    The gradient of a step is a sum over later ones, so an error is in proportion to the largest.
    """
    assert got.dtype == want.dtype and got.shape == want.shape, what
    finite = want[want.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 0.0
    torch.testing.assert_close(
        got,
        want,
        rtol=16 * torch.finfo(got.dtype).eps,
        atol=16 * EPS * scale,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def assert_parameter_grad_close(got: Tensor, eager: Tensor, terms: Tensor, what: str = "") -> None:
    """||g - g64|| <= max(2 ||eager - g64||, 8 eps sum|terms|).

    Args:
        got: the gradient, 0-d or [C].
        eager: the reference's in float32.
        terms: what it is the sum of in float64, one per step and neuron [T, N, *].
        what: names it.
    """
    assert got.dtype == eager.dtype and got.shape == eager.shape, what
    dims = [d for d in range(terms.ndim) if not (got.ndim and d == 2)]
    g64, size = terms.sum(dims), terms.abs().sum(dims)
    error, allowed = (got.double() - g64).norm(), (eager.double() - g64).norm()
    bound = torch.maximum(2 * allowed, 8 * EPS * size.norm())
    assert error <= bound, f"{what}: off by {error:.3g}, allowed {bound:.3g}; {got} for {g64}"


def exact_gradients(neuron: Neuron, device: str) -> bool:
    """Whether gradients of x and v must have the reference's bits on a device."""
    if device == "cpu":
        return not isinstance(neuron.surrogate, (Gaussian, Sigmoid))
    return type(neuron.surrogate).__name__ in ("Triangle", "Rectangle")


class Expected(NamedTuple):
    """What a backend must give for some inputs."""

    inputs: Inputs
    neuron: Neuron
    result: Result
    terms: tuple[Tensor, Tensor] | None  # of the parameters' gradients, see naive.parameter_terms


def expected(inputs: Inputs, neuron: Neuron) -> Expected:
    """Run the reference. Gradients of parameters are left out where inputs are not all finite."""
    result = run(inputs, neuron, "torch")
    terms = None
    if result.ddecay is not None and inputs.x.numel() and bool(inputs.x.isfinite().all()):
        terms = naive.parameter_terms(inputs.to("cpu"), neuron, result.s.cpu())
    return Expected(inputs, neuron, result, terms)


def assert_matches(got: Result, expected: Expected) -> None:
    """A backend's result is the reference's, by the numeric contract."""
    want = expected.result
    assert_same(got.s, want.s, "s")
    assert_same(got.v, want.v, "state.v", strides=False)
    for name in ("refractory", "h"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None), name
        if b is not None:
            assert_same(a, b, name, strides=name == "h")
    exact = exact_gradients(expected.neuron, expected.inputs.x.device.type)
    for name in ("dx", "dv0"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None), name
        if b is None:
            continue
        if exact:
            assert_same(a, b, name, strides=False)
        else:
            assert_few_ulp(a, b, name)
    if got.dx is not None:
        layout = torch.empty_like(expected.inputs.x).stride()
        assert got.dx.stride() == layout, f"dx has strides {got.dx.stride()}, x's are {layout}"
    if expected.terms is not None:
        for name, terms in zip(("ddecay", "dv_threshold"), expected.terms, strict=True):
            pair = (getattr(result, name).cpu() for result in (got, want))
            assert_parameter_grad_close(*pair, terms, name)
