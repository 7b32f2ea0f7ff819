"""A sequence in chunks against the same sequence at once."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import snnkernels
from snnkernels import LIF, IIRSynapse, LeakyReadout, Neuron, OverTime, checkpoint_time, models
from snnkernels.models._blocks import StepDropout
from snnkernels.models.iir_snn import SeriesSNN
from snnkernels.nn.encode import Bernoulli
from snnkernels.nn.losses import layer_penalties
from snnkernels.nn.neurons import se_adlif
from snnkernels.nn.norm import BNTT
from tests.nn.test_state import LAYERS, part_with_state

SHAPE = (10, 3, 6)
OUTPUT = {"LeakyReadout": "last", "LeakyReadout, mean": "mean"}


def currents(shape=SHAPE, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def gradients(out, leaves, seed=1):
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(out, leaves, g.to(out.dtype))


def same(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def network(filtered: bool = True, **options) -> nn.Module:
    """Everything that is carried from chunk to chunk, and what is not."""
    torch.manual_seed(0)
    return nn.Sequential(
        OverTime(nn.Conv2d(2, 8, 3, padding=1, bias=False)),
        BNTT(8, 10, momentum=None),
        LIF(decay=0.7, reset="soft", learn_decay=True, refractory=1, **options),
        StepDropout(0.25),
        OverTime(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8).eval(), nn.Flatten()),
        IIRSynapse.dual_exponential(4.0, 1.0, channels=128) if filtered else nn.Identity(),
        Neuron(se_adlif, learn=("alpha",), channels=128, **options),
        OverTime(nn.Linear(128, 16)),
    )


# --- equal to the whole ---------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4, 10])
@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_what_they_give_at_once(name, stateful, chunk):
    how = OUTPUT.get(name, "steps")
    found = {}
    for run in ("at once", "in parts", "checkpointed"):
        layer, x = LAYERS[name](stateful=stateful), currents().requires_grad_()
        before = currents(seed=1).requires_grad_()
        layer(before)  # the state it leaves has a graph
        part = part_with_state(layer)
        if run == "checkpointed":
            out = checkpoint_time(layer, x, chunk, output=how)
            assert stateful or part.state is None
        elif run == "at once":
            out = layer(x)
        else:
            part.stateful = True
            out = [layer(piece) for piece in x.split(chunk)]
            out = torch.cat(out) if how == "steps" else out[-1]
        state = [p for p in part.state if p is not None] if stateful else []
        loss = out.square().sum() + sum(p.square().sum() for p in state if p.requires_grad)
        leaves = [x, *([before] if stateful else [])]
        found[run] = (
            [out, *state],
            *(
                torch.autograd.grad(loss, some, retain_graph=True, allow_unused=True)
                if some
                else ()
                for some in (leaves, list(layer.parameters()))
            ),
        )
    left, gradients, learned = found["checkpointed"]
    want_left, want_gradients, want_learned = found["at once"]
    if how == "mean":  # a sum in another order
        torch.testing.assert_close([left, gradients], [want_left, want_gradients])
    else:
        assert same(left, want_left)
        assert same(gradients, found["in parts"][1])
        # The adjoint of a filter adds up in another order where one call ends.
        filtered = getattr(part, "alpha", None) is not None and name != "Neuron"
        assert filtered or same(gradients, want_gradients)
    torch.testing.assert_close(gradients, want_gradients, rtol=1e-5, atol=1e-5)
    for got, want in zip(learned, want_learned, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_a_network_gives_what_it_gives_at_once(chunk, filtered):
    results = []
    for whole in (True, False):
        # Four samples: below that, matrix products add up in another order.
        net, x = network(filtered), currents((10, 4, 2, 6, 6)).requires_grad_()
        out = net(x) if whole else checkpoint_time(net, x, chunk)
        results.append(([out, *net.buffers()], *gradients(out, [x, *net.parameters()])))
    (left, dx, *learned), (want_left, want_dx, *want_learned) = results
    assert same(left, want_left)
    assert filtered or torch.equal(dx, want_dx)
    for got, want in zip([dx, *learned], [want_dx, *want_learned], strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize(
    "name, options",
    [
        ("s_resnet8", {"filters": 4}),
        ("s_resnet8", {"filters": 4, "residual": "v2v", "learn_decay": "shared"}),
        ("sts_resnet", {"widths": (2, 2, 4, 4), "in_channels": 3, "size": 32}),
    ],
)
def test_models_train_in_chunks(name, options):
    results = []
    for whole in (True, False):
        torch.manual_seed(0)
        net = models.create(name, steps=6, **options)
        x = torch.rand(6, 2, 3, 32, 32, requires_grad=True)
        how = "last" if name == "s_resnet8" else "mean"
        out = net(x) if whole else checkpoint_time(net, x, 3, output=how)
        results.append((out, *gradients(out, [x, *net.parameters()])))
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
    assert torch.equal(results[0][0], results[1][0]) or name == "sts_resnet"


def test_a_default_chunk_is_the_square_root_and_a_graph_may_run_twice():
    seen, layer = [], LIF()
    layer.register_forward_hook(lambda *_: seen.append(_[1][0].shape[0]))
    x = currents((17, 2, 3)).requires_grad_()
    out = checkpoint_time(layer, x)
    assert seen == [5, 5, 5, 2]
    first = torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert seen[4:] == [2, 5, 5, 5]
    assert same(first, torch.autograd.grad(out.sum(), x))


@pytest.mark.parametrize("kind", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_a_run_in_chunks(kind):
    net, x = network(stateful=True).eval(), currents((10, 2, 2, 6, 6))
    with kind():
        assert torch.equal(checkpoint_time(net, x, 4), network(stateful=True).eval()(x))
    assert net[2].state is not None


def test_penalties_of_regularisers_are_those_of_the_whole():
    grads = []
    for whole in (True, False):
        net = nn.Sequential(LIF(regulariser=(0.1, 0.0)), LIF(regulariser=(0.2, -0.1)))
        x = currents().requires_grad_()
        s = net(x) if whole else checkpoint_time(net, x, 3)
        loss = s.sum() + 100 * layer_penalties(net)
        grads.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*grads)


# --- what a second run must find as it was ----------------------------------------------------


def test_random_numbers_are_drawn_once():
    x = torch.ones(12, 4, 50, requires_grad=True)
    out = checkpoint_time(nn.Dropout(0.5), x, 4)
    before = torch.get_rng_state()
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(dx, out) and 0.4 < (out == 0).float().mean() < 0.6
    assert torch.equal(torch.get_rng_state(), before)


def test_autocast_is_as_it_was_and_casts_leave_no_trace():
    results = []
    for whole in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(OverTime(nn.Linear(6, 16)), LIF(), OverTime(nn.Linear(16, 8)))
        x = currents()
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x) if whole else checkpoint_time(net, x, 5)
            out = out + net(x)  # its weights were cast before, without a graph
        results.append((out, *gradients(out, list(net.parameters()))))
    assert results[0][0].dtype == torch.bfloat16
    assert torch.equal(results[0][0], results[1][0])
    for got, want in zip(*results, strict=True):
        assert (got - want).float().norm() <= 1e-2 * want.float().norm()  # bfloat16 sums


def test_checkpoints_inside_find_where_their_chunk_began():
    class Inner(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.layer, self.checkpointed = LIF(decay=0.9, learn_decay=True), checkpointed

        def forward(self, x):
            if not self.checkpointed:
                return self.layer(x)
            return checkpoint(self.layer, x, use_reentrant=False)

    results = []
    for checkpointed in (False, True):
        x, net = currents().requires_grad_(), Inner(checkpointed)
        (dx,) = gradients(checkpoint_time(net, x, 3), [x])
        results.append(dx)
    assert torch.equal(*results)


# --- truncation -------------------------------------------------------------------------------


def test_truncation_is_a_loop_with_detached_states():
    results = []
    for loop in (True, False):
        layer, x = LIF(decay=0.9, learn_decay=True, stateful=True), currents().requires_grad_()
        if loop:
            out = []
            for piece in x.split(4):
                snnkernels.detach(layer)
                out.append(layer(piece))
            out = torch.cat(out)
        else:
            out = checkpoint_time(layer, x, 2, truncate=4)
        results.append((out, *gradients(out, [x])))
    assert same(*results)
    whole = gradients(LIF(decay=0.9)(x), [x])
    assert not same(whole, results[0][1:])


# --- streams ----------------------------------------------------------------------------------


class Disk:
    """Chunks that are made anew each time that one is asked for."""

    def __init__(self, steps=(4, 4, 2)):
        self.steps, self.read, self.alive = steps, [], weakref.WeakSet()

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, i):
        if i >= len(self.steps):
            raise IndexError(i)
        self.read.append(i)
        piece = currents().split(list(self.steps))[i].clone()
        self.alive.add(piece)
        return piece


@pytest.mark.parametrize("kind", [list, iter, lambda disk: disk])
def test_a_stream_gives_what_its_chunks_give_at_once(kind):
    results = []
    for whole in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(OverTime(nn.Linear(6, 16)), LIF(decay=0.9), LeakyReadout(decay=0.9))
        out = net(currents()) if whole else checkpoint_time(net, kind(Disk()), output="last")
        results.append((out, gradients(out, list(net.parameters()))))
    (out, learned), (want_out, want_learned) = results
    assert torch.equal(out, want_out)
    for got, want in zip(learned, want_learned, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_a_sequence_on_disk_is_read_twice_and_an_iterator_is_kept():
    for make, read, kept in ((lambda d: d, [0, 1, 2, 2, 1, 0], 0), (iter, [0, 1, 2], 3)):
        disk, layer = Disk(), LIF(learn_decay=True)
        out = checkpoint_time(layer, make(disk), output="steps")
        assert len(disk.alive) == kept
        out.sum().backward()
        assert disk.read == read


# --- memory -----------------------------------------------------------------------------------


class Live:
    """Bytes that graphs keep, now and at most; parameters and ``known`` are not counted."""

    def __init__(self, known):
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.counts, self.now, self.most = {}, 0, 0

    def pack(self, tensor):
        memory = tensor.untyped_storage()
        place, size = memory.data_ptr(), memory.nbytes()
        if place in self.known:
            return Holder(tensor)
        self.counts[place] = self.counts.get(place, 0) + 1
        self.now += size if self.counts[place] == 1 else 0
        self.most = max(self.most, self.now)
        holder = Holder(tensor)
        weakref.finalize(holder, self.drop, place, size)
        return holder

    def drop(self, place, size):
        self.counts[place] -= 1
        self.now -= size if self.counts[place] == 0 else 0

    def unpack(self, holder):
        return holder.tensor


class Holder:
    """A tensor that is kept."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize("stream", [False, True])
