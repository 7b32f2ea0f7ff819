"""Layers and networks are built and shown without a device, a backend or a run."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import snnkernels
from snnkernels import LIF, CurrentEncoder, IIRSynapse, LeakyReadout, models
from snnkernels.backends import BACKENDS
from snnkernels.models.iir_snn import IIRNetwork, SeriesSNN

NETWORKS = {
    "conv_snn": {"channels": (2, 2)},
    "sts_resnet": {"widths": (2, 2, 4, 4)},
    "s_resnet8": {"filters": 2, "learn_decay": "shared"},
    "tscnn": {},
    "wscnn": {"width": 2},
    "rscnn": {"width": 2},
    "rsnn": {"channels": 4, "size": 32},
    "4C3-P2-10": {"input_shape": (1, 8, 8)},
}
LAYERS = {
    "LIF": LIF,
    "LIF, learned": lambda **o: LIF(learn_decay=True, learn_threshold=True, **o),
    "LIF, channels": lambda **o: LIF(channels=4, gain=2.0, **o),
    "LIF, synapse": lambda **o: LIF(synapse=([0.5], [[1.0], [2.0]]), learn_synapse=True, **o),
    "LIF, trace": lambda **o: LIF(reset="trace", trace_decay=0.5, regulariser=(0.1, 0), **o),
    "LeakyReadout": lambda **o: LeakyReadout(channels=3, **o),
    "IIRSynapse": lambda **o: IIRSynapse.dual_exponential(4.0, 1.0, **o),
    "IIRSynapse, [C, P]": lambda **o: IIRSynapse([[0.1], [0.2]], [1.0], **o),
    "CurrentEncoder": CurrentEncoder,
    "IIRNetwork": lambda **o: IIRNetwork((3, 4, 5), **o),
    "SeriesSNN": lambda **o: SeriesSNN(2, 3, hidden=(4,), **o),
    **{
        name: lambda name=name, options=options, **o: models.create(name, **options, **o)
        for name, options in NETWORKS.items()
    },
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


PLACES = {
    "plain": contextlib.nullcontext,
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    **{str(d)[6:]: lambda d=d: default_dtype(d) for d in (torch.float64, torch.bfloat16)},
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", LAYERS)
def test_everything_is_built_and_shown_with_every_backend(name, where):
    for backend in ("auto", *BACKENDS):
        with PLACES[where]():
            module = LAYERS[name](backend=backend)
            assert len(repr(nn.Sequential(module))) > 20
        for each in module.modules():
            if isinstance(each, LIF | LeakyReadout | IIRSynapse):
                own = (*each.parameters(recurse=False), *each.buffers(recurse=False))
                assert all(t.dtype == torch.float32 for t in own)
        if where == "meta":
            module.eval().to_empty(device="cpu")


@pytest.mark.parametrize("learn", [False, True])
def test_coefficients_may_be_on_another_device(learn):
    there = torch.full((3,), 0.5, device="meta")
    layers = [
        LIF(decay=there, v_threshold=there, channels=3, learn_decay=learn, backend="cuda"),
        LIF(gain=there, synapse=(there[:, None], there[:, None]), channels=3, learn_gain=learn),
        LIF(decay=there[0], learn_decay=learn),
        LeakyReadout(decay=there, channels=3, learn_decay=learn),
        IIRSynapse(there[:, None], [1.0], learn=learn),
    ]
    for layer in layers:
        assert any(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
        assert repr(layer) and layer.eval()


def test_a_network_on_the_meta_device_knows_its_shapes():
    with torch.device("meta"):
        network = models.create("conv_snn", channels=(2, 2), backend="torch")
        assert network(torch.empty(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("per_channel", ["alpha", "beta", "both", "none"])
@pytest.mark.parametrize("channels", [None, 3])
def test_a_filter_has_one_part_per_channel_or_for_all(per_channel, channels):
    x = torch.rand(5, 2, 3)
    alpha, beta = [0.5], [1.0, 0.25]
    if per_channel in ("alpha", "both"):
        alpha = [[0.1], [0.2], [0.3]]
    if per_channel in ("beta", "both"):
        beta = [[1.0, 0.0], [2.0, 1.0], [3.0, 0.5]]
    layer = IIRSynapse(alpha, beta, channels=channels)
    want, _ = snnkernels.iir(x, alpha, beta)
    assert torch.equal(layer(x), want)
    assert torch.equal(LIF(synapse=(alpha, beta))(x), snnkernels.lif(x, synapse=(alpha, beta))[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: IIRSynapse([[0.1]] * 3, [[1.0]] * 2),
            r"beta must be .* with 3 channels.*\[2, 1\]",
        ),
        (lambda: LIF(synapse=([0.1],)), "synapse must be None or a pair"),
        (lambda: LIF(synapse=("a", [1.0])), "alpha must be a tensor or a sequence of numbers"),
        (lambda: LIF(regulariser=0.1), "regulariser must be None or a pair"),
        (lambda: LIF(decay="slow"), "decay must be a number; got 'slow'"),
        (lambda: LIF(gain=float("nan")), "gain must not be NaN"),
        (lambda: LIF(trace_decay=0.5), "trace_decay goes with reset='trace'"),
        (lambda: LIF(decay=torch.ones(2, 2), channels=4), r"decay must be .*\[4\]; got .*\[2, 2\]"),
        (lambda: IIRSynapse([0.5], [1.0], backend="fast"), "backend must be 'auto' or one of"),
        (lambda: LIF(backend="Torch"), "backend must be 'auto' or one of"),
    ],
)
def test_a_wrong_option_is_named_when_the_layer_is_built(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()
