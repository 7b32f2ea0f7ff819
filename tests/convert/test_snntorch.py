"""snnTorch's neurons, stepped in a loop and over time at once: the same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import snnkernels
from tests.convert.compare import INPUTS, gradients, input_sequence, relative
from tests.tools import peer_programs
from tests.tools.programs import kept

pytest.importorskip("snntorch", reason="snntorch is not installed")
import snntorch as snn  # noqa: E402
from snntorch import surrogate, utils  # noqa: E402
from snntorch.functional.quant import state_quant  # noqa: E402

RESETS = ("subtract", "zero", "none")
LEARNED = dict(learn_beta=True, learn_threshold=True)
GRADED = dict(graded_spikes_factor=0.7, learn_graded_spikes_factor=True)
NEURONS = [
    *(
        (snn.Leaky, dict(beta=beta, reset_mechanism=reset, reset_delay=delay))
        for beta in (0.9, 0.5)
        for reset in RESETS
        for delay in (True, False)
    ),
    (snn.Leaky, dict(beta=1, threshold=2)),
    (snn.Leaky, dict(beta=0.9, **LEARNED)),
    (snn.Leaky, dict(beta=0.9, **LEARNED, **GRADED)),
    (snn.Leaky, dict(beta=0.9, **LEARNED, **GRADED, reset_delay=False)),
    (snn.Leaky, dict(beta=torch.linspace(0.3, 1.1, 128), **LEARNED)),
    *(
        (snn.Synaptic, dict(alpha=0.8, beta=0.9, reset_mechanism=reset, reset_delay=delay))
        for reset in RESETS
        for delay in (True, False)
    ),
    (snn.Synaptic, dict(alpha=0.8, beta=0.9, learn_alpha=True, **LEARNED)),
    *(
        (snn.Lapicque, dict(reset_mechanism=reset, **options))
        for reset in RESETS
        for options in (dict(beta=0.3, threshold=0.8), dict(R=5, C=2), dict(beta=0.6, R=2.0))
    ),
    *((snn.Alpha, dict(alpha=0.9, beta=0.8, reset_mechanism=reset)) for reset in RESETS),
]
SURROGATES = {
    "atan": surrogate.atan(3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(),
    "sigmoid": surrogate.sigmoid(4),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "heaviside": surrogate.heaviside(),
    "spike_rate_escape": surrogate.spike_rate_escape(),
    "SFS": surrogate.SFS(),
    "custom_surrogate": surrogate.custom_surrogate(lambda x, g, s: g * (s + x.abs())),
}
STATES = ("syn", "syn_exc", "syn_inh", "mem")


def loop(net: nn.Module, x: Tensor):
    """What a user's loop over time gathers."""
    steps = [net(x_t) for x_t in x.unbind(0)]
    if isinstance(steps[0], tuple):
        return tuple(map(torch.stack, zip(*steps, strict=True)))
    return torch.stack(steps)


def pair(make: Callable[[], nn.Module], **options) -> tuple[nn.Module, nn.Module]:
    """A network that is stepped, and one over time; snnTorch does not reset copies of a network."""
    theirs, other = make(), make()
    other.load_state_dict(theirs.state_dict())
    return theirs, snnkernels.run_over_time(other, **options)


def states(net: nn.Module) -> list[Tensor]:
    return [b for name, b in net.named_buffers() if name.rpartition(".")[2] in STATES]


def equal(ours, theirs) -> bool:
    ours, theirs = ((a,) if isinstance(a, Tensor) else a for a in (ours, theirs))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def detach(net: nn.Module) -> None:
    for state in states(net):
        state.detach_()


def check(make: Callable[[], nn.Module], inputs: str) -> None:
    """Two calls in a row, and one after a reset."""
    theirs, ours = pair(make, strict=True)
    for call in range(3):
        if call == 2:
            utils.reset(theirs), utils.reset(ours)
        a = input_sequence(inputs, 14, 256).requires_grad_()
        b = a.detach().clone().requires_grad_()
        mine, its = ours(a), loop(theirs, b)
        assert equal(mine, its) and 0 < its[0].count_nonzero() < its[0].numel()
        assert equal(states(ours), states(theirs))
        found = gradients(ours, a, torch.stack(mine)), gradients(theirs, b, torch.stack(its))
        assert max(map(relative, *found)) < 1e-6
        detach(ours), detach(theirs)
    assert [entry.fused for entry in ours.report] == [3]