def test_memory_is_that_of_a_chunk_and_of_the_borders(stream):
    steps, chunk, step = 1000, 32, (2, 64)
    most = []
    for c in (None, chunk):
        torch.manual_seed(0)
        net = nn.Sequential(
            OverTime(nn.Linear(64, 64)), LIF(), OverTime(nn.Linear(64, 64)), LIF(), LeakyReadout()
        )
        x = torch.rand(steps, *step)
        live = Live([x, *net.parameters()])
        with torch.autograd.graph.saved_tensors_hooks(live.pack, live.unpack):
            if c is None:
                out = net(x)
            elif stream:
                out = checkpoint_time(net, Split(x, c), output="last")
            else:
                out = checkpoint_time(net, x, c, output="last")
            held = live.now
            out.sum().backward()
        most.append(live.most)
        assert live.now == 0
    states = 3 * 4 * 128  # of three layers, float32
    assert held == (steps - 1) // chunk * states
    assert most[1] - held <= most[0] * (chunk / steps) + 6 * states
    assert most[1] <= most[0] / 8


class Split:
    """A tensor as a sequence of chunks that are copies."""

    def __init__(self, x, chunk):
        self.pieces = x.split(chunk)

    def __len__(self):
        return len(self.pieces)

    def __getitem__(self, i):
        return self.pieces[i]


