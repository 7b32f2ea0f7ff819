"""The filter: against scipy, against the reference bit for bit, and its gradients."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch

import snnkernels
from snnkernels.backends import choose, max_order
from snnkernels.ops._checks import check_filter
from tests.tools.compare import assert_parameter_grad_close, assert_same
from tests.tools.emulation import ON_HOST, emulator, emulator_library  # noqa: F401  (fixtures)
from tests.tools.targets import TARGETS

KERNELS = [t for t in TARGETS if hasattr(snnkernels.backends.load(t.backend), "iir_forward")]
ORDERS = list(itertools.product((0, 1, 2, 4, 6), (0, 1, 2, 4, 6)))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=[t.param() for t in (*KERNELS, ON_HOST)])
def kernel(request):
    if request.param is ON_HOST:
        request.getfixturevalue("emulator")
        request.getfixturevalue("nan_filled")
    with request.param.chosen():
        yield request.param


def random_filter(P, Q, channels=None, dtype=torch.float32):
    """Coefficients with |alpha| summing below 1, so that every pole lies inside the unit circle."""
    shape = () if channels is None else (channels,)
    alpha = torch.rand(*shape, P) * 2 - 1
    return (0.9 * alpha / max(P, 1)).to(dtype), torch.randn(*shape, Q + 1).to(dtype)


def run(x, alpha, beta, state, df, dstate, backend, learn=True, **options):
    """Outputs and gradients of one call; without ``learn`` alpha and beta are fixed."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, alpha, beta, state)]
    for coefficient in leaves[1:3]:
        coefficient.requires_grad_(learn)
    f, after = snnkernels.iir(*leaves, backend=backend, **options)
    arriving = [(f, df), (after, dstate)]
    arriving = [(o, g) for o, g in arriving if g is not None and o.requires_grad and o.numel()]
    if not arriving:
        return f.detach(), after.detach()
    places = [k for k, t in enumerate(leaves) if t is not None and t.requires_grad]
    found = torch.autograd.grad(
        [o for o, _ in arriving],
        [leaves[k] for k in places],
        [g for _, g in arriving],
        allow_unused=True,
        materialize_grads=True,
    )
    grads = dict(zip(places, found, strict=True))
    return (f.detach(), after.detach(), *map(grads.get, range(len(leaves))))


def check(kernel, x, alpha, beta, state=None, df=None, dstate=None, learn=True):
    x, alpha, beta, state, df, dstate = (
        None if t is None else t.to(kernel.device) for t in (x, alpha, beta, state, df, dstate)
    )
    got = run(x, alpha, beta, state, df, dstate, kernel.backend, learn)
    want = run(x, alpha, beta, state, df, dstate, "torch", learn)
    names = ["f", "state", "dx", "dalpha", "dbeta", "dstate"]
    for name, a, b in zip(names, got, want, strict=False):
        if name in ("dalpha", "dbeta") or b is None:
            continue  # test_coefficient_gradients
        assert_same(a, b, name, strides=name == "f")
    if len(got) > 2:
        assert got[2].stride() == torch.empty_like(x).stride(), "dx has x's memory format"


@pytest.mark.parametrize(("P", "Q"), ORDERS)
def test_equals_the_reference(kernel, P, Q):
    if max(P, Q) > max_order(kernel.backend):
        x = torch.zeros(1, 1, device=kernel.device)
        with pytest.raises(ValueError, match="order 6; the kernels take up to 4 with backend"):
            snnkernels.iir(x, [0.0] * P, [0.0] * (Q + 1), backend=kernel.backend)
        return
    cases = itertools.product((None, 5), (1, 3, 21), DTYPES, (False, True))
    for channels, T, dtype, with_state in kernel.some(cases, 7 * ORDERS.index((P, Q))):
        x = torch.randn(T, 2, 5, 3).to(dtype)
        alpha, beta = random_filter(P, Q, channels)
        state = torch.randn(P + Q, 2, 5, 3) if with_state else None
        dstate = torch.randn(P + Q, 2, 5, 3)
        check(kernel, x, alpha, beta, state, torch.randn_like(x), dstate)


