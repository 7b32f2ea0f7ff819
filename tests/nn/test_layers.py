"""The layers: their state over calls, parameters, memory formats and errors."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import snnkernels
from snnkernels import LIF, LeakyReadout, OverTime

# One set of options that touches every part of the state.
NEURON = {"decay": 0.8, "v_threshold": 0.6, "reset": "soft", "refractory": 2}
BACKENDS = snnkernels.available_backends("cpu")


def currents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


# --- the carried state ---------------------------------------------------------------------------


def test_one_call_equals_single_steps(backend):
    x = currents(9, 3, 5)
    s, h = LIF(**NEURON, record="h", backend=backend)(x)
    layer = LIF(**NEURON, record="h", backend=backend)
    steps = [layer.step(x_t) for x_t in x]
    assert s.sum() > 0
    assert torch.equal(torch.stack([s_t for s_t, _ in steps]), s)
    assert torch.equal(torch.stack([h_t for _, h_t in steps]), h)


def test_stateful_parts_equal_one_call(backend):
    x = currents(12, 3, 4, 5)
    layer = LIF(**NEURON, backend=backend, stateful=True)
    parts = torch.cat([layer(part) for part in x.split([1, 4, 0, 7])])
    assert torch.equal(parts, LIF(**NEURON, backend=backend)(x))


def test_gradients_flow_through_the_carried_state(backend):
    x = currents(8, 2, 3)
    whole, halves = x.clone().requires_grad_(), x.clone().requires_grad_()
    LIF(**NEURON, backend=backend)(whole).sum().backward()
    layer = LIF(**NEURON, backend=backend, stateful=True)
    sum(layer(part).sum() for part in halves.split(4)).backward()
    assert torch.equal(whole.grad, halves.grad)


def test_without_stateful_every_call_starts_anew():
    x = currents(4, 2, 3)
    layer = LIF(**NEURON)
    assert torch.equal(layer(x), layer(x))
    assert layer.state is None


def test_reset_and_detach_walk_a_model():
    x = currents(4, 2, 3)
    model = nn.Sequential(LIF(stateful=True), nn.Sequential(LIF(stateful=True)), LeakyReadout())
    model[2].stateful = True
    layers = [model[0], model[1][0], model[2]]
    first = model(x.requires_grad_())
    assert all(layer.state.v.requires_grad for layer in layers)
    values = [layer.state.v.clone() for layer in layers]
    snnkernels.detach(model)
    assert not any(layer.state.v.requires_grad for layer in layers)
    assert all(torch.equal(layer.state.v, v) for layer, v in zip(layers, values, strict=True))
    assert not torch.equal(model(x), first)
    snnkernels.reset(model)
    assert all(layer.state is None for layer in layers)
    assert torch.equal(model(x), first)


@pytest.mark.parametrize("layer", [LIF(stateful=True), LeakyReadout(stateful=True)])
def test_another_batch_size_needs_a_reset(layer):
    layer(currents(4, 2, 3))
    with pytest.raises(ValueError, match=r"\[5, 3\].*\[2, 3\].*reset\(\)"):
        layer(currents(4, 5, 3))
    layer.reset()
    layer(currents(4, 5, 3))


def test_state_is_not_saved():
    layer = LIF(stateful=True, learn_decay=True, channels=3)
    layer(currents(4, 2, 3))
    assert set(layer.state_dict()) == {"decay", "v_threshold", "gain"}
    fresh = LIF(stateful=True, learn_decay=True, channels=3)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.state is None


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16])
def test_state_stays_float32(convert):
    layer = LIF(decay=0.9, refractory=1, stateful=True)
    layer(currents(3, 2, 4))
    v = layer.state.v.clone()
    convert(layer)
    assert layer.state.v.dtype == layer.state.refractory.dtype == torch.float32
    assert torch.equal(layer.state.v, v)
    assert layer(currents(3, 2, 4).half()).dtype == torch.float16
    assert layer.state.v.dtype == torch.float32


def test_to_moves_the_state():
    layer = LIF(refractory=1, stateful=True)
    layer(currents(3, 2, 4))
    layer.to("meta")
    assert layer.state.v.device.type == layer.state.refractory.device.type == "meta"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_possible_with_a_live_graph(copied):
    x = currents(4, 2, 3)
    layer = LIF(learn_decay=True, stateful=True)
    layer(x)
    assert layer.state.v.requires_grad
    twin = copied(layer)
    assert not twin.state.v.requires_grad
    assert layer.state.v.requires_grad
    assert torch.equal(twin(x), layer(x))
    torch.save(layer, io.BytesIO())


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 3])
def test_learned_parameters_have_gradients(backend, channels):
    layer = LIF(
        decay=0.7, learn_decay=True, learn_threshold=True, channels=channels, backend=backend
    )
    expected_shape = () if channels is None else (3,)
    layer(currents(6, 2, 3, 4)).sum().backward()
    for parameter in layer.parameters():
        assert parameter.shape == expected_shape
        assert (parameter.grad != 0).all()
    assert len(list(layer.parameters())) == 2


def test_a_step_on_the_parameters_changes_the_spikes():
    x = currents(6, 2, 50)
    layer = LIF(learn_threshold=True)
    before = layer(x).sum()
    before.backward()
    with torch.no_grad():
        layer.v_threshold -= 0.3 * layer.v_threshold.grad.sign()
    assert layer(x).sum() < before  # a step down the gradient of their number


def test_values_per_channel_act_on_dim_2():
    x = currents(5, 2, 3, 4)
    decay, threshold = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.5, 0.8, 1.1])
    s = LIF(decay=decay, v_threshold=threshold, channels=3)(x)
    for c in range(3):
        alone = LIF(decay=float(decay[c]), v_threshold=float(threshold[c]))(x[:, :, c])
        assert torch.equal(s[:, :, c], alone)


def test_plain_numbers_are_no_parameters():
    layer = LIF(decay=0.3, v_threshold=2)
    assert not list(layer.parameters()) and not list(layer.buffers())
    assert (layer.decay, layer.v_threshold) == (0.3, 2.0)


# --- OverTime ------------------------------------------------------------------------------------


def test_over_time_is_the_module_at_every_step():
    x = currents(4, 2, 3, 6, 6)
    block = OverTime(nn.Conv2d(3, 5, 3, padding=1), nn.AvgPool2d(2))
    each = torch.stack([block.module(x_t) for x_t in x])
    torch.testing.assert_close(block(x), each)
    linear = nn.Linear(6, 2)
    torch.testing.assert_close(OverTime(linear)(x), linear(x))


def test_over_time_and_lif_keep_channels_last():
    conv = OverTime(nn.Conv2d(3, 5, 3, padding=1)).to(memory_format=torch.channels_last)
    x = currents(8, 3, 6, 6).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    y = conv(x)
    assert y.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    s = LIF()(y)
    assert s.stride() == y.stride()
    assert s.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


# --- LeakyReadout --------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("output", ["last", "mean", "sequence"])
def test_leaky_readout_is_the_weighted_sum(backend, decay, output):
    x = currents(6, 2, 3).double().mul(64).round().div(64)  # exact in float32, halves too
    age = torch.arange(6.0, dtype=torch.float64)
    h = torch.stack(
        [(x[: t + 1] * (decay ** age[: t + 1].flip(0))[:, None, None]).sum(0) for t in range(6)]
    )
    y = LeakyReadout(decay=decay, output=output, backend=backend)(x.float())
    want = {"last": h[-1], "mean": h.mean(0), "sequence": h}[output]
    torch.testing.assert_close(y.double(), want)
    assert y.dtype == torch.float32


def test_leaky_readout_learns_its_leak():
    x = currents(3, 1, 1)
    layer = LeakyReadout(decay=0.5, learn_decay=True)
    layer(x).backward()
    torch.testing.assert_close(layer.decay.grad, 2 * 0.5 * x[0, 0, 0] + x[1, 0, 0])


def test_leaky_readout_goes_on_where_it_ended():
    x = currents(6, 2, 3)
    layer = LeakyReadout(decay=0.9, stateful=True)
    layer(x[:4])
    assert torch.equal(layer(x[4:]), LeakyReadout(decay=0.9)(x))


@pytest.mark.parametrize("output", ["last", "mean", "sequence"])
def test_leaky_readout_gives_the_potential_after_one_step_of_a_stream(output):
    x = currents(4, 2, 3)
    layer = LeakyReadout(decay=0.9, output=output)
    stream = torch.stack([layer.step(x_t) for x_t in x])
    assert torch.equal(stream, LeakyReadout(decay=0.9, output="sequence")(x))


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"reset": "gentle"},
            ValueError,
            "reset must be one of hard, soft, none, trace; got 'gentle'",
        ),
        ({"surrogate": "triangle"}, TypeError, "surrogate.*Triangle.*'triangle'"),
        ({"record": "v"}, ValueError, "record must be None or 'h'; got 'v'"),
        ({"backend": "fast"}, ValueError, "backend must be 'auto' or one of.*'fast'"),
        ({"refractory": -1}, ValueError, "refractory.*>= 0.*got -1"),
        ({"channels": 0}, ValueError, "channels.*>= 1; got 0"),
        ({"channels": 3, "decay": torch.ones(4)}, ValueError, r"decay.*\[3\].*\[4\]"),
        ({"v_threshold": float("nan")}, ValueError, "v_threshold must not be NaN"),
        ({"v_threshold": float("nan"), "learn_threshold": True}, ValueError, "v_threshold.*NaN"),
        ({"decay": torch.ones(3)}, ValueError, r"decay.*\[3\]"),
    ],
)
def test_a_bad_option_is_an_error_when_the_layer_is_made(options, error, said):
    with pytest.raises(error, match=said):
        LIF(**options)


def test_a_bad_readout_option_is_an_error_when_the_layer_is_made():
    with pytest.raises(ValueError, match="output must be one of 'last', .*; got 'max'"):
        LeakyReadout(output="max")
    with pytest.raises(ValueError, match="backend must be 'auto' or one of.*'fast'"):
        LeakyReadout(backend="fast")


def test_a_wrong_channel_count_names_the_argument():
    with pytest.raises(ValueError, match=r"x must be \[T, N, 3, \*\]; got \[2, 2, 4\]"):
        LIF(channels=3)(currents(2, 2, 4))


def test_over_time_needs_a_module():
    with pytest.raises(ValueError, match="OverTime"):
        OverTime()


def test_repr_shows_what_was_set():
    shown = repr(LIF(decay=0.25, learn_threshold=True, refractory=3))
    assert "decay=0.25" in shown and "v_threshold=learned" in shown and "refractory=3" in shown
    assert "v_reset" not in shown