# --- refused ----------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LIF()

    def forward(self, x):
        return self.layer(self.layer(x))


class Within(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LIF()

    def forward(self, x):
        return checkpoint_time(self.layer, x, 2)


@pytest.mark.parametrize(
    "model, told",
    [
        (nn.Sequential(LIF(), nn.BatchNorm1d(3)), "BatchNorm1d 1 in chunks: it normalises by stat"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "BatchNorm1d in chunks: it norm"),
        (nn.LSTM(6, 6), "LSTM in chunks: it starts from a state of zero"),
        (models.create("tscnn"), r"TemporalConv layers\.0 in chunks: it looks back"),
        (models.create("rsnn_features"), "ConvLSTM .* it starts from a state of zero"),
        (nn.Sequential(Bernoulli(3), LIF()), "Bernoulli 0 in chunks: it makes all steps"),
        (SeriesSNN(6, 2), "SeriesSNN in chunks: its input has time second"),
        (models.create("conv_snn", channels=(2, 2)), None),
        (Within(), "LIF in chunks: a call of checkpoint_time around this one does already"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_all_steps_is_refused_with_the_reason(model, told):
    if told is None:
        model.pretrain()
        told = "HybridLIF .* in chunks: before it fires"
    with pytest.raises(ValueError, match=f"checkpoint_time cannot run {told}"):
        checkpoint_time(model, currents(), 5)


@pytest.mark.parametrize(
    "call, kind, told",
    [
        (lambda: checkpoint_time(torch.relu, currents()), TypeError, "model must be a torch.nn"),
        (lambda: checkpoint_time(LIF(), 3.0), TypeError, "x must be a tensor or a stream"),
        (lambda: checkpoint_time(LIF(), [1.0]), TypeError, "that are tensors; got 1.0"),
        (lambda: checkpoint_time(LIF(), []), ValueError, "at least one chunk; got none"),
        (lambda: checkpoint_time(LIF(), currents()[:0]), ValueError, r"T >= 1; got \[0, 3, 6\]"),
        (lambda: checkpoint_time(LIF(), [currents()[:0]]), ValueError, r"t >= 1; got \[0, 3, 6\]"),
        (lambda: checkpoint_time(LIF(), currents(), 0), ValueError, "chunk must be a whole"),
        (lambda: checkpoint_time(LIF(), [currents()], 2), ValueError, "chunk is for a tensor"),
        (
            lambda: checkpoint_time(LIF(), [currents().requires_grad_()]),
            ValueError,
            "x must be one tensor to get a gradient",
        ),
        (
            lambda: checkpoint_time(LIF(), currents(), 4, truncate=6),
            ValueError,
            "truncate must be a multiple of chunk = 4; got 6",
        ),
        (
            lambda: checkpoint_time(LIF(), [currents(), currents()], truncate=4),
            ValueError,
            "truncate must be a multiple of the chunks' steps; got 4 and .* after 10 steps",
        ),
        (
            lambda: checkpoint_time(LIF(), currents(), 4, output="rate"),
            ValueError,
            "output must be one of 'steps', 'sum', 'mean', 'last'; got 'rate'",
        ),
        (
            lambda: checkpoint_time(LeakyReadout(), currents(), 4),
            ValueError,
            r"output='steps' needs .* got \[3, 6\] for 4: take 'sum', 'mean' or 'last'",
        ),
        (
            lambda: checkpoint_time(Twice(), currents(), 4),
            RuntimeError,
            "one state of LIF .* more than once in a chunk",
        ),
    ],
)
def test_errors_name_what_came_and_what_is_allowed(call, kind, told):
    with pytest.raises(kind, match=told):
        call()


class Outside(nn.Module):
    """Reads a tensor that is no parameter."""

    def __init__(self, scale):
        super().__init__()
        self.scale = [scale]

    def forward(self, x):
        return x * self.scale[0]


class Keeps(nn.Module):
    """Adds the step before, and keeps it somewhere that nobody looks at, or in some other way."""

    def __init__(self, how):
        super().__init__()
        self.how, self.box = how, [0.0]
        self.memories = {}
        self.register_buffer("buffer", torch.zeros(()))

    def forward(self, x):
        last = x.detach()[-1]
        if self.how == "attribute":
            out, self.last = x + getattr(self, "last", 0.0), last
        elif self.how == "dictionary":
            out, self.memories["v"] = x + self.memories.get("v", 0.0), last
        elif self.how == "buffer":
            out, self.buffer = x + self.buffer, last
        else:
            out, self.box[0] = x + self.box[0], last
        return out


class Caches(nn.Module):
    """Makes a tensor once."""

    def forward(self, x):
        if not hasattr(self, "table"):
            self.table = torch.rand(x.shape[1:])
        return x * self.table


@pytest.mark.parametrize("how", ["attribute", "dictionary", "buffer"])
def test_a_state_that_is_not_carried_is_refused(how):
    told = "does not carry '.*' of the module '1', which every chunk sets anew"
    with pytest.raises(RuntimeError, match=told):
        checkpoint_time(nn.Sequential(LIF(), Keeps(how)), currents(), 3)


def test_what_a_module_makes_once_is_no_state():
    layer = Caches()
    out = checkpoint_time(layer, torch.ones(4, 2, 3), 1)
    assert torch.equal(out, layer.table.expand(4, 2, 3))


def test_a_gradient_that_would_be_lost_is_an_error():
    x = currents().requires_grad_()
    out = checkpoint_time(Outside(torch.ones(6, requires_grad=True)), x, 5)
    with pytest.raises(RuntimeError, match=r"tensor of shape \[6\] that requires a gradient and"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in Repeated")
def test_detect_anomaly_finds_a_state_that_is_not_carried():
    x = currents().requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=False):
        out = checkpoint_time(Keeps("hidden"), x, 5)
        with pytest.raises(RuntimeError, match="another result when it ran again"):
            out.sum().backward()
        out = checkpoint_time(LIF(), x, 5)
        out.sum().backward()
