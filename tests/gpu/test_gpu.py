"""What only a GPU can show: bits on the device, streams, graphs, and that nothing waits."""

from __future__ import annotations

import pytest
import torch

import snnkernels
from snnkernels.backends import cuda, load, why_unavailable
from snnkernels.backends.cuda import jit as cuda_jit
from snnkernels.ops.bntt import _kernels as kernels_of_bntt
from tests.engine import test_bntt as bntt
from tests.tools.cases import DTYPES, NEURONS, Shape, make_inputs
from tests.tools.compare import assert_matches, assert_same, expected, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


@pytest.fixture(params=("triton", "cuda"))
def backend(request):
    reason = why_unavailable(request.param, "cuda")
    if reason:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


def plain(x, backend):
    s, state = snnkernels.lif(x, decay=0.9, backend=backend)
    return s, state.v


def general(x, backend):
    ones = torch.ones(2, device=x.device)  # numbers would have to come from the host
    s, state = snnkernels.lif(
        x, reset="trace", trace_decay=0.6, synapse=(ones * 0.4, ones), gain=0.7, backend=backend
    )
    return s, state.v


def filtered(x, backend):
    ones = torch.ones(2, device=x.device)
    f, state = snnkernels.iir(x, ones * 0.4, ones, sequential=True, backend=backend)
    return f, state


NAMES = ("out", "last", "dx")
CALLS = {"plain": plain, "general": general, "filter": filtered}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def forward_and_backward(x, ds, backend, call=plain):
    """Spikes (or the filter's output), last state and dx of one call."""
    x = x.detach().requires_grad_()
    out, last = call(x, backend)
    return out, last, torch.autograd.grad(out, x, ds)[0]


def inputs_on_gpu(steps, neurons, dtype=torch.float32, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(steps, neurons, device="cuda", generator=generator) + 0.2
    ds = torch.randn(steps, neurons, device="cuda", generator=generator)
    return x.to(dtype), ds.to(dtype)


# Each row leads to another kernel: rings, narrow and wide threads, short and long sequences.
@dtypes
@pytest.mark.parametrize(
    "sizes", [(300, 4096), (64, 70_000), (33, 1 << 18), (16, 1 << 20), (4, 1 << 20), (7, 100_003)]
)
def test_large_inputs_equal_eager_pytorch(backend, sizes, dtype):
    x, ds = inputs_on_gpu(*sizes, dtype)
    got, want = (forward_and_backward(x, ds, b) for b in (backend, "torch"))
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert_same(a.detach(), b.detach(), name)


def test_kernels_compiled_at_run_time_equal_eager_pytorch(monkeypatch, tmp_path):
    if reason := why_unavailable("cuda", "cuda") or cuda_jit.why_unavailable():
        pytest.skip(reason)
    monkeypatch.setattr(cuda, "_way", lambda: ("run time", cuda_jit, ""))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for sizes in ((300, 4096), (20, 1 << 18)):
        x, ds = inputs_on_gpu(*sizes)
        got, want = (forward_and_backward(x, ds, b) for b in ("cuda", "torch"))
        for name, a, b in zip(NAMES, got, want, strict=True):
            assert_same(a.detach(), b.detach(), name)


@pytest.mark.parametrize("name", NEURONS)
def test_options_equal_eager_pytorch(backend, name):
    for sizes in ((37, 2, 3, 8), (70, 1, 2, 4096), (5, 2, 3, 7)):
        inputs = make_inputs(Shape(sizes), NEURONS[name]).to("cuda")
        want = expected(inputs, NEURONS[name])
        assert_matches(run(inputs, NEURONS[name], backend), want)


@calls
def test_streams_do_not_meet(backend, call):
    parts = [inputs_on_gpu(200, 8192, seed=k) for k in range(4)]
    want = [forward_and_backward(*part, "torch", call) for part in parts]
    streams = [torch.cuda.Stream() for _ in parts]
    torch.cuda.synchronize()
    got = []
    for stream, part in zip(streams, parts, strict=True):
        with torch.cuda.stream(stream):
            got.append(forward_and_backward(*part, backend, call))
    torch.cuda.synchronize()
    for ours, theirs in zip(got, want, strict=True):
        for name, a, b in zip(NAMES, ours, theirs, strict=True):
            assert_same(a.detach(), b.detach(), name)


@calls
@pytest.mark.parametrize("sizes", [(128, 4096), (20, 1 << 18)])
def test_a_graph_replays_a_call(backend, sizes, call):
    x, ds = inputs_on_gpu(*sizes)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):  # compiles what is compiled at run time
        forward_and_backward(x, ds, backend, call)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = forward_and_backward(x, ds, backend, call)
    fresh = inputs_on_gpu(*sizes, seed=1)
    x.copy_(fresh[0]), ds.copy_(fresh[1])
    graph.replay()
    torch.cuda.synchronize()
    want = forward_and_backward(*fresh, "torch", call)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert_same(a.detach(), b.detach(), name)


