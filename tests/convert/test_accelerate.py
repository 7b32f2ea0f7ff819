"""`accelerate`, `restore`, `original`: the class changes, and nothing else that a user can see."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import snnkernels
from snnkernels.convert import swap
from tests.convert.compare import both, gradients, input_sequence, relative
from tests.tools import peer_tests

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: E402


def network() -> nn.Sequential:
    torch.manual_seed(3)
    net = nn.Sequential(
        layer.Linear(12, 16),
        neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()),
        layer.Linear(16, 16),
        neuron.ParametricLIFNode(detach_reset=True),
        layer.Linear(16, 3),
        neuron.IFNode(v_reset=None),
    )
    functional.set_step_mode(net, "m")
    return net


def x(batch: int = 4, steps: int = 20) -> torch.Tensor:
    return 4 * torch.randn(steps, batch, 12, generator=torch.Generator().manual_seed(5))


def test_the_object_stays_the_same():
    net = network()
    parameters, keys, modules = list(net.parameters()), list(net.state_dict()), list(net.modules())
    report = snnkernels.accelerate(net)
    assert [p is q for p, q in zip(net.parameters(), parameters, strict=True)] == [True] * 7
    assert list(net.state_dict()) == keys and list(net.modules()) == modules
    assert isinstance(net[1], neuron.LIFNode) and type(net[1]) is not neuron.LIFNode
    assert [entry.name for entry in report] == ["1", "3", "5"]
    snnkernels.restore(net)
    assert type(net[1]) is neuron.LIFNode and "_snnkernels" not in vars(net[1])


def test_original_is_a_context():
    net = network()
    report = snnkernels.accelerate(net)
    fused = type(net[1])
    with pytest.raises(ZeroDivisionError), snnkernels.original(net) as inner:
        assert inner is net and type(net[1]) is neuron.LIFNode
        1 / 0  # noqa: B018
    assert type(net[1]) is fused
    net(x())
    assert report["1"].fused == 1


def test_calls_in_a_row_reset_and_batch_size():
    theirs, ours = both(network)
    for batch in (4, 4, 7, 4):
        assert torch.equal(ours(x(batch)), theirs(x(batch)))
    for net in (ours, theirs):
        functional.reset_net(net)
    assert ours[1].v == theirs[1].v == 0.0
    assert torch.equal(ours(x()), theirs(x()))


def test_truncated_backpropagation_through_time():
    theirs, ours = both(network)
    for _ in range(3):
        a, b = x().requires_grad_(), x().requires_grad_()
        found = zip(gradients(ours, a, ours(a)), gradients(theirs, b, theirs(b)), strict=True)
        assert max(relative(g, h) for g, h in found) < 1e-6
        functional.detach_net(ours), functional.detach_net(theirs)
        assert not ours[1].v.requires_grad


def test_eval_autocast_and_inference_mode():
    theirs, ours = both(network)
    assert torch.equal(ours.eval()(x()), theirs.eval()(x()))
    with torch.inference_mode():
        assert torch.equal(ours(x()), theirs(x()))
    a = x().requires_grad_()
    ours.train()(a).sum().backward()  # goes on from a state of inference mode
    assert a.grad.count_nonzero()
    theirs, ours = both(network, allow_fp32_state=True)
    report = snnkernels.accelerate(ours, allow_fp32_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = ours(x())
    assert [entry.fused for entry in report] == [1, 1, 1] and ours[1].v.dtype == torch.float32
    assert spikes.dtype == torch.bfloat16


def test_state_dict_both_ways():
    theirs, ours = both(network)
    with torch.no_grad():
        ours[0].weight.mul_(1.5)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x()), theirs(x()))
    ours.load_state_dict(network().state_dict())
    functional.reset_net(ours)
    assert torch.equal(ours(x()), network()(x()))


@pytest.mark.parametrize("way", ["deepcopy", "save"])
def test_copies_run_fused_with_counts_of_their_own(way):
    net = network()
    report = snnkernels.accelerate(net)
    if way == "deepcopy":
        other = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other[1]) is type(net[1]) and other[1] is not net[1]
    assert torch.equal(other(x()), network()(x()))
    assert report["1"].fused == 0 and vars(other[1])["_snnkernels"].entry.fused == 1
    snnkernels.restore(other)
    assert type(other[1]) is neuron.LIFNode


def test_hooks_step_modes_and_recorded_potentials():
    theirs, ours = both(network)
    seen = []
    ours[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    for net in (ours, theirs):
        net[1].store_v_seq = net[3].store_v_seq = True
    assert torch.equal(ours(x()), theirs(x())) and len(seen) == 1
    assert torch.equal(ours[1].v_seq, theirs[1].v_seq)
    assert torch.equal(ours[3].v_seq, theirs[3].v_seq)
    for net in (ours, theirs):
        functional.set_step_mode(net, "s")
    assert torch.equal(ours(x()[0]), theirs(x()[0]))


def test_options_may_change_at_any_time():
    theirs, ours = both(network)
    for net in (ours, theirs):
        net(x())
        net[1].tau, net[1].v_threshold = 3.0, 0.7
        net[3].detach_reset = False
        net[5].surrogate_function = surrogate.Erf()
        net[1].surrogate_function.alpha = 3.0
    a, b = x().requires_grad_(), x().requires_grad_()
    mine, its = ours(a), theirs(b)
    assert torch.equal(mine, its)
    found = zip(gradients(ours, a, mine), gradients(theirs, b, its), strict=True)
    assert max(relative(g, h) for g, h in found) < 1e-6


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, width):
        ctx.save_for_backward(u, width)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, g):
        u, width = ctx.saved_tensors
        return g * torch.exp(-u.abs() / width), g * u * width


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = nn.Parameter(torch.tensor(0.5))

    def forward(self, u):
        return Exponential.apply(u, self.width)


class Adaptive(neuron.BaseNode):
    """A neuron of a user's own, with a second state."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_memory("a", 0.0)
        self.register_buffer("rho", torch.tensor(0.9))

    def materialize_states(self, inputs, states, step_mode):
        v, a = super().materialize_states(inputs, states, step_mode)
        return v, torch.zeros_like(v) if isinstance(a, float) else a

    def single_step_functional_forward(self, inputs, states, **kwargs):
        v, a = states
        h = 0.8 * v + inputs[0]
        s = self.surrogate_function(h - (self.v_threshold + a))
        return (s,), (h * (1 - s), self.rho * a + s)


