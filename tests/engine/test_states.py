"""What a user does with a state that an op returned, for every op and option."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import snnkernels
from snnkernels import State
from tests.tools.calls import OPS, PARTS, total
from tests.tools.compare import assert_same

SHAPE = (5, 2, 3, 2, 2)


@pytest.fixture(params=[name for name in OPS if name != "BNTT"])
def call(request, place):
    """Runs an op with a gradient: from a start (None: the given one) to its outputs and a leaf."""
    op = OPS[request.param]
    arguments = {name: t.to(place.device) for name, t in op.arguments(SHAPE).items()}
    parts = [name for name in PARTS if name in op.names]

    def run(start=None, steps=slice(None)):
        leaf = arguments["decay" if "decay" in op.names else "alpha"].clone().requires_grad_()
        given = {**arguments, "decay" if "decay" in op.names else "alpha": leaf}
        given["x"] = arguments["x"][steps].clone().requires_grad_()
        outputs = op.run(backend=place.backend, **{**given, **(start or {})})
        state = {name: outputs["state" if "f" in outputs else name] for name in parts}
        return outputs, state, leaf

    run.is_fused = request.param == "fuse"
    run.arguments = {name: arguments[name] for name in parts}
    return run


def _set(part):
    part[1] = 0.0


def _saved(part):
    file = io.BytesIO()
    torch.save(part, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


IN_PLACE = (torch.Tensor.zero_, torch.Tensor.detach_, _set)
COPIES = {
    "deepcopy": lambda part: copy.deepcopy(part.detach()),
    "pickle": lambda part: pickle.loads(pickle.dumps(part.detach())),
    "torch.save": lambda part: _saved(part.detach()),
    "to": lambda part: part.to("cpu", torch.float64).to(part),
}


def _gradient(outputs, leaf):
    first = outputs["f" if "f" in outputs else "s"]
    return torch.autograd.grad(first.sum(), leaf, allow_unused=True, materialize_grads=True)[0]


@pytest.mark.parametrize("steps", (slice(0, 0), slice(None)), ids=("no_steps", "steps"))
def test_parts_can_be_changed_in_place(call, steps):
    """And nothing else changes: neither another part, nor the start, nor the gradient."""
    before = {name: part.clone() for name, part in call.arguments.items()}
    outputs, _, leaf = call(steps=steps)
    want = _gradient(outputs, leaf)
    for change in IN_PLACE:
        outputs, state, leaf = call(steps=steps)
        for name, part in state.items():
            others = {k: other.detach().clone() for k, other in state.items() if k != name}
            change(part)
            for k, other in others.items():
                assert_same(state[k].detach(), other, f"{k} after a change of {name}")
        assert_same(_gradient(outputs, leaf), want, "the gradient")
    with torch.no_grad():
        for name, part in call(steps=steps)[1].items():
            part.zero_()
            assert_same(call.arguments[name], before[name], name)


def test_parts_hold_no_memory_but_their_own(call):
    _, state, _ = call()
    for name, part in state.items():
        assert part.untyped_storage().nbytes() == part.nbytes, name
        assert not part._is_view(), name


@pytest.mark.parametrize("way", COPIES)
def test_copies_start_as_the_original(call, way):
    _, state, _ = call()
    copies = {name: COPIES[way](part) for name, part in state.items()}
    for (name, want), got in zip(call(state)[0].items(), call(copies)[0].values(), strict=True):
        assert_same(got.detach(), want.detach(), name)


@pytest.mark.parametrize("mode", (torch.inference_mode, torch.no_grad))
def test_a_state_from_inference_starts_training(call, mode):
    with mode():
        _, state, _ = call()
    outputs, _, leaf = call(state)
    (got,) = torch.autograd.grad(total(outputs), leaf)
    outputs, _, leaf = call({name: part.clone() for name, part in state.items()})
    assert_same(got, torch.autograd.grad(total(outputs), leaf)[0])


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16, torch.int64))
def test_a_state_of_another_dtype_is_what_its_values_are(call, dtype):
    given = {name: (2 * part).round().to(dtype) for name, part in call.arguments.items()}
    if call.is_fused and not dtype.is_floating_point:
        with pytest.raises(TypeError, match="floating-point tensor; got torch.int64"):
            call(given)
        return
    got, *_ = call(given)
    want, *_ = call({name: part.float() for name, part in given.items()})
    for name, out in want.items():
        assert_same(got[name].detach(), out.detach(), name)


def test_a_number_stands_for_all_neurons(call):
    for number in (1, 0.0, torch.tensor(1.0)):
        got, *_ = call(dict.fromkeys(call.arguments, number))
        want, *_ = call({k: torch.full_like(t, number) for k, t in call.arguments.items()})
        for name, out in want.items():
            assert_same(got[name].detach(), out.detach(), name)


def test_a_whole_state_is_saved_and_loaded():
    x = torch.rand(4, 2, 3)
    _, state = snnkernels.lif(x, refractory=2, synapse=([0.5], [1.0]))
    assert isinstance(_saved(state), State)
    for got in (_saved(state), pickle.loads(pickle.dumps(state)), copy.deepcopy(state)):
        for name, want in state._asdict().items():
            assert (want is None) == (getattr(got, name) is None)
            if want is not None:
                assert_same(getattr(got, name), want, name)


def test_a_counter_that_asks_for_a_gradient_gets_none(place):
    leaves = [torch.ones(SHAPE[1:], device=place.device).requires_grad_() for _ in range(2)]
    x = torch.ones(SHAPE, device=place.device)
    s, _ = snnkernels.lif(x, State(*leaves), refractory=2, backend=place.backend)
    dv, drefractory = torch.autograd.grad(s.sum(), leaves, allow_unused=True)
    assert dv.shape == SHAPE[1:] and drefractory is None
