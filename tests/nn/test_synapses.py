"""Synapses: their responses, their layer, the encoder."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import snnkernels
from snnkernels import LIF, CurrentEncoder, IIRSynapse

t = torch.arange(40, dtype=torch.float32)


@pytest.mark.parametrize(
    ("synapse", "want"),
    [
        (IIRSynapse.exponential(5.0), torch.exp(-t / 5)),
        (IIRSynapse.alpha_function(4.0), t / 4 * torch.exp(-t / 4)),
        (IIRSynapse.dual_exponential(8.0, 2.0), torch.exp(-t / 8) - torch.exp(-t / 2)),
        (IIRSynapse.delay(3), (t == 3).float()),
        (IIRSynapse.delay(0), (t == 0).float()),
    ],
    ids=("exponential", "alpha", "dual", "delay", "no delay"),
)
def test_responses(synapse, want):
    torch.testing.assert_close(synapse.kernel(40), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IIRSynapse.exponential(0.0), "tau must be a number > 0"),
        (lambda: IIRSynapse.dual_exponential(2.0, 2.0), "tau_s must differ"),
        (lambda: IIRSynapse.delay(-1), "steps must be"),
        (lambda: IIRSynapse([float("nan")], [1.0]), "alpha must not be NaN"),
        (lambda: IIRSynapse([0.5], []), "beta must be"),
        (lambda: IIRSynapse(torch.zeros(3, 1), [1.0], channels=2), "alpha must be"),
        (lambda: LIF(synapse=([0.1] * 3, [1.0])), "alpha has order 3"),
        (lambda: LIF(reset="trace"), "trace_decay goes with"),
    ],
)
def test_errors_name_the_argument(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_pole_outside_is_reported_once():
    with pytest.warns(UserWarning, match=r"pole at \|z\| = 1\.1"):
        layer = IIRSynapse([1.1], [1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.eval().train()
        stable = IIRSynapse([0.9], [1.0])
        IIRSynapse([1.0], [1.0])  # an integrator is on the circle, not outside
    with torch.no_grad():
        stable.alpha.fill_(1.2)
    with pytest.warns(UserWarning, match="unit circle"):
        stable.eval()
    with pytest.warns(UserWarning, match="unit circle"):
        LIF(synapse=([0.0, 1.2], [1.0]))


def test_coefficients_learn():
    layer = IIRSynapse.dual_exponential(4.0, 1.0, channels=3)
    assert layer.alpha.shape == (3, 2) and layer.beta.shape == (3, 2)
    x = torch.randn(10, 2, 3)
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    assert not list(IIRSynapse.exponential(3.0, learn=False).parameters())


def test_stateful_streams_equal_the_whole():
    x = torch.randn(12, 2, 5)
    whole = IIRSynapse.dual_exponential(4.0, 1.0)(x)
    layer = IIRSynapse.dual_exponential(4.0, 1.0, stateful=True)
    assert torch.equal(torch.cat([layer(x[:5]), layer(x[5:])]), whole)
    with pytest.raises(ValueError, match="call reset"):
        layer(x[:, :1])
    moved = copy.deepcopy(layer)
    assert torch.equal(moved.state.synapse, layer.state.synapse)
    assert moved.to(torch.bfloat16).state.synapse.dtype == torch.float32
    snnkernels.detach(layer)
    assert not layer.state.synapse.requires_grad
    snnkernels.reset(layer)
    assert torch.equal(layer(x), whole)


def test_lif_layer_has_the_general_neuron():
    layer = LIF(
        decay=0.9,
        synapse=snnkernels.nn.synapses.alpha_function(3.0),
        gain=2.0,
        reset="trace",
        trace_decay=0.7,
        learn_synapse=True,
        learn_gain=True,
        learn_trace_decay=True,
        channels=4,
        stateful=True,
    )
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"alpha", "beta", "gain", "trace_decay"}
    x = torch.randn(20, 2, 4)
    out = torch.cat([layer(x[:7]), layer(x[7:])])
    want, _ = snnkernels.lif(
        x,
        decay=0.9,
        synapse=(layer.alpha, layer.beta),
        gain=layer.gain,
        reset="trace",
        trace_decay=layer.trace_decay,
    )
    assert torch.equal(out, want) and 0 < out.mean() < 1
    assert "synapse=learned" in repr(layer) and "gain=learned" in repr(layer)
    restored = copy.deepcopy(layer)
    restored.load_state_dict(layer.state_dict())


def test_current_encoder():
    x = torch.sin(torch.linspace(0, 12, 60)).view(60, 1, 1).repeat(1, 2, 3)
    encoder = CurrentEncoder()
    s = encoder(x)
    assert s.shape == (60, 2, 6) and set(s.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(s[..., :3], CurrentEncoder(both_signs=False)(x))
    assert torch.equal(s[..., 3:], CurrentEncoder(both_signs=False)(-x))
    more = CurrentEncoder(gain=2.0)(x)
    assert more.sum() > s.sum() > 0
    with pytest.raises(ValueError, match="tau_current must be a number > 0"):
        CurrentEncoder(tau_current=0.0)
