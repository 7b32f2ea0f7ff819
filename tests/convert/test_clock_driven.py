"""Networks that import SpikingJelly's old names run as they are written."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

import snnkernels

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
clock_driven = snnkernels.convert.clock_driven

# As published spiking networks have them, in what they import and how they call it.
SELF_ATTENTION = """
import torch
from spikingjelly.clock_driven.neuron import MultiStepLIFNode, MultiStepParametricLIFNode
from torch import nn


class Branch(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 1, bias=False)
        self.bn = nn.BatchNorm1d(dim)
        self.lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")

    def forward(self, x):
        t, b, c, n = x.shape
        return self.lif(self.bn(self.conv(x.flatten(0, 1))).reshape(t, b, c, n).contiguous())


class Block(nn.Module):
    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (Branch(dim) for _ in range(4))
        self.attn_lif = MultiStepLIFNode(
            tau=2.0, v_threshold=0.5, detach_reset=True, backend="cupy"
        )
        self.head = MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True, backend="cupy")

    def forward(self, x):
        t, b, c, n = x.shape
        q, k, v = (
            f(x).reshape(t, b, self.heads, c // self.heads, n).transpose(-1, -2)
            for f in (self.q, self.k, self.v)
        )
        y = (q @ k.transpose(-1, -2)) @ v * 0.25
        y = self.attn_lif(y.transpose(-1, -2).reshape(t, b, c, n))
        return self.head(self.out(y) + x)
"""
SPIKE_ELEMENT_WISE = """
from spikingjelly.clock_driven import layer, surrogate
from spikingjelly.clock_driven.neuron import MultiStepIFNode
from torch import nn


class Block(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.conv1 = layer.SeqToANNContainer(
            nn.Conv1d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm1d(dim)
        )
        self.sn1 = MultiStepIFNode(detach_reset=True, surrogate_function=surrogate.ATan())
        self.conv2 = layer.SeqToANNContainer(
            nn.Conv1d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm1d(dim)
        )
        self.sn2 = MultiStepIFNode(detach_reset=True, surrogate_function=surrogate.ATan())
        self.drop = layer.MultiStepDropout(0.0)

    def forward(self, x):
        return self.drop(x + self.sn2(self.conv2(self.sn1(self.conv1(x)))))
"""


@pytest.fixture
def installed():
    clock_driven.install()
    clock_driven.install()
    yield
    for name in [n for n in sys.modules if n.startswith("spikingjelly.clock_driven")]:
        del sys.modules[name]
    del sys.modules["spikingjelly"].clock_driven


@pytest.mark.parametrize(
    ("source", "neurons"), [(SELF_ATTENTION, 6), (SPIKE_ELEMENT_WISE, 2)], ids=["ssa", "sew"]
)
def test_blocks_run_unchanged(installed, source, neurons):
    from spikingjelly.clock_driven import functional

    names = {}
    exec(source, names)
    torch.manual_seed(0)
    theirs = names["Block"]()
    ours = copy.deepcopy(theirs)
    report = snnkernels.accelerate(ours, strict=True)
    assert len(report) == neurons
    x = 2.5 * (torch.rand(4, 2, 16, 20) < 0.4).float()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, its = ours(a), theirs(b)
    assert torch.equal(mine, its) and its.count_nonzero()
    assert [entry.fused for entry in report] == [1] * neurons
    weight = torch.rand_like(its)
    (mine * weight).sum().backward(), (its * weight).sum().backward()
    for p, q in zip([a, *ours.parameters()], [b, *theirs.parameters()], strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    functional.reset_net(ours)
    functional.reset_net(theirs)


def test_arguments_of_old_neurons(installed):
    from spikingjelly.clock_driven.neuron import MultiStepLIFNode, surrogate

    node = MultiStepLIFNode(tau=3.0, surrogate_function=surrogate.ATan(), backend="torch")
    assert (node.tau, node.step_mode) == (3.0, "m")
    with pytest.raises(ValueError, match="backend must be one of torch, cupy; got 'lava'"):
        MultiStepLIFNode(backend="lava")
    with pytest.raises(ValueError, match="step_mode"):
        node.step_mode = "s"
    assert isinstance(copy.deepcopy(nn.Sequential(node))[0], MultiStepLIFNode)


def test_a_real_package_is_left_alone(monkeypatch):
    monkeypatch.setattr(clock_driven, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="spikingjelly.clock_driven is installed"):
        clock_driven.install()