WAITLESS = {
    "number": lambda x, b: snnkernels.lif(x, decay=0.9, backend=b)[0],
    "tensor": lambda x, b: snnkernels.lif(
        x, decay=torch.full((), 0.9, device="cuda", requires_grad=True), backend=b
    )[0],
    "synapse": lambda x, b: snnkernels.lif(
        x, reset="soft", synapse=([0.5, 0.2], [1.0, 0.1]), gain=0.7, backend=b
    )[0],
    "regulariser": lambda x, b: sum(
        y.float().sum() for y in snnkernels.lif(x, regulariser=(0.1, 0.0), backend=b)[::2]
    ),
    "filter": lambda x, b: snnkernels.iir(x, [0.5, 0.2], [1.0, 0.1], backend=b)[0],
}


@pytest.mark.parametrize("name", WAITLESS)
def test_nothing_waits_for_the_device(backend, name):
    x, _ = inputs_on_gpu(20, 1 << 16)
    x.requires_grad_()

    def call():
        out = WAITLESS[name](x, backend)
        out.backward(torch.ones_like(out))

    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # sees PyTorch's own waits
    try:
        busy = torch.cuda.Event()
        torch.cuda._sleep(400_000_000)  # about 0.2 s: the calls below must return before it ends
        busy.record()
        call()
        assert not busy.query(), "the call returned only after the device was done"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


@dtypes
@pytest.mark.parametrize("shape", [(50, 4, 32, 32, 32), (3, 2, 512, 9, 7), (2, 5, 131, 16, 16)])
def test_bntt_equals_float64_and_itself(shape, dtype):
    """One batch norm per step; the kernels are Triton's where it is there, nothing waits."""
    x, weight, g = bntt.make(shape, dtype, device="cuda")
    want = bntt.exact(x, weight, g)

    def call():
        out, mean, rstd = torch.ops.snnkernels.bntt_forward(x, weight, bntt.EPS)
        return out, mean, rstd, *torch.ops.snnkernels.bntt_backward(g, x, mean, rstd, weight)

    got = call()
    bntt.assert_near(got, want, dtype)
    if why_unavailable("triton", "cuda") is None:
        assert kernels_of_bntt(x) is load("triton")
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for a, b in zip(got, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_a_second_device(backend):
    x, ds = (t.to("cuda:1") for t in inputs_on_gpu(40, 5000))
    got, want = (forward_and_backward(x, ds, b) for b in (backend, "torch"))
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert_same(a.detach(), b.detach(), name)


def test_a_chunk_that_runs_again_finds_the_devices_random_numbers(backend):
    torch.manual_seed(0)
    x = torch.rand(12, 4, 50, device="cuda", requires_grad=True)
    masked = snnkernels.checkpoint_time(torch.nn.Dropout(0.5), x, 4)
    before = torch.cuda.get_rng_state()
    (dx,) = torch.autograd.grad(masked.sum(), x)
    assert torch.equal(dx != 0, masked != 0)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    layer = snnkernels.LIF(decay=0.9, backend=backend)
    s = snnkernels.checkpoint_time(layer, x, 4)
    want = layer(x)
    assert torch.equal(s, want)
    ds = torch.rand_like(s)
    assert torch.equal(torch.autograd.grad(s, x, ds)[0], torch.autograd.grad(want, x, ds)[0])
