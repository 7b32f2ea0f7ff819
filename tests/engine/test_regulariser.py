"""The potential regulariser inside the neuron: against the loss of recorded potentials."""

from __future__ import annotations

import copy

import pytest
import torch

import snnkernels
from snnkernels import LIF, Triangle
from snnkernels.backends import choose, load
from snnkernels.core.call import Arriving, Call, Coefficient, Gradients
from snnkernels.nn import losses
from tests.engine.test_general import PARTS, RESETS, make, run
from tests.tools.compare import EPS, assert_same
from tests.tools.emulation import ON_HOST, emulator, emulator_library  # noqa: F401  (fixtures)
from tests.tools.targets import TARGETS

KERNELS = [t for t in TARGETS if "regulariser" in getattr(load(t.backend), "OPS", ())]
REGULARISER = (0.3, -0.1)
pytestmark = pytest.mark.usefixtures("nan_filled")


@pytest.fixture(params=[t.param() for t in (*KERNELS, ON_HOST)])
def kernel(request):
    if request.param is ON_HOST:
        request.getfixturevalue("emulator")
    with request.param.chosen():
        yield request.param


def assert_equal_runs(got, want):
    """Outputs and gradients bit for bit, but for sums over neurons."""
    for a, b in zip(got, want, strict=True):
        for name in ("s", "v", "synapse", "trace", "x"):
            if name in b:
                assert_same(a[name], b[name], name, strides=False)
    torch.testing.assert_close(got[0]["penalty"], want[0]["penalty"], rtol=32 * EPS, atol=0.0)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_equals_the_reference(kernel, parts, reset):
    orders, per_channel, gain, refractory, detach = parts
    options = {"reset": reset, "refractory": refractory, "detach_reset": detach}
    turn = PARTS.index(parts) + RESETS.index(reset)
    for dtype in kernel.some((torch.float32, torch.bfloat16), turn):
        x, want, arriving = make((37, 2, 5, 3), orders, per_channel, gain, reset, dtype)
        arriving["penalty"] = torch.tensor(300.0)
        options |= {"surrogate": Triangle(width=2.0), "regulariser": REGULARISER}
        got = run(x, want, arriving, kernel.backend, kernel.device, **options)
        assert_equal_runs(got, run(x, want, arriving, "torch", kernel.device, **options))


@pytest.mark.parametrize("shape", [(40, 1100), (1, 3, 7), (17, 3, 65), (0, 2, 3)])
def test_shapes(kernel, shape):
    x, want, arriving = make(shape, None, False, None, "soft")
    arriving["penalty"] = torch.tensor(300.0)
    options = {"reset": "soft", "regulariser": REGULARISER}
    got = run(x, want, arriving, kernel.backend, kernel.device, **options)
    assert_equal_runs(got, run(x, want, arriving, "torch", kernel.device, **options))


@pytest.mark.parametrize("recorded", (False, True))
@pytest.mark.parametrize("per_channel", (False, True))
def test_equals_the_loss_of_recorded_potentials(kernel, recorded, per_channel):
    """Also beside another gradient on recorded potentials, and for the spikes' own."""
    x = torch.randn(37, 4, 5, 3, device=kernel.device)
    ds, dh = torch.randn_like(x), torch.randn_like(x)
    theta = 0.9 + 0.2 * torch.rand(5 if per_channel else (), device=kernel.device)
    tolerance, shift = REGULARISER
    found = []
    for fused in (False, True):
        leaf, learned = x.clone().requires_grad_(), theta.clone().requires_grad_()
        more = {"regulariser": REGULARISER} if fused else {}
        record = "h" if recorded or not fused else None
        s, _, *rest = snnkernels.lif(
            leaf, v_threshold=learned, record=record, backend=kernel.backend, **more
        )
        h = rest[0] if record else None
        penalty = (
            rest[-1]
            if fused
            else losses.potential_regulariser(h, learned, tolerance=tolerance, shift=shift)
        )
        loss = (s * ds).sum() + 50 * penalty + ((h * dh).sum() if recorded else 0)
        found.append((penalty.detach(), *torch.autograd.grad(loss, (leaf, learned))))
    (penalty, dx, dtheta), (want, want_dx, want_dtheta) = reversed(found)
    assert want > 0.01
    torch.testing.assert_close(penalty, want, rtol=32 * EPS, atol=0.0)
    assert_same(dx, want_dx, "dx")
    size = x.numel() ** 0.5
    torch.testing.assert_close(dtheta, want_dtheta, rtol=0.0, atol=64 * EPS * size)


def test_absent_or_unused_it_changes_no_bit(kernel):
    x = torch.randn(40, 3, 9, device=kernel.device)
    ds = torch.randn_like(x)
    found = []
    for more in ({}, {"regulariser": REGULARISER}):
        leaf = x.clone().requires_grad_()
        s, state, *_ = snnkernels.lif(leaf, backend=kernel.backend, **more)
        found.append((s.detach(), state.v.detach(), *torch.autograd.grad(s, leaf, ds)))
    for a, b in zip(*found, strict=True):
        assert_same(a, b)


