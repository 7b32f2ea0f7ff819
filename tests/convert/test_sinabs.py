"""sinabs' neurons run fused: the same spikes, states and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import snnkernels
from snnkernels.convert import adapter
from tests.convert.compare import INPUTS, as_near, gradients, input_sequence, relative
from tests.tools import peer_programs
from tests.tools.programs import kept

sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed")
from sinabs import activation, layers  # noqa: E402
from sinabs.layers.alif import ALIFSqueeze  # noqa: E402

SPIKES = (activation.SingleSpike, activation.MultiSpike, activation.MaxSpike(2))
RESETS = [activation.MembraneSubtract(v) for v in (None, 0.5)]
RESETS += [activation.MembraneReset(v) for v in (0.0, -0.25)]
SURROGATES = [
    activation.SingleExponential(),
    activation.PeriodicExponential(),
    activation.Gaussian(),
    activation.MultiGaussian(),
    activation.Heaviside(),
]
ADAPTIVE = dict(tau_mem=torch.tensor(2.0), tau_adapt=torch.tensor(10.0))
NEURONS = [
    *(
        (layers.IAF, dict(spike_fn=spike, reset_fn=reset, min_v_mem=clip))
        for spike in SPIKES
        for reset in RESETS
        for clip in (None, -1.0)
    ),
    *((layers.IAF, dict(surrogate_grad_fn=surrogate)) for surrogate in SURROGATES),
    (layers.IAF, dict(spike_fn=activation.MaxSpike(), spike_threshold=torch.tensor(0.3))),
    (layers.IAF, dict(tau_syn=5.0)),
    *(
        (layers.LIF, dict(tau_mem=4.0, norm_input=norm, tau_syn=tau_syn, train_alphas=alphas))
        for norm in (True, False)
        for tau_syn in (None, 5.0)
        for alphas in (True, False)
    ),
    (layers.LIF, dict(tau_mem=torch.linspace(2.0, 9.0, 128), norm_input=False)),
    (layers.ExpLeak, dict(tau_mem=10.0)),
    (layers.ExpLeak, dict(tau_mem=10.0, min_v_mem=-0.5, norm_input=True, train_alphas=True)),
    (layers.ALIF, ADAPTIVE),
    (layers.ALIF, dict(**ADAPTIVE, tau_syn=torch.tensor(5.0), norm_input=False)),
    (layers.ALIF, dict(**ADAPTIVE, adapt_scale=torch.tensor(0.5), min_v_mem=-0.5)),
    (layers.ALIF, dict(**ADAPTIVE, train_alphas=True, reset_fn=activation.MembraneReset())),
]


def sequence(inputs: str) -> Tensor:
    """`[B, T, *]`, of the library's layout."""
    return 1.5 * input_sequence(inputs, 12, 256).transpose(0, 1).contiguous()


def states(net: nn.Module) -> list[Tensor]:
    return [b for m in net.modules() if isinstance(m, layers.StatefulLayer) for b in m.buffers()]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def id_of(value: object) -> str:
    if isinstance(value, dict):
        shown = {k: getattr(v, "__name__", v) for k, v in value.items()}
        return ",".join(f"{k}={v}" for k, v in shown.items() if not isinstance(v, Tensor))
    return value.__name__


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("kind", "options"), NEURONS, ids=id_of)
def test_neurons(kind, options, inputs):
    theirs, ours = kind(**options), kind(**options)
    snnkernels.accelerate(ours, strict=True)
    for call in range(3):  # the second call goes on from the state of the first
        if call == 2:
            theirs.reset_states(), ours.reset_states()
        a = sequence(inputs).requires_grad_()
        b = a.detach().clone().requires_grad_()
        mine, its = ours(a), theirs(b)
        assert torch.equal(mine, its) and 0 < its.count_nonzero()
        assert mine.stride() == its.stride()
        assert equal(states(ours), states(theirs))
        assert relative(ours.firing_rate, theirs.firing_rate) < 1e-6
        (found, *learned), (wanted, *others) = gradients(ours, a, mine), gradients(theirs, b, its)
        assert relative(found, wanted) < 1e-6
        if call == 0 and learned and inputs == "random":
            c = a.detach().double().requires_grad_()
            exact = kind(**options).double()
            assert all(map(as_near, learned, others, gradients(exact, c, exact(c))[1:]))
        theirs.zero_grad(), ours.zero_grad()


