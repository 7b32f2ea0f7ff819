"""The op within PyTorch: registration, compilation, autocast, checkpointing, and what it keeps."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import snnkernels
from snnkernels import State, lif
from snnkernels.backends import load
from snnkernels.core.call import TENSORS, Arriving, Call, Coefficient, Gradients
from tests.tools.cases import NEURONS, SHAPES, SURROGATES, Neuron, Shape, make_inputs
from tests.tools.compare import assert_same, run

SMALL = Shape((5, 2, 3, 4))


# --- registration ---------------------------------------------------------------------------------

OPS = {
    "plain": (Call(), "three_dims"),
    "kept": (Call(checkpoint_every=4), "channels_last"),
    "soft": (Call(reset=1, refractory=2, checkpoint_every=4, record_h=1), "three_dims"),
    "transposed": (Call(reset=2, detach_reset=1, checkpoint_every=16), "batch_first"),
    "no_steps": (Call(checkpoint_every=16, record_h=1), "no_steps"),
    "expanded": (Call(surrogate=3, checkpoint_every=2), "same_at_all_steps"),
}
EVERYTHING = ("x", "v", "decay", "v_threshold")


def make_call(name: str) -> tuple[torch.Tensor, Call]:
    call, shape = OPS[name]
    x = make_inputs(SHAPES[shape], Neuron()).x
    v = torch.randn(x.shape[1:])
    wait = torch.zeros_like(v) if call.refractory else None
    return x, call._replace(
        decay=Coefficient(torch.tensor(0.9)),
        v_threshold=Coefficient(1 + torch.rand(x.shape[2])),
        state=State(v, wait),
        surrogate_p=1.0,
        surrogate_q=1.0,
    )


@pytest.mark.parametrize("name", OPS)
def test_opcheck_forward(name):
    x, call = make_call(name)
    tensors, *rest = call.flatten()
    torch.library.opcheck(torch.ops.snnkernels.neuron_forward, (x, *tensors, *rest, "cpp"))


@pytest.mark.parametrize("wanted", (EVERYTHING, ("x",), ("decay",)))
@pytest.mark.parametrize("name", [name for name in OPS if name != "plain"])
def test_opcheck_backward(name, wanted):
    x, call = make_call(name)
    tensors, *rest = call.flatten()
    checkpoints = torch.ops.snnkernels.neuron_forward(x, *tensors, *rest, "cpp")[1]
    dh = torch.randn(x.shape) if call.record_h else None
    arriving = Arriving(torch.randn(x.shape), torch.randn(x.shape[1:]), dh)
    wanted = [name in wanted for name in Gradients._fields]
    arguments = (x, *tensors, checkpoints, *arriving, *rest, "cpp", wanted)
    torch.library.opcheck(torch.ops.snnkernels.neuron_backward, arguments)


def test_a_call_survives_the_border():
    x, call = make_call("soft")
    again = Call.of(*call.flatten())
    assert len(call.flatten()[0]) == len(TENSORS)
    for field, a, b in zip(Call._fields, again, call, strict=True):
        same = a.tensor is b.tensor if isinstance(a, Coefficient) else a is b or a == b
        assert same, field


# --- torch.compile, autocast, checkpointing -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ("default", "everything"))
def test_compiles_fullgraph(name):
    neuron = NEURONS[name]

    def step(x, v, decay):
        s, state, *h = lif(x * 2, v, decay=decay, backend="cpp", **neuron.options())
        return (s * 3).sum() + state.v.square().sum() + sum(a.sum() for a in h)

    def gradients(function, steps):
        inputs = make_inputs(Shape((steps, 2, 3, 4)), neuron, seed=steps)
        leaves = [inputs.x, inputs.dv, torch.full((3,), 0.9)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=None, backend="aot_eager")
    for steps in (5, 9, 13):  # the second length makes T dynamic, the third must not compile again
        with torch.compiler.set_stance("fail_on_recompile" if steps == 13 else "default"):
            got = gradients(compiled, steps)
        for a, b in zip(got, gradients(step, steps), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    x = SHAPES["channels_last"].arrange(torch.randn(20, 3, 4, 5, 3)).requires_grad_()
    s, state = torch.compile(lif, fullgraph=True)(x, decay=0.9, backend="cpp")
    want, state_want = lif(x, decay=0.9, backend="cpp")
    assert_same(s.detach(), want.detach())
    assert_same(state.v.detach(), state_want.v.detach())
    arriving = torch.randn_like(s), torch.randn_like(state.v)
    (dx,) = torch.autograd.grad((s, state.v), x, arriving)
    assert_same(dx, *torch.autograd.grad((want, state_want.v), x, arriving))


@pytest.mark.parametrize("backend", ("torch", "cpp"))
def test_autocast_takes_the_dtype_that_arrives(backend):
    x, weight = torch.randn(6, 4, 8), torch.randn(8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        s, state, h = lif(x @ weight, record="h", backend=backend)
        whole, _ = lif(x, backend=backend)
    assert s.dtype == torch.bfloat16 and whole.dtype == torch.float32
    assert state.v.dtype == h.dtype == torch.float32
    s.sum().backward()
    assert weight.grad.dtype == torch.float32 and weight.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ("torch", "cpp"))
@pytest.mark.parametrize("name", ("everything", "scalar_soft"))
def test_activation_checkpointing_changes_no_bit(name, backend):
    neuron = NEURONS[name]
    inputs = make_inputs(SMALL, neuron)
    x = inputs.x.requires_grad_()

    def call(x):
        s, state, *_ = lif(x, inputs.state, decay=0.9, backend=backend, **neuron.options())
        return s, state.v

    (want,) = torch.autograd.grad(call(x), x, (inputs.ds, inputs.dv))
    out = checkpoint(call, x, use_reentrant=False)
    (got,) = torch.autograd.grad(out, x, (inputs.ds, inputs.dv))
    assert_same(got, want)


# --- what is kept for backward --------------------------------------------------------------------


@pytest.mark.parametrize("steps", (1, 5, 16, 17, 64))
@pytest.mark.parametrize("name", ("default", "soft", "recorded", "refractory", "channel_hard"))
def test_what_is_kept_for_backward(name, steps, target):
    neuron = NEURONS[name]
    shape = Shape((steps, 2, 3, 4))
    inputs = make_inputs(shape, neuron).to(target.device)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = lif(
            inputs.x.requires_grad_(),
            inputs.state,
            decay=inputs.decay,
            v_threshold=inputs.v_threshold,
            backend=target.backend,
            **neuron.options(),
        )
    assert result[0].requires_grad and inputs.x.untyped_storage().data_ptr() in kept
    every, floats = load(target.backend).CHECKPOINT_EVERY, 2 if neuron.refractory else 1
    coefficients = sum(c.nbytes for c in inputs[2:4] if isinstance(c, torch.Tensor))
    initial = 0 if inputs.state is None else sum(p.nbytes for p in inputs.state if p is not None)
    checkpoints = 4 * floats * -(-steps // every) * (shape.size // steps)
    assert sum(kept.values()) <= inputs.x.nbytes + checkpoints + initial + coefficients


@pytest.mark.parametrize("backend", ("torch", "cpp"))
def test_without_gradients_nothing_is_kept(backend, monkeypatch):
    inputs = make_inputs(SMALL, NEURONS["channel_hard"])
    decay = inputs.decay.requires_grad_()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(_forbidden, _forbidden):
        s, state = lif(inputs.x, inputs.state, decay=decay, backend=backend)
    assert not s.requires_grad and not state.v.requires_grad
    with torch.autograd.graph.saved_tensors_hooks(_forbidden, _forbidden):
        s, state = lif(inputs.x, inputs.state, decay=decay.detach(), backend=backend)
    assert s.grad_fn is None and state.v.grad_fn is None
    if backend == "cpp":  # and the kernel is not even asked for checkpoints
        asked = []
        monkeypatch.setattr(
            load("cpp"),
            "neuron_forward",
            lambda layout, call, x, outputs: asked.append((call, outputs)),
        )
        lif(inputs.x, inputs.state, backend=backend)
        [(call, outputs)] = asked
        assert call.checkpoint_every == 0 and outputs.checkpoints.numel() == 0


def _forbidden(*_):
    raise AssertionError("a tensor was kept")


# --- the small things -----------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_surrogates_are_values(surrogate):
    for twin in (copy.deepcopy(surrogate), pickle.loads(pickle.dumps(surrogate))):
        assert twin == surrogate and hash(twin) == hash(surrogate)
    assert eval(repr(surrogate), vars(snnkernels)) == surrogate
    with pytest.raises(AttributeError):
        surrogate.code = 3


def test_the_ways_to_give_a_state():
    x = torch.randn(4, 3)
    want = lif(x, State(torch.full((3,), 0.5)))[0]
    for state in (0.5, torch.tensor(0.5), torch.full((3,), 0.5), State(torch.tensor(0.5))):
        assert_same(lif(x, state)[0], want)
    assert_same(lif(x, None)[0], lif(x, 0)[0])
    assert_same(lif(x, State())[0], lif(x, 0.0)[0])


def test_inputs_are_left_as_they_are():
    neuron = NEURONS["everything"]
    inputs = make_inputs(SMALL, neuron)
    before = copy.deepcopy(inputs)
    run(inputs, neuron, "cpp")
    for a, b in zip([*inputs[2:], *inputs.state], [*before[2:], *before.state], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_same(a, b)


def test_float64_runs_on_backend_torch():
    x = torch.randn(5, 3, dtype=torch.float64)
    s, state = lif(x)
    assert s.dtype == state.v.dtype == torch.float64
