"""Norse's neurons over time: the same outputs, states and gradients as its loops."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import snnkernels
from tests.convert.compare import INPUTS, input_sequence, relative
from tests.tools import peer_programs
from tests.tools.programs import kept

norse = pytest.importorskip("norse.torch", reason="norse is not installed")
from norse.torch.functional.reset import reset_subtract  # noqa: E402
from norse.torch.module.snn import SNN  # noqa: E402

from snnkernels.convert.norse import Norse  # noqa: E402

NORSE = Norse()
LIF, BOX = norse.LIFParameters, norse.LIFBoxParameters


def numbers(kind: type, **values: float):
    return kind(**{k: torch.tensor(v) if type(v) is float else v for k, v in values.items()})


def learned(kind: type, **values: float):
    return kind(**{k: nn.Parameter(torch.tensor(v)) for k, v in values.items()})


REST = dict(v_leak=0.25, v_reset=-0.5)
NEURONS = {
    **{
        f"LIF {m}": (norse.LIF, numbers(LIF, method=m, alpha=0.8, **REST))
        for m in ("super", "triangle", "tanh", "circ", "heavi_erfc")
    },
    "LIF": (norse.LIF, LIF()),
    "LIF learned": (
        norse.LIF,
        learned(LIF, tau_syn_inv=210.0, tau_mem_inv=90.0, v_leak=0.1, v_th=0.9, v_reset=-0.1),
    ),
    "LIFCell": (norse.LIFCell, LIF()),
    "LIFBoxCell": (norse.LIFBoxCell, numbers(BOX, tau_mem_inv=400.0, **REST)),
    "LIFBoxCell subtract": (
        norse.LIFBoxCell,
        numbers(BOX, tau_mem_inv=400.0, reset_method=reset_subtract),
    ),
    "IAF": (norse.IAF, None),
    "IAFCell": (norse.IAFCell, norse.IAFParameters(v_reset=torch.tensor(-0.25))),
    "LI": (norse.LI, norse.LIParameters(v_leak=torch.tensor(0.25))),
    "LICell": (norse.LICell, None),
    "LIBoxCell": (norse.LIBoxCell, None),
    "LIFEx": (norse.LIFEx, None),
    "LIFExCell": (norse.LIFExCell, None),
    "LIFAdEx": (norse.LIFAdEx, None),
    "LIFAdExCell": (norse.LIFAdExCell, norse.LIFAdExParameters(v_leak=torch.tensor(0.1))),
    "LSNN": (norse.LSNN, None),
    "LSNNCell": (norse.LSNNCell, None),
}
INEXACT = ("LIFEx", "LIFAdEx")  # exp in the loop: 1 unit in the last place


def learned_of(module: nn.Module) -> list[Tensor]:
    return [p for p in module.p if isinstance(p, nn.Parameter)]


def pair(name: str) -> tuple[nn.Module, Callable, nn.Module, Callable]:
    """A neuron as a loop, and one that runs over time; with their modules."""
    kind, p = NEURONS[name]
    theirs = kind() if p is None else kind(p)
    other = copy.deepcopy(theirs)
    if isinstance(theirs, SNN):
        snnkernels.accelerate(other, strict=True)
        return theirs, theirs, other, other
    net = snnkernels.run_over_time(norse.SequentialState(other), strict=True)

    def ours(x, state):
        output, state = net(x, [state])
        return output, state[0]

    return theirs, lambda x, state: loop(theirs, x, state), other, ours


def loop(net: nn.Module, x: Tensor, state=None) -> tuple:
    """What a user's loop over time gathers."""
    outputs = []
    for x_t in x.unbind(0):
        output, state = net(x_t, state)
        outputs.append(output)
    return torch.stack(outputs), state


