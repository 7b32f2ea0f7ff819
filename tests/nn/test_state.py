"""What a user does with the state of a layer, done with every layer that has one."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import snnkernels
from snnkernels import LIF, CurrentEncoder, IIRSynapse, LeakyReadout, Neuron, State, models
from snnkernels.nn.losses import layer_penalties
from snnkernels.nn.neurons import se_adlif
from snnkernels.nn.synapses import alpha_function

LAYERS = {
    "LIF": lambda **o: LIF(decay=0.8, v_threshold=0.6, reset="soft", refractory=2, **o),
    "LIF, general": lambda **o: LIF(
        decay=0.9,
        gain=2.0,
        synapse=alpha_function(3.0),
        reset="trace",
        trace_decay=0.7,
        learn_decay=True,
        learn_synapse=True,
        channels=6,
        **o,
    ),
    "LeakyReadout": lambda **o: LeakyReadout(decay=0.7, learn_decay=True, **o),
    "LeakyReadout, mean": lambda **o: LeakyReadout(decay=0.7, output="mean", **o),
    "IIRSynapse": lambda **o: IIRSynapse.dual_exponential(4.0, 1.0, **o),
    "Neuron": lambda **o: Neuron(se_adlif, learn=("alpha",), **o),
    "CurrentEncoder": lambda **o: CurrentEncoder(tau=4.0, v_threshold=0.5, **o),
}
SHAPE = (9, 3, 6)


def currents(seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.5


def part_with_state(layer: nn.Module) -> nn.Module:
    return layer.neuron if isinstance(layer, CurrentEncoder) else layer


def parts(layer: nn.Module) -> list[torch.Tensor]:
    return [p for p in part_with_state(layer).state if p is not None]


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def pickled(layer: nn.Module) -> nn.Module:
    torch.save(layer, io.BytesIO())
    return pickle.loads(pickle.dumps(layer))


def detached(layer: nn.Module) -> nn.Module:
    snnkernels.detach(layer)
    assert not any(p.requires_grad for p in parts(layer))
    return layer


def indexed(layer: nn.Module) -> nn.Module:
    for p in parts(detached(layer)):
        value = p[..., :1, :].clone()
        p[..., :1, :] = -1
        p[..., :1, :] = value
    return layer


GO_ON = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "detach": detached,
    "index": indexed,
    "to": lambda layer: layer.to("cpu", torch.float32),
    "eval": lambda layer: layer.eval().train(),
    "load": lambda layer: layer.load_state_dict(layer.state_dict()) and layer,
    "requires_grad": lambda layer: layer.requires_grad_(False),
}


@pytest.mark.parametrize("what", GO_ON)
def test_the_layer_goes_on_where_it_was(make, what):
    x = currents()
    whole, layer = make(stateful=True), make(stateful=True)
    whole(x[:5])
    layer(x[:5])
    layer = GO_ON[what](layer)
    assert torch.equal(layer(x[5:]), whole(x[5:]))


def test_step_by_step_is_the_sequence(make):
    x = currents()
    layer, whole = make(), make(stateful=True)
    for x_t in x:
        assert torch.equal(layer.step(x_t).reshape(-1), whole(x_t[None]).reshape(-1))
    for a, b in zip(parts(layer), parts(whole), strict=True):
        assert torch.equal(a, b)


def test_after_a_reset_the_first_call_repeats_and_any_batch_fits(make):
    x, layer = currents(), make(stateful=True)
    first = layer(x)
    with pytest.raises(ValueError, match=r"call reset\(\) before another batch size"):
        layer(x[:, :2])
    snnkernels.reset(layer)
    assert torch.equal(layer(x), first)
    layer.load_state_dict(make(stateful=True).state_dict())
    snnkernels.reset(layer)
    layer(x[:, :2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_state_stays_float32(make, dtype):
    layer = make(stateful=True)
    layer(currents())
    before = [p.clone() for p in parts(layer)]
    layer.to(dtype)
    for a, b in zip(parts(layer), before, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    layer(currents().to(dtype))
    assert all(p.dtype == torch.float32 for p in parts(layer))


def test_the_state_moves_with_the_layer(make):
    layer = make(stateful=True)
    layer(currents())
    layer.to("meta")
    assert all(p.is_meta for p in parts(layer))


def test_a_state_from_inference_starts_training(make):
    x = currents()
    layer, want = make(stateful=True), make(stateful=True)
    with torch.inference_mode():
        layer(x[:5])
    with torch.no_grad():
        want(x[:5])
    grads = []
    for each in (layer, want):
        leaf = x[5:].clone().requires_grad_()
        each(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_values_may_be_put_into_a_state_with_a_graph(make):
    x, layer = currents(), make(stateful=True)
    layer(x[:5].requires_grad_())
    for p in parts(layer):
        p[..., 1, :] = 0
    layer(x[5:]).square().sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_recomputes_rightly_or_not_at_all(make, reentrant):
    def gradient(*, stateful, between, checkpointed):
        layer, leaf = make(stateful=stateful), currents().requires_grad_()
        layer(currents(1))
        between(layer)
        run = partial(checkpoint, layer, use_reentrant=reentrant) if checkpointed else layer
        out = run(leaf)
        state = getattr(layer, "state", None)
        out.sum().backward()
        assert getattr(layer, "state", None) is state
        return leaf.grad

    def nothing(layer):
        pass

    def detach(layer):
        snnkernels.detach(layer)

    for stateful, between in ((False, nothing), (True, detach), (True, nothing)):
        call = partial(gradient, stateful=stateful, between=between)
        if stateful and (reentrant or between is nothing):  # which call it repeats cannot be told
            with pytest.raises(RuntimeError, match="carries its state and cannot tell"):
                call(checkpointed=True)
        else:
            assert torch.equal(call(checkpointed=True), call(checkpointed=False))


def test_one_step_without_a_batch_says_what_step_is_for(make):
    with pytest.raises(ValueError, match=r"x must be .*A single step .*goes to step\(\)"):
        make()(torch.rand(6))


# --- copies and penalties ------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("kind", [LIF, LeakyReadout])
def test_a_parametrised_layer_is_copied_after_a_call(kind):
    options = {"regulariser": (0.1, 0.0)} if kind is LIF else {}
    layer = kind(decay=0.4, learn_decay=True, stateful=True, **options)
    parametrize.register_parametrization(layer, "decay", Double())
    x = currents()
    layer(x)
    twin = copy.deepcopy(layer)
    assert twin.decay is not layer.decay and "decay=learned" in repr(layer)
    assert torch.equal(twin(x), layer(x))


def test_a_penalty_is_summed_once_and_never_later():
    model = nn.Sequential(LIF(regulariser=(0.1, 0.0)), LIF(regulariser=(0.1, 0.0)))
    x = currents().requires_grad_()
    model(x)
    first = layer_penalties(model)
    with pytest.raises(ValueError, match="have run since the last call; got none"):
        layer_penalties(model)
    model[0](x)  # an early exit
    assert 0 < layer_penalties(model) < first
    for drop in (snnkernels.reset, nn.Module.eval, nn.Module.train, nn.Module.double):
        model.float()(x)
        drop(model)
        assert all(layer.penalty is None for layer in model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_penalty_from_a_checkpoint_has_its_gradient_or_says_so(reentrant):
    grads = []
    for checkpointed in (False, True):
        layer, x = LIF(regulariser=(0.1, 0.0)), currents().requires_grad_()
        s = checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x)
        loss = s.sum() + layer_penalties(layer)
        if checkpointed and reentrant:
            with pytest.raises(RuntimeError, match="take use_reentrant=False"):
                loss.backward()
            return
        loss.backward()
        assert layer.penalty is None
        grads.append(x.grad)
    assert torch.equal(*grads)


# --- numbers in the state_dict -------------------------------------------------------------------


def test_numbers_are_saved_and_loaded(make):
    layer, other = make(), make()
    for module in other.modules():
        for name in getattr(module, "_numbers", ()):
            setattr(module, name, 0.125)
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved))
    assert torch.equal(other(currents()), layer(currents()))


def test_a_checkpoint_without_numbers_loads_and_a_wrong_one_is_named():
    layer = LIF(decay=0.3)
    layer.load_state_dict({})
    assert layer.decay == 0.3
    network = models.create("conv_snn", channels=(2, 2))
    old = {k: v for k, v in network.state_dict().items() if "neuron" not in k}
    old = {k: v for k, v in old.items() if not k.endswith("firing")}
    assert len(old) == len(list(network.parameters()))
    models.load(network, old)
    with pytest.raises(RuntimeError, match=r"size mismatch for decay: \[4\] .* a number here"):
        layer.load_state_dict({"decay": torch.ones(4)})
    with pytest.raises(RuntimeError, match="Unexpected key.*trace_decay"):
        layer.load_state_dict(LIF(reset="trace", trace_decay=0.5).state_dict())


def test_the_phase_of_the_hybrid_training_is_saved():
    network = models.create("conv_snn", channels=(2, 2))
    network.pretrain()
    fresh = models.create("conv_snn", channels=(2, 2))
    fresh.load_state_dict(network.state_dict())
    assert not any(m.firing for m in fresh.modules() if hasattr(m, "firing"))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(fresh(x), network(x))


def test_a_state_that_is_set_is_where_the_layer_starts():
    layer = LIF(decay=0.5, stateful=True)
    layer.state = State(v=torch.full(SHAPE[1:], 0.5))
    x = currents()
    want, _ = snnkernels.lif(x, 0.5, decay=0.5)
    assert torch.equal(layer(x), want)