def network() -> nn.Module:
    """A converted network with the library's defaults: multiple spikes, potentials from -1 up."""
    torch.manual_seed(3)
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.ReLU()
    )
    net = sinabs.from_model(ann, input_shape=(1, 8, 8), batch_size=2)
    return net.spiking_model


def test_network_from_model():
    theirs, ours = network(), network()
    report = snnkernels.accelerate(ours, strict=True)
    assert [entry.kind for entry in report] == ["IAFSqueeze", "IAFSqueeze"]
    x = 30 * torch.rand(2 * 12, 1, 8, 8)  # two samples of 12 steps
    for _ in range(2):
        mine, its = ours(x), theirs(x)
        assert torch.equal(mine, its) and equal(states(ours), states(theirs))
        assert its.max() > 1  # several spikes at once
        found = [torch.autograd.grad(mine.sum(), list(ours.parameters())[:2])]
        found += [torch.autograd.grad(its.sum(), list(theirs.parameters())[:2])]
        assert max(map(relative, *found)) < 1e-6
        sinabs.zero_grad(theirs), sinabs.zero_grad(ours)
    assert [entry.fused for entry in report] == [2, 2]
    sinabs.set_batch_size(ours, 3), sinabs.set_batch_size(theirs, 3)
    x = 30 * torch.rand(3 * 5, 1, 8, 8)
    torch.manual_seed(0)  # the library draws which states another batch starts from
    its = theirs(x)
    torch.manual_seed(0)
    assert torch.equal(ours(x), its)
    sinabs.reset_states(ours), sinabs.reset_states(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    copied = copy.deepcopy(ours)
    assert torch.equal(copied(x), theirs(x)) and type(copied[1]) is type(ours[1])


@pytest.mark.parametrize("squeezed", (layers.IAFSqueeze, layers.LIFSqueeze, ALIFSqueeze))
def test_squeezed_layouts_are_not_copied(squeezed, monkeypatch):
    options = {layers.IAFSqueeze: {}, layers.LIFSqueeze: dict(tau_mem=5.0), ALIFSqueeze: ADAPTIVE}
    theirs, ours = (squeezed(**options[squeezed], num_timesteps=8) for _ in range(2))
    (entry,) = snnkernels.accelerate(ours, strict=True)
    seen = []
    run = adapter.run_program
    monkeypatch.setattr(adapter, "run_program", lambda p, x, *a: seen.extend(x) or run(p, x, *a))
    x = torch.randn(3 * 8, 2, 4, 4) * 4
    out = ours(x)
    assert torch.equal(out, theirs(x)) and out.is_contiguous() and entry.fused == 1
    assert [each.data_ptr() for each in seen] == [x.data_ptr()]


def test_recorded_states():
    for kind, options in (
        (layers.LIF, dict(tau_mem=5.0, tau_syn=3.0)),
        (layers.IAF, dict(min_v_mem=-1.0)),
        (layers.ExpLeak, dict(tau_mem=5.0)),
    ):
        theirs, ours = (kind(**options, record_states=True) for _ in range(2))
        snnkernels.accelerate(ours, strict=True)
        x = sequence("random")
        assert torch.equal(ours(x), theirs(x))
        assert ours.recordings.keys() == theirs.recordings.keys()
        for name, recorded in theirs.recordings.items():
            assert torch.equal(ours.recordings[name], recorded)


def test_what_is_kept():
    recurrent = layers.IAFRecurrent(rec_connect=nn.Linear(4, 4))
    for module, words in (
        (recurrent, "IAFRecurrent is not in the table"),
        (layers.ALIF(**ADAPTIVE, record_states=True), "record_states"),
        (layers.IAF(reset_fn=lambda s, state, theta: state if s.sum() else state), "sum"),
    ):
        (entry,) = snnkernels.accelerate(module)
        assert words in entry.how, entry.how
    theirs, ours = (layers.ALIF(**ADAPTIVE) for _ in range(2))
    (entry,) = snnkernels.accelerate(ours)
    ours.record_states = theirs.record_states = True
    x = sequence("random")
    assert torch.equal(ours(x), theirs(x)) and "record_states" in str(entry.kept)
    assert entry.fused == 0
    theirs, ours = layers.IAF(), layers.IAF()
    (entry,) = snnkernels.accelerate(ours)
    assert torch.equal(ours(x.double()), theirs(x.double())) and "float64" in str(entry.kept)


def test_the_commonest_steps_are_compiled_ahead_of_time():
    texts = {f"sinabs-{name}": text for name, text in peer_programs.sinabs().items()}
    assert kept("sinabs") == texts, "run python -m tests.tools.programs"
