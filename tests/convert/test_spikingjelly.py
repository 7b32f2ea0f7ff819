"""SpikingJelly's neurons run fused: the same spikes, states and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import snnkernels
from tests.convert.compare import INPUTS, both, gradients, input_sequence, relative
from tests.tools import peer_programs
from tests.tools.programs import kept

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
from spikingjelly.activation_based import functional, neuron, surrogate  # noqa: E402

RESETS = [dict(v_reset=r, detach_reset=d) for r in (0.0, None, -0.25) for d in (False, True)]
NODES = [
    *((neuron.IFNode, options) for options in RESETS),
    *(
        (neuron.LIFNode, dict(tau=tau, decay_input=decay, **options))
        for tau in (2.0, 1.33, 10.0)
        for decay in (True, False)
        for options in RESETS[: 6 if tau == 10.0 else 3 : 2]
    ),
    *(
        (neuron.ParametricLIFNode, dict(init_tau=tau, decay_input=decay, v_reset=reset))
        for tau in (1.5, 3.0)
        for decay in (True, False)
        for reset in (0.0, None, -0.25)
    ),
    (neuron.QIFNode, dict(v_reset=-0.1)),
    (neuron.QIFNode, dict(v_reset=None, tau=5.0)),
    (neuron.KLIFNode, dict()),
    (neuron.KLIFNode, dict(scale_reset=True, decay_input=False, v_reset=None)),
    (neuron.IzhikevichNode, dict(a=0.1, b=0.2, tau_w=10.0)),
    (neuron.IzhikevichNode, dict(a=0.1, b=0.2, a0=0.1, v_reset=None, detach_reset=True)),
    (neuron.ILIFNode, dict()),
    (neuron.ILIFNode, dict(tau=3.0, detach_reset=True)),
    (neuron.CUBALIFNode, dict()),
    (neuron.CUBALIFNode, dict(v_reset=None)),
    (neuron.HalfThresholdIFNode, dict()),
    (neuron.TernaryIFNode, dict(v_reset=None)),
    (neuron.TernaryLIFNode, dict(tau=3.0)),
]


def made(kind: type, **options) -> nn.Module:
    module = kind(**options)
    module.step_mode = "m"
    return module


def states_equal(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours._memories.values(), theirs._memories.values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def id_of(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"
    return value.__name__


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("kind", "options"), NODES, ids=id_of)
def test_spikes_states_and_gradients(kind, options, inputs):
    theirs, ours = both(lambda: made(kind, **options))
    for _ in range(2):  # the second call goes on from the state of the first
        a = input_sequence(inputs).requires_grad_()
        b = a.detach().clone().requires_grad_()
        mine, its = ours(a), theirs(b)
        assert torch.equal(mine, its) and 0 < its.count_nonzero() < its.numel()
        assert states_equal(ours, theirs)
        found = zip(gradients(ours, a, mine), gradients(theirs, b, its), strict=True)
        assert max(relative(g, h) for g, h in found) < 1e-6
        functional.detach_net(ours), functional.detach_net(theirs)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("kind", [neuron.EIFNode, neuron.ComplementaryLIFNode], ids=id_of)
def test_spikes_where_a_step_has_exp_or_sigmoid(kind, inputs):
    theirs, ours = both(lambda: made(kind))
    (numerics,) = {entry.numerics for entry in snnkernels.accelerate(ours)}
    assert numerics.startswith("within 2 ulp: ")
    a = (0.5 * input_sequence(inputs)).requires_grad_()
    b = a.detach().clone().requires_grad_()
    mine, its = ours(a), theirs(b)
    same = (mine == its).all(0)
    assert its.count_nonzero() and (~same).sum() <= 0.001 * same.numel()
    for u, v in zip(ours._memories.values(), theirs._memories.values(), strict=True):
        torch.testing.assert_close(u[same], v[same], rtol=1e-6, atol=1e-6)
    (g,), (h,) = gradients(ours, a, mine), gradients(theirs, b, its)
    assert relative(g[:, same], h[:, same]) < 1e-5  # the states of all steps differ in an ulp


SURROGATES = [
    surrogate.PiecewiseQuadratic(),
    surrogate.PiecewiseExp(),
    surrogate.Sigmoid(),
    surrogate.SoftSign(3.0),
    surrogate.ATan(),
    surrogate.SuperSpike(2.0),
    surrogate.NonzeroSignLogAbs(),
    surrogate.Erf(),
    surrogate.PiecewiseLeakyReLU(),
    surrogate.SquarewaveFourierSeries(),
    surrogate.S2NN(),
    surrogate.QPseudoSpike(),
    surrogate.LeakyKReLU(),
    surrogate.FakeNumericalGradient(),
    surrogate.DeterministicPass(),
    surrogate.Rect(),
    surrogate.Sigmoid(spiking=False),
]


@pytest.mark.parametrize("function", SURROGATES, ids=repr)
def test_surrogates(function):
    theirs, ours = both(lambda: made(neuron.LIFNode, surrogate_function=function))
    a = input_sequence("random", steps=20).requires_grad_()
    b = a.detach().clone().requires_grad_()
    mine, its = ours(a), theirs(b)
    if function.spiking:
        assert torch.equal(mine, its)
    torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)
    (g,), (h,) = gradients(ours, a, mine), gradients(theirs, b, its)
    assert relative(g, h) < 1e-6


@pytest.mark.parametrize("decode", ["max-mem", "max-abs-mem", "mean-mem", "last_mem", None])
@pytest.mark.parametrize("kind", [neuron.NonSpikingIFNode, neuron.NonSpikingLIFNode], ids=id_of)
def test_readouts(kind, decode):
    theirs, ours = both(lambda: kind(decode=decode))
    for _ in range(2):
        a = input_sequence("random", steps=20).requires_grad_()
        b = a.detach().clone().requires_grad_()
        mine, its = ours(a), theirs(b)
        assert type(mine) is type(its)
        if decode is None:
            mine, its = torch.stack(mine), torch.stack(its)
        assert torch.equal(mine, its) and torch.equal(ours.v, theirs.v)
        (g,), (h,) = gradients(ours, a, mine), gradients(theirs, b, its)
        assert relative(g, h) < 1e-6


def test_sequences_of_any_layout():
    theirs, ours = both(lambda: made(neuron.LIFNode))
    x = input_sequence("random", steps=9, neurons=64)
    for seq in (x.transpose(0, 1), x[:, 0], x[:, 0, 0], x.view(9, 2, 4, 4, 2).transpose(2, 4)):
        functional.reset_net(ours), functional.reset_net(theirs)
        assert torch.equal(ours(seq), theirs(seq)) and torch.equal(ours.v, theirs.v)


def test_the_commonest_steps_are_compiled_ahead_of_time():
    texts = {f"spikingjelly-{name}": text for name, text in peer_programs.spikingjelly().items()}
    assert kept("spikingjelly") == texts, "run python -m tests.tools.programs"