class Quadratic(neuron.SimpleIFNode):
    def neuronal_charge(self, x):
        self.v = self.v + 0.1 * self.v * self.v + x


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adaptive(step_mode="m"),
        lambda: Quadratic(step_mode="m"),
        lambda: neuron.SimpleLIFNode(3.0, False, step_mode="m", v_reset=0.1),
        lambda: neuron.LIFNode(step_mode="m", surrogate_function=Learned()),
    ],
    ids=["BaseNode", "SimpleIFNode", "SimpleLIFNode", "surrogate"],
)
def test_code_of_a_user_is_traced(make):
    theirs, ours = both(make)
    for _ in range(2):
        a = (0.5 * input_sequence("random", steps=20)).requires_grad_()
        b = a.detach().clone().requires_grad_()
        mine, its = ours(a), theirs(b)
        assert torch.equal(mine, its) and its.count_nonzero()
        pairs = zip(ours._memories.values(), theirs._memories.values(), strict=True)
        assert all(torch.equal(m, t) for m, t in pairs)
        found = zip(gradients(ours, a, mine), gradients(theirs, b, its), strict=True)
        assert max(relative(g, h) for g, h in found) < 1e-6
        functional.detach_net(ours), functional.detach_net(theirs)


class OwnLoop(neuron.LIFNode):
    def multi_step_forward(self, x_seq):
        return super().multi_step_forward(x_seq.flip(0))


class OwnStep(neuron.IFNode):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        return (inputs[0],), states


class Summing(neuron.BaseNode):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        v = states[0] + inputs[0].mean()
        return (self.surrogate_function(v - 1),), (v,)


class Noting(neuron.SimpleIFNode):
    def neuronal_fire(self):
        self.before_reset = self.v
        return super().neuronal_fire()


def patched() -> nn.Module:
    node = neuron.IFNode(step_mode="m")
    node.forward = lambda x: x
    return node


def parametrized() -> nn.Module:
    node = neuron.ParametricLIFNode(step_mode="m")
    torch.nn.utils.parametrize.register_parametrization(node, "w", nn.Tanh())
    return node


def hooked() -> nn.Module:
    node = neuron.IFNode(step_mode="m", surrogate_function=surrogate.ATan())
    node.surrogate_function.register_forward_hook(lambda module, inputs, output: None)
    return node


def scripted() -> nn.Module:
    with torch.no_grad():
        return torch.jit.trace(neuron.IFNode(step_mode="m"), x(), check_trace=False)