@pytest.mark.parametrize(("P", "Q"), [(0, 0), (1, 2), (4, 3), (0, 4), (4, 0)])
def test_the_adjoint_alone_equals_the_reference(kernel, P, Q):
    cases = itertools.product((None, 5), (1, 3, 37), (False, True))
    for channels, T, with_state in kernel.some(cases, 7 * P + 4 * Q):
        x, alpha_beta = torch.randn(T, 2, 5, 3), random_filter(P, Q, channels)
        state = torch.randn(P + Q, 2, 5, 3) if with_state else None
        dstate = torch.randn(P + Q, 2, 5, 3)
        check(kernel, x, *alpha_beta, state, torch.randn_like(x), dstate, learn=False)


@pytest.mark.parametrize(
    "shape", [(40, 1100), (3, 2, 2, 700), (200, 1), (5, 0), (0, 4), (17, 3, 65)]
)
def test_shapes(kernel, shape):
    alpha, beta = random_filter(2, 1)
    if kernel.interpreted:
        shape = (min(shape[0], 40), *shape[1:])
    x = torch.randn(shape)
    check(kernel, x, alpha, beta, None, torch.randn(shape), torch.randn(3, *shape[1:]))


def _layouts():
    x = torch.randn(18, 2, 5, 4, 3)
    yield "transposed", torch.randn(2, 18, 5, 4).transpose(0, 1)
    flat = x.flatten(0, 1).to(memory_format=torch.channels_last)
    yield "channels_last", flat.unflatten(0, (18, 2))
    yield "over_time", torch.randn(1, 2, 5, 4).expand(18, -1, -1, -1)
    yield "time_innermost", torch.randn(2, 5, 4, 18).permute(3, 0, 1, 2)
    yield "strided", torch.randn(18, 2, 5, 8)[..., ::2]


@pytest.mark.parametrize("name", [name for name, _ in _layouts()])
def test_layouts(kernel, name):
    x = dict(_layouts())[name]
    alpha, beta = random_filter(2, 1, channels=5)
    state = torch.randn(*x.shape[1:], 3).movedim(-1, 0)
    for df in (torch.randn_like(x), torch.randn(x.shape), torch.ones(()).expand(x.shape)):
        check(kernel, x, alpha, beta, state, df, torch.randn(3, *x.shape[1:]))


def _poles(radius):
    """Coefficients of order 4 with two pairs of poles at |z| = radius."""
    roots = [radius * np.exp(1j * w) for w in (0.3, 1.1)]
    a = np.real(np.poly([*roots, *np.conj(roots)]))
    b = np.array([0.3, -0.2, 0.5, 0.1, 0.25])
    return b, a


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.98])
def test_against_scipy(radius):
    signal = pytest.importorskip("scipy.signal")
    T = 10_000
    b, a = _poles(radius)
    x = np.random.default_rng(0).standard_normal((T, 6))
    b32, a32, x32 = (v.astype(np.float32) for v in (b, a, x))
    # What every float32 filter is given: the same numbers, rounded, in float64.
    want = signal.lfilter(b32.astype(float), a32.astype(float), x32.astype(float), axis=0)
    own = np.abs(signal.lfilter(b32, a32, x32, axis=0) - want).max()
    coefficients = torch.tensor(-a32[1:]), torch.tensor(b32)
    for kernel in KERNELS:
        if kernel.interpreted:
            continue
        with kernel.chosen():
            f, _ = snnkernels.iir(
                torch.tensor(x32, device=kernel.device),
                *(c.to(kernel.device) for c in coefficients),
                backend=kernel.backend,
            )
        error = np.abs(f.cpu().double().numpy() - want).max()
        assert error <= max(4 * own, 1e-5 * np.abs(want).max()), kernel

    want = signal.lfilter(b, a, x, axis=0)
    f, _ = snnkernels.iir(torch.tensor(x), torch.tensor(-a[1:]), torch.tensor(b))
    assert np.abs(f.numpy() - want).max() <= 1e-12 * np.abs(want).max()


@pytest.mark.parametrize(("P", "Q"), [(1, 0), (2, 1), (0, 3), (4, 4)])
def test_splitting_a_call_changes_no_bit(kernel, P, Q):
    alpha, beta = (c.to(kernel.device) for c in random_filter(P, Q))
    x = torch.randn(23, 3, 7, device=kernel.device)
    whole, end = snnkernels.iir(x, alpha, beta, backend=kernel.backend)
    for cut in (1, 2, 16, 22):
        first, state = snnkernels.iir(x[:cut], alpha, beta, backend=kernel.backend)
        second, state = snnkernels.iir(x[cut:], alpha, beta, state, backend=kernel.backend)
        assert torch.equal(torch.cat([first, second]), whole)
        assert torch.equal(state, end)