def flat(state) -> list[Tensor]:
    """The tensors of a state, in their order."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state if part is not None for tensor in flat(part)]


def equal(ours, theirs) -> bool:
    pairs = zip(flat(ours), flat(theirs), strict=True)
    return all(torch.equal(a, b.expand(a.shape)) for a, b in pairs)


def near(ours, theirs) -> bool:
    pairs = zip(flat(ours), flat(theirs), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=2e-6) for a, b in pairs)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", NEURONS)
def test_neurons(name, inputs):
    theirs, its_call, ours, call = pair(name)
    a = input_sequence(inputs, 40, 256).requires_grad_()
    b = a.detach().clone().requires_grad_()
    mine, its, state, its_state = [], [], None, None
    for half in (slice(0, 20), slice(20, 40)):  # the second call goes on from the first's state
        out, state = call(a[half], state)
        its_out, its_state = its_call(b[half], its_state)
        assert type(state) is type(its_state)
        mine.append(out), its.append(its_out)
    exact = name.removesuffix("Cell") not in INEXACT
    assert equal(mine, its) and its[0].count_nonzero() > 0
    assert (equal if exact else near)(state, its_state)
    ends = torch.cat([*mine, *(s.unsqueeze(0) for s in state)])
    its_ends = torch.cat([*its, *(s.unsqueeze(0) for s in its_state)])
    weight = 0.5 + torch.rand_like(ends)
    found = torch.autograd.grad(ends, [a, *learned_of(ours)], weight)
    wanted = torch.autograd.grad(its_ends, [b, *learned_of(theirs)], weight)
    assert max(map(relative, found, wanted)) < 1e-6


def exact(net: nn.Module) -> nn.Module:
    """Weights that are eighths: sums of products are exact, whatever the size of the batch."""
    for parameter in net.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    return net


def images(steps: int = 9) -> Tensor:
    return torch.randint(-8, 24, (steps, 2, 1, 8, 8)) / 8


def cells(**options) -> nn.Module:
    inner = norse.SequentialState(nn.Flatten(), nn.Linear(36, 6), norse.LIFCell())
    layers = nn.Conv2d(1, 4, 3), norse.LIFCell(), nn.MaxPool2d(2), inner
    layers += nn.Dropout(0.5), norse.LIFRecurrentCell(6, 6), nn.Linear(6, 5), norse.LICell()
    return exact(norse.SequentialState(*layers, **options)).eval()


def lifted() -> nn.Module:
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2))
    layers = norse.Lift(convolution), norse.LIF(), nn.Flatten(2), nn.Linear(36, 5), norse.LI()
    return exact(norse.SequentialState(*layers))


@pytest.mark.parametrize("hidden", (False, True))
def test_network_of_cells(hidden):
    net = cells(return_hidden=hidden)
    ours = snnkernels.run_over_time(net)
    assert [entry.reason is None for entry in ours.report] == [True, True, False, True]
    assert "matrix" in ours.report["5"].how
    state = its_state = None
    for x in (images(), images(1), images(1).expand(4, -1, -1, -1, -1)):
        out, state = ours(x, state)
        steps = []
        for x_t in x.unbind(0):
            step, its_state = net(x_t, its_state)
            steps.append(step)
        its = [torch.stack(s) for s in zip(*steps, strict=True)] if hidden else torch.stack(steps)
        assert equal(out, its) and equal(state, its_state)
    assert out[-1].count_nonzero() > 0
    assert sum(entry.fused for entry in ours.report) == 9


def test_network_over_time_with_lifts():
    net = lifted()
    ours = snnkernels.run_over_time(net, strict=True)
    state = its_state = None
    for x in (images(), images()):
        (its, its_state), (out, state) = net(x, its_state), ours(x, state)
        assert equal(out, its) and equal(state, its_state)
    found = torch.autograd.grad(out.sum(), list(ours.parameters()))
    wanted = torch.autograd.grad(its.sum(), list(net.parameters()))
    assert max(map(relative, found, wanted)) < 1e-5  # the weights' are sums in another order
    assert [entry.fused for entry in ours.report] == [2, 2]


def test_lift():
    with pytest.raises(ValueError, match="no neuron"):
        snnkernels.run_over_time(norse.Lift(nn.Conv2d(1, 4, 3)))
    x, lift = images(), norse.Lift(norse.LIFCell())
    ours = snnkernels.run_over_time(lift)
    state, its_state = ours(x), lift(x)
    for _ in range(2):
        assert equal(state, its_state) and type(state[1]) is type(its_state[1])
        state, its_state = ours((x, state[1])), lift((x, its_state[1]))
    assert ours.report[0].fused == 3


def test_recorded_states():
    for kind in (norse.LIF, norse.LIFAdEx):
        theirs = kind(record_states=True)
        ours = copy.deepcopy(theirs)
        snnkernels.accelerate(ours, strict=True)
        x = images()
        (out, states), (its, its_states) = ours(x), theirs(x)
        assert equal(out, its) and near(states, its_states)
        assert states.v.shape == (9, 2, 1, 8, 8)


def test_states_in_any_form():
    """Numbers that broadcast and integers, as Norse's own code takes them."""
    theirs, ours = norse.LIF(), norse.LIF()
    snnkernels.accelerate(ours)
    x = input_sequence("random", 9, 16)
    for v, i in ((0, 1), (0.5, -0.25)):
        state = norse.LIFFeedForwardState(torch.tensor(v), torch.tensor(i))
        assert equal(ours(x, state), theirs(x, state))
    x = input_sequence("random", 9, 32)  # another size of the batch, without a state
    assert equal(ours(x), theirs(x))
    with torch.no_grad():
        ours.load_state_dict(theirs.state_dict())
        assert equal(ours.eval()(x), theirs.eval()(x))
    assert equal(copy.deepcopy(ours)(x), theirs(x))
    snnkernels.restore(ours)
    assert type(ours) is norse.LIF and equal(ours(x), theirs(x))


