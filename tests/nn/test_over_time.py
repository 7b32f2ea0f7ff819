"""What `OverTime` and `Weights` keep for their backward pass."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnkernels import LIF, IIRSynapse, OverTime
from snnkernels.models import create
from snnkernels.models._blocks import Weights
from snnkernels.nn._saved import Packed

FORMATS = ("contiguous", "channels_last", "time second", "expanded", "every other")
MOST = {"bits": 1, "bytes": 255}


def spikes(memory: str, dtype: torch.dtype, most: int, steps: int = 3) -> torch.Tensor:
    """Whole numbers `[steps, 2, 4, 5, 5]` in memory of some kind."""
    torch.manual_seed(0)
    x = torch.randint(0, most + 1, (steps, 2, 4, 5, 5)).to(dtype)
    x[0, 0, 0, 0, :2] = torch.tensor([0, most])
    if memory == "channels_last":
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, x.shape[:2])
    if memory == "time second":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if memory == "expanded":
        return x[:, :1].expand_as(x)
    return x.repeat_interleave(2, -1)[..., ::2] if memory == "every other" else x


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("save", MOST)
def test_packing_is_undone(save, dtype, memory):
    x = spikes(memory, dtype, MOST[save])
    packed = Packed.of(x, save)
    back = packed.unpack(packed.data)
    assert torch.equal(back, x) and back.dtype == dtype
    assert back.stride() == torch.empty_like(x).stride()
    assert packed.data.nbytes == (x.numel() + 7) // 8 if save == "bits" else x.numel()
    assert packed.data.untyped_storage().nbytes() == packed.data.nbytes


MODULES = {
    "conv": lambda: [nn.Conv2d(4, 4, 3, padding=1)],
    "linear": lambda: [nn.Flatten(), nn.Linear(100, 8)],
    "pooling": lambda: [nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)],
    "average": lambda: [nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)],
    "relu": lambda: [nn.Conv2d(4, 4, 3), nn.ReLU()],
    "hardtanh": lambda: [nn.Hardtanh(-0.3, 0.3), nn.Conv2d(4, 4, 3)],
    "the same shape": lambda: [nn.MaxPool2d(1), nn.Conv2d(4, 4, 3), nn.Tanh()],
    "in place": lambda: [nn.Hardtanh(-0.3, 0.3, inplace=True), nn.Conv2d(4, 4, 3)],
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("save", MOST)
@pytest.mark.parametrize("memory", FORMATS[:3])
def test_no_bit_of_a_gradient_changes(memory, save, name, autocast):
    torch.manual_seed(0)
    modules = nn.Sequential(*MODULES[name]())
    leaf = spikes(memory, torch.float32, MOST[save]).requires_grad_()
    found = []
    for kind in (None, save):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x = leaf + 0 if name == "in place" else leaf
            out = OverTime(*modules, save=kind)(x)
        loss = out.float().square().sum()
        found.append((out, *torch.autograd.grad(loss, (leaf, *modules.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def packed(out: torch.Tensor) -> list[torch.Tensor]:
    """What the graph of an output keeps in the place of tensors."""
    nodes, found = [out.grad_fn], []
    while nodes:
        node = nodes.pop()
        for name in dir(node):
            if name.startswith("_raw_saved"):
                value = getattr(node, name)
                values = value if isinstance(value, (tuple, list)) else [value]
                found += [v.data if hasattr(v, "data") else v for v in values]
        nodes += [n for n, _ in node.next_functions if n is not None]
    return [v[0] for v in found if isinstance(v, tuple) and v[1] is not None]


@pytest.mark.parametrize("name", ["conv", "linear"])
@pytest.mark.parametrize("save", MOST)
def test_what_is_kept_is_as_small_as_it_is_said(save, name):
    x = spikes("channels_last" if name == "conv" else "contiguous", torch.float32, 1)
    out = OverTime(*MODULES[name](), save=save)(x)
    (data,) = packed(out)
    assert data.nbytes == (x.numel() // 8 if save == "bits" else x.numel())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("known", ["bits", "bytes", "again"])
def test_an_input_that_is_not_kept_is_freed(known, autocast):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    values = torch.ones(3, 2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        x = values.clone()
        freed = []
        weakref.finalize(x.untyped_storage(), freed.append, True)
        if known == "again":
            out = Weights(conv)(x, values.clone)
        else:
            out = OverTime(conv, save=known)(x)
    del x
    gc.collect()
    assert freed and out.requires_grad


@pytest.mark.parametrize("save", MOST)
def test_hooks_around_it_see_what_is_kept(save):
    x, layer = spikes("contiguous", torch.float32, 1), OverTime(*MODULES["linear"](), save=save)
    seen = []

    def pack(saved):
        seen.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        layer(x)
    assert sorted(t.nbytes for t in seen if t.dtype == torch.uint8) == [
        x.numel() // 8 if save == "bits" else x.numel()
    ]
    assert all(t.numel() != x.numel() for t in seen if t.dtype == torch.float32)


def test_a_checkpoint_around_it_keeps_nothing_of_it():
    x, layer = spikes("contiguous", torch.float32, 1).requires_grad_(), nn.Linear(100, 8)
    found, alive = [], []
    of = Packed.of

    def watched(*arguments):
        made = of(*arguments)
        alive.append(weakref.ref(made.data))
        return made

    for save in (None, "bits"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Packed, "of", watched)
            net = OverTime(nn.Flatten(), layer, save=save)
            out = checkpoint(net, x, use_reentrant=False)
            gc.collect()
            assert not any(data() is not None for data in alive)
            found.append(torch.autograd.grad(out.square().sum(), (x, layer.weight)))
    assert alive
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_of_the_inputs_shape_are_not_taken_for_it():
    conv = nn.Conv2d(3, 4, 3)
    x = torch.ones(2, 2, 3, 3, 3, requires_grad=True)  # conv.weight is [4, 3, 3, 3]
    out = OverTime(conv, save="bits")(x)
    (dx,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(dx, conv.weight.sum(0).expand_as(x))


def test_inputs_that_can_be_worked_out_again_are_not_kept():
    torch.manual_seed(0)
    conv, neuron = Weights(nn.Conv2d(3, 3, 3, padding=1)), LIF(reset="soft")
    x = torch.randn(4, 2, 3, 8, 8).requires_grad_()
    calls = []

    def again():
        calls.append(torch.is_grad_enabled())
        return neuron(x.detach())

    want = torch.autograd.grad(conv(neuron(x)).square().sum(), (x, conv.module.weight))
    out = conv(neuron(x), again)
    assert not calls
    got = torch.autograd.grad(out.square().sum(), (x, conv.module.weight))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert calls == [False]  # once, without a graph


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, 256.0, float("nan"), float("inf")])
@pytest.mark.parametrize("save", MOST)
def test_detect_anomaly_finds_values_that_cannot_be_kept(save, value):
    layer, x = OverTime(nn.Linear(3, 2), save=save), torch.ones(4, 2, 3)
    with torch.autograd.detect_anomaly():
        layer(x)
        x[1, 1, 1] = value
        if value == 2.0 and save == "bytes":
            layer(x)
            return
        told = f"whole numbers from 0 to {MOST[save]} for save='{save}'; got {value:g}"
        with pytest.raises(ValueError, match=told):
            layer(x)


def test_a_wrong_choice_is_named():
    with pytest.raises(
        ValueError, match="save must be one of None, 'bits', 'bytes'; got 'nibbles'"
    ):
        OverTime(nn.Linear(3, 2), save="nibbles")


# --- networks ------------------------------------------------------------------------------------


def filters(channels: int) -> nn.Module:
    return IIRSynapse.exponential(2.0, channels=channels)


NETWORKS = {
    "s_resnet8": {"filters": 4, "recompute": False},
    "s_resnet8, v2v": {"filters": 4, "residual": "v2v"},
    "s_resnet8, images": {"filters": 2, "size": 128, "in_channels": 3},
    "4C3-MP2-4C3-P2-8-10": {"input_shape": (3, 8, 8)},
    "4C3-4C3-8-10, synapse": {"input_shape": (3, 8, 8), "synapse": filters},
    "wscnn": {"width": 2, "size": 8},
    "rscnn": {"width": 2, "size": 4},
    "tscnn": {},
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_bits_where_their_inputs_are_binary(name):
    options = {"num_classes": 10, **NETWORKS[name]} if "-" not in name else NETWORKS[name]
    found, sizes = [], []
    for save in (None, "bits"):
        torch.manual_seed(0)
        net = create(name.split(",")[0], steps=3, save=save, **options)
        shape = options.get("input_shape") or net.step_shape
        x = (torch.rand(3, 2, *shape) < 0.5).float().requires_grad_()
        with torch.autograd.detect_anomaly(check_nan=False):  # looks at what is packed
            out = net(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, *net.parameters()))))
        sizes.append(len([data for data in packed(net(x)) if data is not None]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert sizes[0] == 0 and (sizes[1] > 0) == ("synapse" not in name)  # filtered spikes are none