@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_coefficient_gradients(kernel, dtype, channels):
    P, Q, T = 2, 2, 27 if kernel.interpreted else 83
    x = torch.randn(T, 3, 5, 4).to(dtype)
    alpha, beta = random_filter(P, Q, channels)
    state, df = torch.randn(P + Q, 3, 5, 4), torch.randn(T, 3, 5, 4).to(dtype)
    dstate = torch.randn(P + Q, 3, 5, 4)
    arguments = [t.to(kernel.device) for t in (x, alpha, beta, state, df, dstate)]
    _, _, _, dalpha, dbeta, _ = run(*arguments, kernel.backend)
    _, _, _, dalpha_eager, dbeta_eager, _ = run(*arguments, "torch")

    # In float64: the total gradient g on every f[t], whose products with f[t-p] and x[t-q] add up.
    x, alpha, beta, state, df, dstate = (t.double() for t in (x, alpha, beta, state, df, dstate))
    f, _ = snnkernels.iir(x, alpha, beta, state)
    df[-P:] += dstate[:P].flip(0)
    g, _ = snnkernels.iir(df.flip(0), alpha, torch.ones(1, dtype=torch.float64))
    g = g.flip(0)
    f = torch.cat([state[:P].flip(0), f])
    x = torch.cat([state[P:].flip(0), x])
    for p in range(1, P + 1):
        terms = g * f[P - p : P - p + T]
        pick = [d[..., p - 1].cpu() for d in (dalpha, dalpha_eager)]
        assert_parameter_grad_close(*pick, terms, f"alpha[{p}]")
    for q in range(Q + 1):
        terms = g * x[Q - q : Q - q + T]
        pick = [d[..., q].cpu() for d in (dbeta, dbeta_eager)]
        assert_parameter_grad_close(*pick, terms, f"beta[{q}]")


@pytest.mark.parametrize("channels", [None, 2])
def test_gradcheck(channels):
    alpha, beta = random_filter(2, 2, channels, torch.float64)
    x, state = torch.randn(5, 2, 2, 1).double(), torch.randn(4, 2, 2, 1).double()
    leaves = [t.requires_grad_() for t in (x, alpha, beta, state)]
    assert torch.autograd.gradcheck(snnkernels.iir, leaves)


def test_nothing_is_kept_for_the_adjoint_filter(kernel):
    def saved_bytes(learn):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(64, 4, 32, device=kernel.device, requires_grad=True)
        alpha, beta = (c.to(kernel.device).requires_grad_(learn) for c in random_filter(2, 1))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            snnkernels.iir(x, alpha, beta, backend=kernel.backend)
        return sum(kept.values()), x.numel() * 4

    bytes_fixed, size = saved_bytes(False)
    bytes_learned, _ = saved_bytes(True)
    assert bytes_fixed < 100
    assert bytes_learned <= size + 2 * size // 8 + 100  # x, and two outputs every 8 or 16 steps


def test_threads_change_no_bit():
    before = torch.get_num_threads()
    alpha, beta = random_filter(2, 1, channels=9)
    x, df = torch.randn(2, 70, 8, 9, 33)
    state, results = torch.randn(3, 8, 9, 33), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(x, alpha, beta, state, df, None, "auto"))
    torch.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("channels", [None, 3])
def test_opcheck(kernel, channels):
    alpha, beta = random_filter(2, 1, channels)
    c = 1 if channels is None else channels
    alpha, beta = alpha.view(c, 2).t().contiguous(), beta.view(c, 2).t().contiguous()
    x, state, df, alpha, beta = (
        t.to(kernel.device)
        for t in (torch.randn(20, 2, 3), torch.randn(3, 2, 3), torch.randn(20, 2, 3), alpha, beta)
    )
    ops = torch.ops.snnkernels
    call = (x, state, alpha, beta, 16, 0, kernel.backend)
    torch.library.opcheck(ops.iir_forward.default, call)
    checkpoints = ops.iir_forward(*call)[2]
    wanted = [True] * 4
    backward = (
        df,
        state,
        alpha,
        beta,
        x,
        state,
        checkpoints,
        x.stride(),
        16,
        wanted,
        0,
        kernel.backend,
    )
    torch.library.opcheck(ops.iir_backward.default, backward)


