"""`fuse` and PyTorch around it: modes, copies, compilers; and its program."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from snnkernels import Neuron, fuse, spike
from snnkernels.backends.cpp import _core
from snnkernels.core.program import OPERATIONS, parse
from snnkernels.core.trace import trace
from snnkernels.nn.neurons import STEPS, se_adlif
from tests.tools.programs import FOLDER, kept, programs
from tests.tools.steps import BACKENDS, leaky, same


def test_text_is_the_program():
    for step in STEPS.values():
        neuron = fuse(step)
        options = {k: v for k, v in neuron.parameters.items()}
        traced = trace(step, 1, len(neuron.state_names), 1, (), options)
        assert parse(traced.program).text() == traced.program


def test_the_tables_of_both_languages_agree():
    if "cpp" in BACKENDS:
        assert tuple(OPERATIONS) == _core.OPERATIONS


def test_numbers_are_slots():
    one, other = (trace(leaky, 1, 1, 1, (), {"decay": d, "theta": 1.0}) for d in (0.5, 0.9))
    assert one.program == other.program and one.numbers != other.numbers


def test_traced_once_for_all_sizes(monkeypatch):
    calls = []
    module = __import__("snnkernels.ops.fuse", fromlist=["trace"])
    monkeypatch.setattr(module, "trace", lambda *a: calls.append(a) or trace(*a))

    def own(x, v, *, decay):
        h = decay * v + x
        return spike(h - 1), h

    neuron = fuse(own)
    for steps, samples in ((3, 2), (5, 2), (5, 7), (0, 1)):
        neuron(torch.randn(steps, samples, 4), decay=torch.rand(4))
        neuron(torch.randn(steps, samples, 4), decay=torch.rand(4, requires_grad=True))
    assert len(calls) == 1
    neuron(torch.randn(3, 2), decay=0.5)
    assert len(calls) == 2


def test_captured_number_is_read_at_each_call():
    scale = torch.tensor(2.0)

    def scaled(x, v):
        return x * scale, v + x

    neuron = fuse(scaled)
    x = torch.ones(2, 1)
    assert neuron(x)[0].sum() == 4
    scale.fill_(3.0)
    assert neuron(x)[0].sum() == 6


def test_memory_kept_for_backward(backend):
    def two(x, u, w):
        u = 0.9 * u + x - w
        s = spike(u - 1)
        return s, u * (1 - s), 0.9 * w + s

    x = torch.randn(64, 1000, requires_grad=True)
    s, state = fuse(two)(x, backend=backend)
    kept = [t for t in s.grad_fn.saved_tensors if t is not None]
    own = sum(t.numel() * 4 for t in kept if t.data_ptr() != x.data_ptr())
    assert own == 3 * 2 * 1000 * 4  # S * 4 bytes every 16 steps


def test_modes(backend):
    neuron = fuse(leaky)
    x = torch.randn(9, 2, 3)
    want = neuron(x, decay=0.5, backend=backend)
    with torch.no_grad():
        again = neuron(x.clone().requires_grad_(), decay=0.5, backend=backend)
    assert same(again[0], want[0]) and not again[0].requires_grad
    with torch.inference_mode():
        fresh = fuse(leaky)
        assert same(fresh(x, decay=0.53, backend=backend)[0], neuron(x, decay=0.53)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(neuron(x, decay=0.57, backend=backend)[0], neuron(x, decay=0.57)[0])
    torch.set_default_dtype(torch.float64)
    try:
        assert neuron(x, decay=0.58, backend=backend)[1].v.dtype == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_autocast(backend):
    """After a layer that gives bfloat16 the neuron is what it is on bfloat16 without autocast."""
    linear, neuron = torch.nn.Linear(6, 6), fuse(leaky)
    decay = torch.full((6,), 0.75, requires_grad=True)
    x = torch.randn(20, 2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        current = linear(x)
        s, state = neuron(current, decay=decay, backend=backend)
    assert (current.dtype, s.dtype, state.v.dtype) == (torch.bfloat16,) * 2 + (torch.float32,)
    given = current.detach().requires_grad_()
    s2, state2 = neuron(given, decay=decay, backend=backend)
    assert same(s, s2) and same(state.v, state2.v)
    g = torch.randn_like(s)
    ours = torch.autograd.grad(s, [current, decay], g)
    others = torch.autograd.grad(s2, [given, decay], g)
    assert all(same(a, b) for a, b in zip(ours, others, strict=True))


def test_distributed_data_parallel(backend):
    x = torch.randn(20, 4, 6)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 6), Neuron(se_adlif, learn=("alpha", "a"), channels=6, backend=backend)
    )
    copied = copy.deepcopy(net)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(copied)
        for _ in range(2):  # the second pass has the buckets that the first one built
            for each in (net, parallel):
                each.zero_grad()
                each(x).square().mean().backward()
            for (name, p), q in zip(net.named_parameters(), copied.parameters(), strict=True):
                assert p.grad is not None and same(p.grad, q.grad), name
    finally:
        torch.distributed.destroy_process_group()


def test_state_is_a_named_tuple_that_owns_its_storage(backend):
    neuron = fuse(leaky)
    _, state = neuron(torch.randn(5, 2, 3, requires_grad=True), decay=0.5, backend=backend)
    assert state._fields == ("v",)
    detached = state.detach()
    detached.v.add_(1)
    copied = pickle.loads(pickle.dumps(detached))
    assert torch.equal(copied.v, detached.v) and copied._fields == ("v",)


def test_pickle_and_deepcopy():
    neuron = fuse(leaky)
    x = torch.randn(5, 2, 3)
    for other in (pickle.loads(pickle.dumps(neuron)), copy.deepcopy(neuron)):
        assert same(other(x, decay=0.5)[0], neuron(x, decay=0.5)[0])


def test_a_step_that_is_no_function_of_a_module_cannot_be_pickled():
    def local(x, v):
        return x, v

    copy.deepcopy(fuse(local))
    with pytest.raises(pickle.PicklingError, match="function of a module"):
        pickle.dumps(fuse(local))


def test_differentiated_twice_is_an_error(backend):
    x = torch.randn(5, 3, requires_grad=True)
    s, _ = fuse(leaky)(x, decay=0.5, backend=backend)
    (dx,) = torch.autograd.grad(s.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        dx.sum().backward()


def test_opcheck(backend):
    text = trace(leaky, 1, 1, 1, ("decay",), {"theta": 1.0})
    x, decay = torch.randn(33, 2, 3), torch.rand(3)
    arguments = (text.program, [x], [None], [0.5], [decay], [*text.numbers], [False], 16, backend)
    torch.library.opcheck(torch.ops.snnkernels.program_forward.default, arguments)
    outputs, states, checkpoints = torch.ops.snnkernels.program_forward(*arguments)
    back = (
        text.program,
        [x],
        [None],
        [0.5],
        [decay],
        [*text.numbers],
        checkpoints,
        [torch.randn_like(outputs[0])],
        [None],
        [True, True, True],
        16,
        backend,
    )
    torch.library.opcheck(torch.ops.snnkernels.program_backward.default, back)


@pytest.mark.parametrize("compiler", ("eager", "aot_eager"))
def test_compiles_fullgraph(compiler, backend):
    neuron = fuse(leaky)

    def call(x, decay):
        s, state = neuron(x * 1.5, decay=decay, theta=0.9, backend=backend)
        return s, state.v

    x, decay = torch.randn(9, 2, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    want = call(x, decay)
    got = torch.compile(call, fullgraph=True, backend=compiler)(x, decay)
    assert all(same(a, b) for a, b in zip(got, want, strict=True))
    g = [torch.randn_like(w) for w in want]
    ours, others = (torch.autograd.grad(o, [x, decay], g) for o in (got, want))
    assert all(same(a, b) for a, b in zip(ours, others, strict=True))


def test_shipped_neurons_are_compiled_ahead_of_time():
    assert kept() == programs(), "run python -m tests.tools.programs"
    if "cpp" in BACKENDS:
        files = sorted(FOLDER.glob("*.txt"))
        assert _core.PROGRAMS == tuple(file.read_text() for file in files)