def make_call(**options) -> Call:
    decay, threshold = Coefficient(number=0.5), Coefficient(number=1.0)
    return Call(decay=decay, v_threshold=threshold, **options)


def test_no_potential_is_stored(kernel):
    """One more number, whatever T and N, and nothing more is kept for the backward pass."""
    x = torch.randn(64, 3, 50, device=kernel.device, requires_grad=True)
    every = load(kernel.backend).CHECKPOINT_EVERY
    outputs, kept = [], []
    for regularise in (0, 1):
        call = make_call(checkpoint_every=every, regularise=regularise)
        tensors, *rest = call.flatten()
        made = torch.ops.snnkernels.neuron_forward(x.detach(), *tensors, *rest, kernel.backend)
        outputs.append(sum(t.numel() * t.element_size() for t in made if t is not None))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.numel() * t.element_size()) or t, lambda t: t
        ):
            more = {"regulariser": REGULARISER} if regularise else {}
            snnkernels.lif(x, backend=kernel.backend, **more)
        kept.append(sum(saved))
    assert outputs[1] - outputs[0] == 4
    assert kept[1] == kept[0] > 0


def test_opcheck(kernel):
    ops = torch.ops.snnkernels
    x = torch.randn(20, 2, 3, device=kernel.device)
    tensors, *rest = make_call(checkpoint_every=16, regularise=1, tolerance=0.3).flatten()
    forward = (x, *tensors, *rest, kernel.backend)
    torch.library.opcheck(ops.neuron_forward.default, forward)
    checkpoints = ops.neuron_forward(*forward)[1]
    arriving = Arriving(penalty=torch.ones((), device=kernel.device))
    wanted = [name == "x" for name in Gradients._fields]
    backward = (x, *tensors, checkpoints, *arriving, *rest, kernel.backend, wanted)
    torch.library.opcheck(ops.neuron_backward.default, backward)


def test_layers_keep_their_penalty():
    net = torch.nn.Sequential(
        LIF(regulariser=(0.1, 0.0)), LIF(), LIF(regulariser=(0.2, 0.1), record="h")
    )
    with pytest.raises(ValueError, match="model must hold LIF layers with regulariser"):
        losses.layer_penalties(net)
    x = torch.randn(10, 2, 3, requires_grad=True)
    s, h = net(x)
    last = losses.potential_regulariser(h, 1.0, tolerance=0.2, shift=0.1)
    first = net[0].penalty
    torch.testing.assert_close(net[2].penalty, last)
    assert copy.deepcopy(net)[0].penalty is None, "a graph cannot be copied"
    total = losses.layer_penalties(net)
    torch.testing.assert_close(total, first + last)
    (dx,) = torch.autograd.grad(total, x)
    assert dx.abs().sum() > 0
    assert "regulariser=(0.1, 0.0)" in repr(net[0]) and "regulariser" not in repr(net[1])


def test_training_weights_it():
    from snnkernels.train.module import SpikingClassifier

    class Network(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean(0)

    network = Network(LIF(regulariser=(0.1, 0.0), detach_reset=True))
    x, y = torch.randn(5, 2, 3), torch.tensor([0, 2])
    plain, weighted = (
        SpikingClassifier(network, classes=3, regulariser=weight)._measure("train", (x, y))
        for weight in (0.0, 5.0)
    )
    network(x)
    torch.testing.assert_close(weighted - plain, 5 * losses.layer_penalties(network))
    with pytest.raises(ValueError, match="regulariser must be a weight"):
        SpikingClassifier(network, regulariser=-1.0)


def test_float64_and_compiled():
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    penalty = snnkernels.lif(x, regulariser=REGULARISER)[2]
    assert penalty.dtype == torch.float64
    compiled = torch.compile(
        lambda x: snnkernels.lif(x, regulariser=REGULARISER)[2], backend="aot_eager", fullgraph=True
    )
    x = x.float().requires_grad_()
    found = [(p, *torch.autograd.grad(p, x)) for p in (compiled(x), penalty_of(x))]
    for a, b in zip(*found, strict=True):
        assert_same(a, b)


def penalty_of(x):
    return snnkernels.lif(x, regulariser=REGULARISER)[2]


def test_errors_name_the_argument():
    x = torch.zeros(4, 2, 3)
    for wrong in (0.1, (0.1,), (True, 0.0), (torch.zeros(2), 0.0)):
        with pytest.raises(TypeError, match="regulariser must be None or a pair of numbers"):
            snnkernels.lif(x, regulariser=wrong)
    for wrong in ((-0.1, 0.0), (float("nan"), 0.0), (0.1, float("inf"))):
        with pytest.raises(ValueError, match="regulariser must"):
            snnkernels.lif(x, regulariser=wrong)


def test_a_backend_without_it_refuses(monkeypatch):
    monkeypatch.setattr(load("cpp"), "OPS", ("neuron", "general"))
    ask = choose.__wrapped__  # past the cache
    assert ask("auto", "cpu", torch.float32, "regulariser") == "torch"
    with pytest.raises(RuntimeError, match="no kernel for lif with regulariser"):
        ask("cpp", "cpu", torch.float32, "regulariser")
