"""The layer `Neuron`, and the neurons that ship."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import snnkernels
from snnkernels import LIF, Neuron, fuse, lif
from snnkernels.nn.neurons import STEPS, alif, ilif, se_adlif, to_binary_steps
from tests.tools.steps import leaky, same


def test_defaults_are_those_of_the_step():
    x = torch.randn(20, 3, 4) + 1
    for step in STEPS.values():
        assert same(Neuron(step)(x), fuse(step)(x)[0])


def test_learned_parameters_have_the_shape_asked_for():
    x = torch.randn(9, 2, 4, 3)
    for size, options in (((), {}), ((4,), {"channels": 4}), ((4, 3), {"shape": (4, 3)})):
        layer = Neuron(se_adlif, learn=("alpha", "a"), **options)
        assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
            "alpha": size,
            "a": size,
        }
        layer(x).sum().backward()
        assert all(p.grad.shape == size for p in layer.parameters())
        assert layer.beta == 0.95


def test_stream_is_the_whole():
    x = torch.randn(12, 2, 4) + 0.5
    layer = Neuron(alif, learn=("beta",), channels=4)
    whole = layer(x)
    assert same(torch.stack([layer.step(x_t) for x_t in x]), whole)
    layer.reset()
    stateful = Neuron(alif, learn=("beta",), channels=4, stateful=True)
    assert same(torch.cat([stateful(x[:5]), stateful(x[5:])]), whole)
    assert stateful.state._fields == ("v", "a")
    with pytest.raises(ValueError, match="call reset"):
        stateful(x[:, :1])
    snnkernels.reset(nn.Sequential(stateful))
    assert same(stateful(x), whole)
    stateful.detach()
    assert not stateful.state.v.requires_grad


def test_state_at_the_start():
    layer = Neuron(leaky, state=(0.9,), decay=1.0)
    assert layer(torch.full((1, 1), 0.1)).item() == 1


def test_copies():
    x = torch.randn(12, 2, 4) + 0.5
    layer = Neuron(alif, learn=("beta",), channels=4, stateful=True)
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same(other(x), copy.deepcopy(layer)(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = Neuron(alif, learn=("beta",), channels=4)
    fresh.load_state_dict(torch.load(file))
    layer.reset()
    assert same(fresh(x), layer(x))
    assert layer.to("cpu").state._fields == ("v", "a")


def test_text_shows_the_equations():
    text = repr(Neuron(leaky, decay=0.5, learn=("theta",)))
    for words in ("leaky", "v[t] = ", "v[t-1] * 0.5 + x", ">= 0", "learned: theta", "backend auto"):
        assert words in text


def test_compiles_fullgraph():
    layer = Neuron(se_adlif, learn=("alpha", "b"), channels=4)
    x = torch.randn(20, 2, 4)
    assert same(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_lif_layers_are_one_family():
    x = torch.randn(30, 2, 4) + 0.5
    assert same(Neuron(leaky, decay=0.75)(x), LIF(decay=0.75)(x))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"decay": 0.5, "tau": 1.0}, ValueError, "no parameter 'tau'"),
        ({}, ValueError, "needs a value for decay"),
        ({"decay": 0.5, "learn": ("tau",)}, ValueError, "no parameter 'tau'"),
        ({"decay": torch.rand(3), "learn": ("decay",), "channels": 4}, ValueError, "[4]"),
        ({"decay": 0.5, "channels": 4, "shape": (4,)}, ValueError, "both set"),
        ({"decay": 0.5, "channels": 0}, ValueError, "channels"),
        ({"decay": 0.5, "state": (0.0, 0.0)}, ValueError, "a number for each of v"),
        ({"decay": "fast", "learn": ("decay",)}, TypeError, "'fast'"),
        ({"decay": 0.5, "inputs": 2}, ValueError, "at least one state"),
        ({"decay": 0.5, "outputs": 2}, ValueError, "returned 2"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error) as raised:
        Neuron(leaky, **arguments)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ("channels", "training", "forward", "state_dict"))
def test_names_that_a_layer_has_are_refused(name):
    space = {}
    exec(f"def step(x, v, *, {name}=0.5):\n    return x, v * {name}", space)
    with pytest.raises(ValueError, match=f"must not be named {name}"):
        Neuron(space["step"])


def test_lif_refuses_laplace_by_name():
    with pytest.raises(TypeError, match="Laplace"):
        lif(torch.randn(2, 3), surrogate=snnkernels.Laplace())


@pytest.mark.parametrize("levels", (1, 4))
def test_integer_spikes_are_as_many_binary_steps(levels):
    x = torch.randn(15, 3, 8) * 2
    s = Neuron(ilif, levels=levels)(x)
    assert s.unique().tolist() == list(range(levels + 1))
    binary = to_binary_steps(s, levels)
    assert binary.shape == (15 * levels, 3, 8) and set(binary.unique().tolist()) == {0.0, 1.0}
    assert same(binary.unflatten(0, (15, levels)).sum(1), s)
    weight = torch.randint(-8, 8, (8, 5)).float()  # whole numbers: sums are exact
    assert same((binary @ weight).unflatten(0, (15, levels)).sum(1), s @ weight)
    with pytest.raises(ValueError, match="levels"):
        to_binary_steps(s, 0)
