"""torch.compile and torch.export: one graph for all sizes and for numbers that change."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

import snnkernels
from snnkernels import ATan, lif
from snnkernels.nn.neurons import se_adlif
from snnkernels.nn.norm import BNTT
from tests.tools.compare import assert_same

BACKENDS = ("torch", "cpp")


def everything(backend, x, a, b):
    """Every number of the neuron and of the filter, made of two that change."""
    regulariser = {"regulariser": (b, a)}
    neuron = {"decay": a, "v_threshold": b, "gain": a, "surrogate": ATan(b), "backend": backend}
    s, state, penalty = lif(x, b, v_reset=-b, **regulariser, **neuron)
    t, *_ = lif(s + x, reset="trace", trace_decay=a, synapse=([a], [b, a]), **neuron)
    f, _ = snnkernels.iir(t + x, [b, a], [a], backend=backend)
    return s.sum() + state.v.sum() + penalty + (f * x).sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_change(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(everything, backend=counter, fullgraph=True)
    x = torch.rand(3, 2, 4, requires_grad=True)
    for a in (0.9, 0.8, 0.7, 0.3):
        got, want = compiled(backend, x, a, 1 - a), everything(backend, x, a, 1 - a)
        assert_same(got.detach(), want.detach(), f"a = {a}")
        assert_same(*(torch.autograd.grad(out, x)[0] for out in (got, want)), f"dx, a = {a}")
    assert counter.frame_count <= 2  # with the first numbers, and with any


LAYERS = {
    "LIF": lambda: snnkernels.LIF(),
    "LIF with everything": lambda: snnkernels.LIF(
        reset="trace",
        trace_decay=0.5,
        synapse=([0.5], [1.0, 0.5]),
        gain=1.2,
        refractory=2,
        record="h",
        regulariser=(0.2, 0.1),
        learn_decay=True,
        channels=8,
    ),
    "Neuron": lambda: snnkernels.Neuron(se_adlif, learn=("alpha", "a"), channels=8),
    "LeakyReadout": lambda: snnkernels.LeakyReadout(decay=0.9),
    "LeakyReadout of means": lambda: snnkernels.LeakyReadout(decay=0.9, output="mean"),
    "IIRSynapse": lambda: snnkernels.IIRSynapse.dual_exponential(4.0, 2.0),
    "CurrentEncoder": lambda: snnkernels.CurrentEncoder(),
    "OverTime": lambda: snnkernels.OverTime(torch.nn.Linear(8, 8)),
    "BNTT": lambda: BNTT(8, 20),
}


def outputs(layer, x):
    out = layer(x)
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", LAYERS)
def test_export_with_any_batch(name):
    layer = LAYERS[name]().eval()
    sizes = {1: Dim("N", min=1, max=100_000)}
    with torch.no_grad():
        program = export(layer, (torch.rand(6, 2, 8),), dynamic_shapes=(sizes,)).module()
        for size in (1, 3, 10_000):  # outputs of the last lie in memory of earlier ones
            x = torch.rand(6, size, 8)
            for a, b in zip(outputs(program, x), outputs(layer, x), strict=True):
                assert_same(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_without_gradients(name):
    layer, x = LAYERS[name]().eval().requires_grad_(False), torch.rand(6, 2, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for a, b in zip(outputs(compiled, x), outputs(layer, x), strict=True):
        assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ("LIF with everything", "LeakyReadout of means", "IIRSynapse", "BNTT")
)
def test_compiled_training_with_any_batch(name):
    """One graph, a second one for any size, and not one for outputs beyond some size."""
    torch._dynamo.reset()
    layer = LAYERS[name]()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for size in (2, 3, 10_000):
        x = torch.rand(6, size, 8, requires_grad=True)
        found = []
        for run in (compiled, layer):
            out = outputs(run, x)
            found.append((*out, *torch.autograd.grad(sum(o.square().sum() for o in out), x)))
        for a, b in zip(*found, strict=True):  # BNTT's gradient is worked out from x, not from out
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2