@pytest.mark.slow
def test_compiles_fullgraph():
    alpha, beta = (c.requires_grad_() for c in random_filter(2, 1))
    x = torch.randn(12, 2, 3, requires_grad=True)

    def f(x, alpha, beta):
        return snnkernels.iir(x, alpha, beta)[0].square().sum()

    want = torch.autograd.grad(f(x, alpha, beta), (x, alpha, beta))
    compiled = torch.compile(f, fullgraph=True)
    got = torch.autograd.grad(compiled(x, alpha, beta), (x, alpha, beta))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(4)}, ValueError, "x must be"),
        ({"alpha": torch.tensor([float("nan")])}, ValueError, "alpha must not be NaN"),
        ({"beta": torch.tensor([float("nan")])}, ValueError, "beta must not be NaN"),
        ({"alpha": torch.zeros(2, 2, 2)}, ValueError, r"alpha must be \[P\]"),
        ({"beta": torch.zeros(0)}, ValueError, r"beta must be \[Q \+ 1\]"),
        ({"beta": torch.zeros(4, 1)}, ValueError, r"beta must be \[3, Q \+ 1\]"),
        ({"alpha": torch.zeros(2).bool()}, TypeError, "alpha must be a tensor of numbers"),
        ({"alpha": "abc"}, TypeError, "alpha must be a tensor or a sequence"),
        ({"alpha": torch.zeros(65), "backend": "cpp"}, ValueError, "alpha has order 65"),
        ({"beta": torch.zeros(66), "backend": "cpp"}, ValueError, "beta has order 65"),
        ({"state": torch.zeros(1, 2, 3)}, ValueError, r"state must be \[P \+ Q, N, \*\]"),
        ({"state": torch.zeros(2, 2, 3).bool()}, TypeError, "state must be a tensor of numbers"),
        ({"backend": "fast"}, ValueError, "backend must be"),
        ({"x": torch.zeros(4, 2, 3).double(), "backend": "cpp"}, TypeError, "float64"),
    ],
)
def test_errors_name_the_argument(changes, error, words):
    arguments = {"x": torch.zeros(4, 2, 3), "alpha": torch.zeros(1), "beta": torch.zeros(2)}
    with pytest.raises(error, match=words):
        snnkernels.iir(**{**arguments, **changes})


def test_numbers_are_copied_to_a_device_once():
    x = torch.zeros(4, 2, 3, device="meta")  # stands for a GPU
    with torch.inference_mode():
        first = check_filter("", [0.5, 0.25], [[1.0]] * 3, x)
    for k, shape in enumerate(((2,), (3, 1))):
        again = check_filter("", [0.5, 0.25], [[1.0]] * 3, x)[k]
        assert again is first[k] and again.shape == shape and not again.is_inference()
    assert check_filter("", [0.5, 0.25], [1.0], x.bfloat16())[0] is first[0]
    with pytest.raises(ValueError, match="alpha must not be NaN"):
        check_filter("", [float("nan")], [1.0], x)


def test_a_second_derivative_is_an_error():
    x = torch.randn(5, 2, requires_grad=True)
    (dx,) = torch.autograd.grad(
        snnkernels.iir(x, [0.5], [1.0], backend="cpp")[0].square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        dx.sum().backward()


def test_orders_that_a_kernel_takes(kernel):
    most = max_order(kernel.backend)
    x, alpha, beta = (t.to(kernel.device) for t in (torch.randn(5, 1, 3), *random_filter(1, most)))
    f, _ = snnkernels.iir(x, alpha, beta, backend=kernel.backend)
    assert_same(f, snnkernels.iir(x, alpha, beta, backend="torch")[0])
    with pytest.raises(ValueError, match=f"beta has order {most + 1}; .* up to {most}"):
        snnkernels.iir(x, alpha, torch.cat([beta, beta[:1]]), backend=kernel.backend)


def test_auto_takes_any_order():
    alpha = torch.zeros(65)
    f, _ = snnkernels.iir(torch.ones(3, 1), alpha, [1.0])
    assert f.flatten().tolist() == [1.0, 1.0, 1.0]


def test_auto_is_the_kernel_where_there_is_one():
    assert choose("auto", "cpu", torch.float32, "iir") == "cpp"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f, _ = snnkernels.iir(torch.ones(3, 1), [0.5], [1.0])
    assert f.flatten().tolist() == [1.0, 1.5, 1.75]
