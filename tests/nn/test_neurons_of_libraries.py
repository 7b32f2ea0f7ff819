"""Neurons that ship, against the library that has them."""

from __future__ import annotations

import pytest
import torch

from snnkernels import fuse
from snnkernels.nn.neurons import eif, ilif, izhikevich, qif
from tests.tools.steps import near

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
from spikingjelly.activation_based import neuron  # noqa: E402

NEURONS = {
    "QIF": (qif, neuron.QIFNode, {"tau": 2.0, "a0": 1.25, "v_c": 0.75, "v_rest": 0.125}, {}),
    "EIF": (eif, neuron.EIFNode, {"tau": 4.0, "v_rest": 0.125}, {"delta": 0.5, "v_rheobase": 0.75}),
    "Izhikevich": (
        izhikevich,
        neuron.IzhikevichNode,
        {"tau": 4.0, "tau_w": 10.0, "a0": 0.5, "a": 0.25, "b": 0.1, "v_rest": -0.125},
        {},
    ),
}
THEIR_NAMES = {"delta": "delta_T", "v_rheobase": "theta_rh"}


@pytest.mark.parametrize("name", NEURONS)
def test_spikes_states_and_gradients_are_theirs(name):
    """Theirs add in another order, so states agree to some units in the last place."""
    step, node, shared, ours = NEURONS[name]
    x = (torch.randn(60, 3, 40) * 0.7 + 0.4).requires_grad_()
    theirs = node(
        step_mode="m", v_reset=-0.125, **shared, **{THEIR_NAMES[k]: v for k, v in ours.items()}
    )
    starts = (-0.125, 0.0)[: 1 + (name == "Izhikevich")]
    s, state = fuse(step)(x, starts, v_reset=-0.125, **shared, **ours)
    s2 = theirs(x)
    assert 0.02 < s.mean() < 0.9
    same_so_far = (s == s2).cumprod(0)[-1].bool()  # of a neuron, all along
    assert same_so_far.float().mean() > 0.99
    states2 = (theirs.v, theirs.w) if name == "Izhikevich" else (theirs.v,)
    for a, b in zip(state, states2, strict=True):
        assert near(a[same_so_far], b[same_so_far], 1e-5)
    arriving = torch.randn_like(s)
    (dx,) = torch.autograd.grad(s, x, arriving)
    (dx2,) = torch.autograd.grad(s2, x, arriving)
    assert near(dx[:, same_so_far], dx2[:, same_so_far], 1e-4)


def test_integer_spikes_are_theirs():
    x = (torch.randn(40, 3, 50) * 1.5 + 0.5).requires_grad_()
    theirs = neuron.ILIFNode(step_mode="m", tau=4 / 3)
    s, state = fuse(ilif)(x, decay=0.25, levels=4)
    s2 = theirs(x)
    assert s.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(s, s2) and near(state.v, theirs.v, 1e-6)
    arriving = torch.randn_like(s)
    (dx,) = torch.autograd.grad(s, x, arriving)
    (dx2,) = torch.autograd.grad(s2, x, arriving)
    assert near(dx, dx2, 1e-5)