def id_of(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items() if not isinstance(v, Tensor))
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("kind", "options"), NEURONS, ids=id_of)
def test_neurons(kind, options, inputs):
    check(lambda: nn.Sequential(kind(**options)), inputs)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    check(lambda: nn.Sequential(snn.Leaky(beta=0.9, spike_grad=SURROGATES[name])), "random")


def exact(net: nn.Module) -> nn.Module:
    """Weights that are eighths: sums of products are exact, whatever the size of the batch."""
    for parameter in net.parameters():
        if parameter.ndim:
            parameter.data = (parameter.data * 8).round() / 8
    return net


def convolutional(**options) -> nn.Module:
    hidden = dict(beta=0.9, init_hidden=True)
    return exact(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2)),
            nn.Sequential(snn.Leaky(**hidden), nn.BatchNorm2d(4, eps=1e-9)),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(36, 5),
            snn.Leaky(output=True, **hidden, **options),
        )
    )


def images(steps: int = 9) -> Tensor:
    return torch.randint(-8, 16, (steps, 2, 1, 8, 8)) / 8


def test_network_in_eval_mode():
    theirs, ours = pair(convolutional)
    theirs.eval(), ours.eval()
    for x in (images(), images(1), images()[:, :1], images(1).expand(5, -1, -1, -1, -1)):
        with torch.no_grad():  # from call to call, and with another batch size
            assert equal(ours(x), loop(theirs, x))
        assert equal(states(ours), states(theirs))
    assert all(entry.fused == 4 and not entry.kept for entry in ours.report)


def test_batch_norm_in_training_sees_each_step():
    theirs, ours = pair(convolutional)
    theirs[3].eval(), ours[3].eval()  # dropouts that draw do not draw the same
    a = images().requires_grad_()
    b = a.detach().clone().requires_grad_()
    mine, its = ours(a), loop(theirs, b)
    assert equal(mine[0], its[0]) and relative(mine[1], its[1]) < 1e-6
    for m, t in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(m, t, rtol=1e-6)
    found = gradients(ours, a, torch.stack(mine)), gradients(theirs, b, torch.stack(its))
    assert max(map(relative, *found)) < 1e-5  # the weights' are sums in another order