KEPT = {
    "scripted": (scripted, "ScriptModule"),
    "hooks": (hooked, "hooks on its surrogate_function"),
    "single steps": (lambda: neuron.IFNode(), "set_step_mode"),
    "not known": (lambda: neuron.GatedLIFNode(T=4, inplane=4), "GatedLIFNode"),
    "own loop": (lambda: OwnLoop(step_mode="m"), "multi_step_forward"),
    "other step": (lambda: OwnStep(step_mode="m"), "IFNode, not of its own step"),
    "sum": (lambda: Summing(step_mode="m"), "mean"),
    "attribute": (lambda: Noting(step_mode="m"), "sets its attribute before_reset"),
    "patched": (patched, "replaced on the object"),
    "parametrized": (parametrized, "parametrized"),
    "surrogate": (
        lambda: neuron.IFNode(step_mode="m", surrogate_function=surrogate.LogTailedReLU()),
        "index",
    ),
    "random": (
        lambda: neuron.IFNode(step_mode="m", surrogate_function=surrogate.PoissonPass()),
        "random numbers",
    ),
}


@pytest.mark.parametrize(("make", "reason"), KEPT.values(), ids=KEPT)
def test_what_is_kept_and_why(make, reason):
    node = make()
    kind = type(node)
    report = snnkernels.accelerate(nn.Sequential(node))
    assert type(node) is kind and reason in report[0].reason
    assert f"kept: {report[0].reason}" in str(report)
    with pytest.raises(ValueError, match="cannot run fused: 0 "):
        snnkernels.accelerate(nn.Sequential(node), strict=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net, x: net(x.bfloat16()), "allow_fp32_state"),
        (lambda net, x: net(x.double()), "float64"),
        (lambda net, x: torch.func.vmap(net)(x.unsqueeze(0)), "torch.func"),
        (lambda net, x: net(x.to_sparse()), "dense"),
    ],
    ids=["bfloat16", "float64", "vmap", "sparse"],
)
def test_calls_that_are_kept_are_counted(change, reason):
    net = nn.Sequential(neuron.IFNode(step_mode="m"))
    report = snnkernels.accelerate(net)
    try:
        change(net, x())
    except (RuntimeError, NotImplementedError):
        assert reason == "dense"  # which SpikingJelly does not take either
    assert report[0].fused == 0 and report[0].kept.total() == 1
    assert reason in next(iter(report[0].kept)) and "kept 1 x" in str(report)


def test_the_report_is_readable():
    net = network()
    report = snnkernels.accelerate(net)
    net(x())
    assert str(report).splitlines()[:3] == [
        "3 of 3 neuron modules run fused (spikingjelly 2.0.0)",
        "  1  LIFNode(tau=2.0, decay_input=True, v_threshold=1.0, v_reset=0.0, "
        "surrogate_function=ATan(alpha=2.0, spiking=True), detach_reset=False, step_mode=m, "
        "store_v_seq=False)",
        "      same bits; calls fused: 1, kept: 0",
    ]
    with pytest.raises(KeyError, match="no neuron '2'; the network has 1, 3, 5"):
        report["2"]


def test_errors(monkeypatch):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module; got int"):
        snnkernels.accelerate(3)
    with monkeypatch.context() as patch:
        patch.setattr(swap, "import_module", None)  # no library's file is read for nothing
        with pytest.raises(ValueError, match="no neuron of spikingjelly.*; it is a Linear"):
            snnkernels.accelerate(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="backend must be"):
        snnkernels.accelerate(network(), backend="fast")
    monkeypatch.setattr(swap, "version", lambda name: "1.9.0")
    report = snnkernels.accelerate(network())
    assert report[0].reason == "spikingjelly 1.9.0 is installed; tested is 2.0.0"
    with pytest.raises(ValueError, match="spikingjelly 1.9.0 is installed; tested is 2.0.0"):
        snnkernels.accelerate(network(), strict=True)


def test_compiles_to_one_graph():
    theirs, ours = both(lambda: nn.Sequential(neuron.LIFNode(step_mode="m")))
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x()), theirs(x()))
    ours[0].tau = theirs[0].tau = 3.0  # traced anew, in the next call without compile
    assert torch.equal(compiled(x()), theirs(x())) and torch.equal(ours[0].v, theirs[0].v)


def test_the_plug_in_for_tests_of_a_library_fuses_its_neurons(monkeypatch):
    monkeypatch.setattr(nn.Module, "__call__", nn.Module.__call__)  # put back in the end
    peer_tests.pytest_configure()
    fused, single = neuron.IFNode(step_mode="m"), neuron.IFNode()
    for node in (fused, fused, single):
        node(x())
    assert type(fused) is not neuron.IFNode and type(single) is neuron.IFNode
    said = []
    peer_tests.pytest_terminal_summary(SimpleNamespace(write_line=said.append))
    assert said[0] == "snnkernels: 2 calls of neurons fused, 1 kept" and "single steps" in said[1]