def test_parameters_of_each_neuron():
    """Norse's parameters broadcast from the last dimension."""
    for shape in ((3,), (2, 1), (4, 2, 3), (1, 4, 2, 3), (5, 1, 1, 1)):
        p = norse.LIFParameters(v_th=nn.Parameter(torch.rand(shape) + 0.25))
        theirs, ours = norse.LIF(p), norse.LIF(p)
        (entry,) = snnkernels.accelerate(ours)
        x = torch.rand(7, 5, 4, 2, 3) * 4
        assert equal(ours(x), theirs(x))
        found, wanted = (torch.autograd.grad(m(x)[1].v.sum(), [p.v_th]) for m in (ours, theirs))
        assert relative(*found, *wanted) < 1e-6
        p.v_th.requires_grad_(False)
        assert equal(ours(x), theirs(x)) and entry.fused == 3
        values = NORSE.tensors(ours)
        assert NORSE.program(ours, values).used == (False,) * len(values)


def test_what_is_kept():
    for module, words in (
        (norse.LIFRecurrent(4, 4), "matrix"),
        (norse.LIF(norse.LIFParameters(method="adjoint")), "function adjoint"),
        (norse.LIFRefracCell(), "not in the table"),
        (norse.LIFCell(), "run_over_time"),
    ):
        (entry,) = snnkernels.accelerate(module)
        assert words in entry.how, entry.how
    ours, theirs = norse.LIF(), norse.LIF()
    (entry,) = snnkernels.accelerate(ours)
    x = input_sequence("random", 5, 8)
    assert equal(ours(x.double()), theirs(x.double())) and "float64" in str(entry.kept)
    net = norse.SequentialState(norse.Lift(nn.Identity()), norse.LIFCell())  # sees one long step
    ours = snnkernels.run_over_time(net)
    assert equal(ours(x), net(x)) and ours.report[0].fused == 0
    assert ours.report[0].kept.total() == 1


def test_the_commonest_steps_are_compiled_ahead_of_time():
    texts = {f"norse-{name}": text for name, text in peer_programs.norse().items()}
    assert kept("norse") == texts, "run python -m tests.tools.programs"