class Block(nn.Module):
    """A module whose forward is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lif = exact(nn.Linear(6, 6)), snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lif(self.linear(x))


def hooked() -> nn.Module:
    lif = snn.Leaky(beta=0.9, init_hidden=True)
    lif.register_forward_hook(lambda module, x, y: y * 2)
    return lif


KEPT = {
    "inhibition": (lambda: snn.Leaky(beta=0.9, init_hidden=True, inhibition=True), "argmax"),
    "state_quant": (
        lambda: snn.Leaky(
            beta=0.9,
            init_hidden=True,
            state_quant=state_quant(num_bits=4, threshold=1.0),
        ),
        "cannot be fused",
    ),
    "random": (lambda: snn.Leaky(0.9, init_hidden=True, spike_grad=surrogate.SSO()), "random"),
    "recurrent": (
        lambda: snn.RLeaky(beta=0.9, init_hidden=True, all_to_all=False, V=0.25),
        "RLeaky is none of Leaky",
    ),
    "block": (Block, "it is in Block"),
    "hooks": (hooked, "it has hooks"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_run_fused_is_stepped(name):
    make, words = KEPT[name]
    theirs, ours = pair(lambda: nn.Sequential(nn.ReLU(), make()))
    (entry,) = ours.report
    assert words in entry.how and entry.how.startswith("kept: ")
    x = input_sequence("eighths", 20, 12)
    for _ in range(2):
        with torch.no_grad():
            assert equal(ours(x), loop(theirs, x)) and equal(states(ours), states(theirs))
    assert entry.fused == 0
    with pytest.raises(ValueError, match="cannot run fused: 1"):
        snnkernels.run_over_time(nn.Sequential(nn.ReLU(), make()), strict=True)


def test_calls_that_cannot_run_fused_are_counted():
    theirs, ours = pair(lambda: nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)))
    x = input_sequence("random", 5, 8)
    for each in (x.double(), x.bfloat16()):
        assert equal(ours(each), loop(theirs, each)) and equal(states(ours), states(theirs))
        utils.reset(theirs), utils.reset(ours)
    (entry,) = ours.report
    assert entry.fused == 0 and entry.kept.total() == 2
    assert "float64" in str(ours.report) and "bfloat16" in str(ours.report)


def test_what_a_module_returns():
    """Without init_hidden a module returns its states; the last one may."""
    x = input_sequence("random", 5, 8)
    for module in (snn.Alpha(0.9, 0.8), snn.Synaptic(0.9, 0.8, init_hidden=True, output=True)):
        found = snnkernels.run_over_time(nn.Sequential(module))(x)
        assert [each.shape for each in found] == [x.shape] * len(found)
        assert len(found) == 1 + len(states(module))
    quiet = nn.Sequential(snn.Lapicque(beta=0.5, init_hidden=True))
    assert isinstance(snnkernels.run_over_time(quiet)(x), Tensor)


def test_a_step_and_all_steps_share_the_state():
    net = nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True))
    ours, theirs = snnkernels.run_over_time(net), nn.Sequential(snn.Leaky(0.9, init_hidden=True))
    x = input_sequence("random", 9, 8)
    mine = torch.cat([ours(x[:4]), loop(net, x[4:6]), ours(x[6:])])
    assert torch.equal(mine, loop(theirs, x))
    assert ours[0] is net[0] and list(ours.state_dict()) == list(net.state_dict())
    copied = copy.deepcopy(ours)
    copied.load_state_dict(theirs.state_dict())
    assert torch.equal(copied(x), loop(theirs, x)) and copied.report[0].fused == 3


def test_accelerate_keeps_single_steps():
    net = nn.Sequential(nn.Linear(4, 4), snn.Leaky(beta=0.9, init_hidden=True))
    (entry,) = snnkernels.accelerate(net)
    assert type(net[1]) is snn.Leaky and "run_over_time" in entry.how


def test_errors():
    lif = snn.Leaky(beta=0.9, init_hidden=True)
    for net, error, words in (
        (lif, TypeError, "got Leaky"),
        (nn.Sequential(nn.Linear(2, 2)), ValueError, "no neuron of"),
        (nn.Sequential(lif, nn.Linear(2, 2), lif), ValueError, "0 and 2 are one Leaky"),
    ):
        with pytest.raises(error, match=words):
            snnkernels.run_over_time(net)
    ours = snnkernels.run_over_time(nn.Sequential(lif))
    for x in (torch.zeros(0, 2, 3), torch.zeros(3), None):
        with pytest.raises(ValueError, match="at least one time step"):
            ours(x)
    with pytest.raises(ValueError, match="fast"):
        snnkernels.run_over_time(nn.Sequential(lif), backend="fast")


def test_the_commonest_steps_are_compiled_ahead_of_time():
    texts = {f"snntorch-{name}": text for name, text in peer_programs.snntorch().items()}
    assert kept("snntorch") == texts, "run python -m tests.tools.programs"


def test_half_precision():
    theirs, ours = pair(convolutional)
    theirs.eval(), ours.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():  # states in bfloat16: stepped
        x = images()
        assert equal(ours(x), loop(theirs, x))
    assert all(entry.fused == 0 and "bfloat16" in str(entry.kept) for entry in ours.report)
    found = snnkernels.run_over_time(convolutional().eval(), allow_fp32_state=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        spikes, mem = found(x)
    assert [entry.fused for entry in found.report] == [1, 1] and mem.dtype == torch.float32


def test_training_starts_from_a_state_of_inference_mode():
    ours = snnkernels.run_over_time(convolutional().eval())
    with torch.inference_mode():
        ours(images())
    spikes, mem = ours(images())
    mem.sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
