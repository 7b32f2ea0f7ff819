import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnkernels import LIF, LeakyReadout
from snnkernels.backends import cpp
from snnkernels.models._blocks import (
    Projection,
    Readout,
    StepDropout,
    StepsNorm,
    Vote,
    Weights,
    as_sequence,
)
from snnkernels.models.conv_lstm import ConvLSTM, FrameAttention
from snnkernels.models.scnn import TemporalConv
from snnkernels.nn.losses import potential_regulariser, spike_count_cross_entropy
from snnkernels.nn.norm import BNTT
from snnkernels.ops import bntt

FORMATS = ("contiguous", "channels_last", "time second")


def sequence(shape, memory, dtype=torch.float64, seed=0):
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 1
    if memory == "channels_last":
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, shape[:2])
    return x.transpose(0, 1).contiguous().transpose(0, 1) if memory == "time second" else x


def per_step_norms(layer):
    """The same as a list of batch norms, one per step: how it is written step by step."""
    norms = []
    for t in range(layer.steps):
        norm = nn.BatchNorm2d(layer.channels, eps=layer.eps, momentum=layer.momentum)
        norm.double().weight.data.copy_(layer.weight[t])
        norm.running_mean.copy_(layer.running_mean[t])
        norm.running_var.copy_(layer.running_var[t])
        norms.append(norm.train(layer.training))
    return norms


def make_bntt(channels=3, steps=5, zero=False):
    layer = BNTT(channels, steps).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(steps, channels).double())
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        if zero:
            layer.weight[1, 2] = 0
    return layer


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("memory", FORMATS)
def test_bntt_is_one_batch_norm_per_step(memory, block, zero, monkeypatch):
    monkeypatch.setattr(bntt, "_BLOCK", block)
    torch.manual_seed(0)
    layer = make_bntt(zero=zero)
    norms = per_step_norms(layer)
    x = sequence((5, 4, 3, 6, 6), memory).requires_grad_()
    out = layer(x)
    assert out.stride() == x.stride()
    want = torch.stack([n(x_t) for n, x_t in zip(norms, x, strict=True)])
    torch.testing.assert_close(out, want)
    g = torch.randn_like(out)
    dx, dweight = torch.autograd.grad(out, (x, layer.weight), g)
    weights = [n.weight for n in norms]
    want_dx, *want_dweight = torch.autograd.grad(want, (x, *weights), g)
    torch.testing.assert_close(dx, want_dx)
    torch.testing.assert_close(dweight, torch.stack(want_dweight))
    torch.testing.assert_close(layer.running_mean, torch.stack([n.running_mean for n in norms]))
    torch.testing.assert_close(layer.running_var, torch.stack([n.running_var for n in norms]))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("channels, pixels", [(16, 32), (21, 7), (64, 1)])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_bntt_has_the_bits_of_one_batch_norm_per_step(memory, channels, pixels, count, threads):
    threads(count)
    layer = make_bntt(channels).float()
    x = sequence((5, 4, channels, pixels, pixels), memory, torch.float32)
    want = [n.float()(x_t) for n, x_t in zip(per_step_norms(layer), x, strict=True)]
    assert torch.equal(layer(x), torch.stack(want))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("channels", [3, 16, 35])
def test_the_kernel_of_bntt_is_batch_norm_in_float64(channels, constant, zero):
    torch.manual_seed(0)
    layer = make_bntt(channels, zero=zero)
    x = sequence((1 if constant else 5, 4, channels, 9, 9), "channels_last", torch.float32)
    x = x.expand(5, *x.shape[1:])
    g = torch.randn(5, 4, channels, 9, 9)  # laid out in another way
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        assert cpp.takes_bntt(leaf) == (dtype == torch.float32)
        layer = layer.to(dtype)
        out = layer(leaf)
        results.append((out, *torch.autograd.grad(out, (leaf, layer.weight), g.to(dtype))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    assert results[0][0].stride()[2:] == x.stride()[2:]


def test_gradients_of_bntt_do_not_depend_on_the_threads(threads):
    x = sequence((3, 4, 16, 9, 9), "channels_last", torch.float32)
    g = torch.randn_like(x)
    kept = {"out": torch.empty_like(x), "mean": torch.empty(3, 16), "rstd": torch.empty(3, 16)}
    cpp.bntt_forward(x, torch.ones(3, 16), 1e-4, **kept)
    results = []
    for count in (1, 2, 3):
        threads(count)
        op = torch.ops.snnkernels.bntt_backward
        results.append(op(g, x, kept["mean"], kept["rstd"], torch.ones(3, 16)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("memory", FORMATS)
def test_bntt_in_evaluation(memory):
    layer = make_bntt().eval()
    x = sequence((5, 4, 3, 6, 6), memory)
    want = torch.stack([n(x_t) for n, x_t in zip(per_step_norms(layer), x, strict=True)])
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("training", [True, False])
def test_bntt_early_exit_uses_the_first_steps(training):
    torch.manual_seed(0)
    layer, x = make_bntt().train(training), sequence((5, 4, 3, 6, 6), "channels_last")
    before = layer.running_mean.clone()
    short = layer(x[:2])
    assert torch.equal(layer.running_mean[2:], before[2:])
    torch.testing.assert_close(short, make_again(layer, before)(x)[:2])


def make_again(layer, running_mean):
    again = BNTT(layer.channels, layer.steps).double().train(layer.training)
    again.load_state_dict({**layer.state_dict(), "running_mean": running_mean})
    return again


def test_bntt_of_a_constant_input():
    torch.manual_seed(0)
    layer, again = make_bntt(), make_bntt()
    again.load_state_dict(layer.state_dict())
    once = sequence((4, 3, 6, 6), "contiguous").requires_grad_()
    out = layer(once.expand(5, -1, -1, -1, -1))
    full = torch.stack([once] * 5)
    want = again(full)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(layer.running_var, again.running_var)
    g = torch.randn_like(out)
    got = torch.autograd.grad(out, (once, layer.weight), g)
    torch.testing.assert_close(got, torch.autograd.grad(want, (once, again.weight), g))


def test_bntt_gradients_numerically():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: bntt.NormaliseSteps.apply(x, w, 1e-4)[0], (x, w))


def test_bntt_in_half_precision_has_float32_statistics():
    x = sequence((2, 4, 3, 6, 6), "channels_last", torch.float32) * 10 + 300
    layer = BNTT(3, 2)
    out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16 and layer.running_mean.dtype == torch.float32
    torch.testing.assert_close(out, BNTT(3, 2)(x.bfloat16().float()).bfloat16())


def test_bntt_keeps_one_tensor_with_the_neuron_that_follows():
    kept = []
    x = sequence((4, 2, 3, 8, 8), "channels_last", torch.float32).requires_grad_()
    layer, neuron = BNTT(3, 4), LIF(reset="soft")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        neuron(layer(x))
    large = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert len(large) == 1 and x.data_ptr() not in large


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e-18, 1e-20, 1e-38, 1e-40, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_bntt_has_gradients_at_every_scale(memory, dtype, scale):
    """Also where weight and output are next to 0 or denormal, and in half precision."""
    x = sequence((2, 4, 3, 6, 6), memory, torch.float32).to(dtype)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for kind in (dtype, torch.float64):
        layer, leaf = BNTT(3, 2).to(torch.promote_types(kind, torch.float32)), x.to(kind)
        nn.init.constant_(layer.weight, scale)
        out = layer(leaf.requires_grad_())
        results.append(torch.autograd.grad(out, (leaf, layer.weight), g.to(kind)))
    (dx, dweight), (want_dx, want_dweight) = results
    unit = torch.finfo(dtype).smallest_normal
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": max(1e-4 * scale, unit)}
    torch.testing.assert_close(dx.double(), want_dx, **close)
    torch.testing.assert_close(dweight.double(), want_dweight, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("change", [F.relu_, lambda out: out.mul_(2), lambda out: out[0].zero_()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory", FORMATS)
def test_bntt_changed_in_place_is_right_or_refused(memory, dtype, change):
    x = sequence((3, 4, 3, 6, 6), memory, dtype)
    layer = BNTT(3, 3).to(torch.promote_types(dtype, torch.float32))

    def gradient(copied):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out = out.clone() if copied else out
        change(out)
        return torch.autograd.grad(out.float().pow(3).sum(), leaf)[0]

    want = gradient(True)
    try:
        got = gradient(False)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert torch.equal(got, want)


@pytest.mark.parametrize("momentum", [None, 1.0, 0.25, 0])
def test_bntt_keeps_the_running_statistics_of_batch_norm(momentum):
    layer = BNTT(3, 3, momentum=momentum, eps=1e-4)
    norms = [nn.BatchNorm2d(3, eps=1e-4, momentum=momentum) for _ in range(3)]
    for seed, steps in enumerate((3, 2, 3)):  # the last step has fewer batches
        x = sequence((steps, 4, 3, 6, 6), "channels_last", torch.float32, seed)
        layer(x)
        for norm, x_t in zip(norms, x, strict=False):
            norm(x_t)
    for name in ("running_mean", "running_var"):
        want = torch.stack([getattr(norm, name) for norm in norms])
        torch.testing.assert_close(getattr(layer, name), want)
    fresh = BNTT(3, 3, momentum=momentum)
    fresh.load_state_dict(layer.state_dict())
    if momentum is None:
        assert fresh.num_batches_tracked.tolist() == [3, 3, 2]


def test_bntt_stays_itself_where_batch_norms_are_made_synchronous():
    network = nn.Sequential(BNTT(3, 2), StepsNorm(3))
    made = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert made[0] is network[0] and isinstance(made[1].norm, nn.SyncBatchNorm)
    x = sequence((2, 4, 3, 6, 6), "channels_last", torch.float32)
    assert torch.equal(made[0](x), BNTT(3, 2)(x))


def test_weights_work_on_a_constant_input_once():
    conv = nn.Conv2d(2, 3, 3)
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(_[1][0].shape[0]))
    x = torch.randn(4, 2, 8, 8)
    out = Weights(conv)(x.expand(6, -1, -1, -1, -1))
    assert calls == [4] and out.shape == (6, 4, 3, 6, 6) and out.stride(0) == 0
    torch.testing.assert_close(out, Weights(conv)(torch.stack([x] * 6)))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("size", [6, 7])
def test_a_projection_is_a_strided_convolution(size, every):
    torch.manual_seed(0)
    layer = Projection(3, 5, every).double()
    assert list(layer.state_dict()) == ["weight"]
    x = sequence((1, 4, 3, size, size), "channels_last")[0].requires_grad_()
    want = F.conv2d(x, layer.weight, None, every)
    g = torch.randn_like(want)
    torch.testing.assert_close(layer(x), want)
    leaves = (x, layer.weight)
    torch.testing.assert_close(
        torch.autograd.grad(layer(x), leaves, g), torch.autograd.grad(want, leaves, g)
    )


def test_dropout_keeps_its_mask_for_all_steps():
    torch.manual_seed(0)
    drop = StepDropout(0.25)
    out = drop(torch.ones(5, 8, 200))
    assert all(torch.equal(out[0], out_t) for out_t in out)
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert 0.2 < (out == 0).float().mean() < 0.3
    assert torch.equal(drop.eval()(out), out)


def test_vote_is_the_mean_of_neighbours():
    x = torch.arange(12.0).view(1, 12)
    assert Vote(4)(x).tolist() == [[1.5, 5.5, 9.5]]
    assert torch.equal(Vote(4)(x), F.avg_pool1d(x, 4))


def test_steps_norm_takes_all_steps_together():
    x = sequence((5, 4, 3, 6, 6), "contiguous", torch.float32)
    out = StepsNorm(3)(x)
    torch.testing.assert_close(out.mean((0, 1, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 1, 3, 4)), torch.ones(3), atol=1e-2, rtol=0)


def test_readouts():
    x = torch.full((4, 2, 3), 0.75)
    spikes = Readout("spikes")(x)
    assert spikes.shape == (4, 2, 3) and spikes.sum() == 12
    assert torch.equal(Readout("rate")(x), spikes.mean(0))
    assert torch.equal(Readout("count")(x), spikes.sum(0))
    assert torch.equal(Readout("potential")(x), x.sum(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_over_time_count_past_the_whole_numbers_of_half_precision(dtype):
    steps, spikes = 5000, (256, 257, 2048, 2049)
    x = torch.zeros(steps, 1, 4)
    for k, n in enumerate(spikes):
        x[:n, 0, k] = 1
    s, want = x.to(dtype), torch.tensor([spikes], dtype=torch.float32)
    fires = {"decay": 0.0, "v_threshold": 0.5}
    assert torch.equal(Readout("count", **fires)(s), want)
    torch.testing.assert_close(Readout("rate", **fires)(s), want / steps, rtol=1e-6, atol=0)
    assert torch.equal(Readout("potential")(s), want)
    means = LeakyReadout(output="mean")(s)
    torch.testing.assert_close(means, LeakyReadout(output="mean")(x), rtol=1e-6, atol=0)
    votes = Vote(2)(torch.tensor([[1.0, 0.0, 1.0, 1.0 + 2**-7]], dtype=dtype))
    assert votes.tolist() == [[0.5, 1 + 2**-8]]
    label = torch.tensor([1])
    assert spike_count_cross_entropy(s, label) == F.cross_entropy(want, label)
    penalty = potential_regulariser(s, 0.5, tolerance=0.25)
    assert penalty.item() == 0.0625


def test_temporal_convolution_looks_back_only():
    conv = TemporalConv(2, 3)
    x = torch.randn(6, 2, 2, 8, 8)
    out = conv(x)
    assert out.shape == (6, 2, 3, 8, 8)
    later = x.clone()
    later[4:] = 0
    torch.testing.assert_close(conv(later)[:4], out[:4])
    early = x.clone()
    early[0] = 0
    assert not torch.equal(conv(early)[3], out[3])
    torch.testing.assert_close(conv(early)[4:], out[4:])


def test_conv_lstm_follows_its_equations():
    torch.manual_seed(0)
    layer = ConvLSTM(2, 3)
    x = torch.randn(4, 2, 2, 5, 5)
    h = c = torch.zeros(2, 3, 5, 5)
    want = []
    for x_t in x:
        i, f, o, g = (layer.input.module(x_t) + layer.hidden(h)).split(3, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        want.append(h)
    torch.testing.assert_close(layer(x), torch.stack(want))


def test_attention_weighs_the_pixels_of_a_frame():
    layer = FrameAttention(3, key_channels=4)
    x = torch.randn(2, 2, 3, 4, 4)
    pixels = x[1, 0].flatten(1).T
    q, k, v = layer.query(pixels), layer.key(pixels), layer.value(pixels)
    want = ((q @ k.T / 2).softmax(-1) @ v).T.view(3, 4, 4)
    torch.testing.assert_close(layer(x)[1, 0], want)


def test_input_of_a_network():
    image = torch.rand(2, 3, 8, 8)
    x = as_sequence(image, 5, (3, 8, 8))
    assert x.shape == (5, 2, 3, 8, 8) and x.stride(0) == 0 and x.stride(2) == 1
    events = torch.rand(4, 2, 3, 8, 8)
    assert torch.equal(as_sequence(events, 5, (3, 8, 8)), events)
    with pytest.raises(ValueError, match=r"x must be \[N, 3, 8, 8\] or .*got \[2, 1, 8, 8\]"):
        as_sequence(torch.rand(2, 1, 8, 8), 5, (3, 8, 8))
    with pytest.raises(ValueError, match="x must have 1 to steps = 5 time steps; got 6"):
        as_sequence(torch.rand(6, 2, 3, 8, 8), 5, (3, 8, 8))


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: BNTT(3, 2)(torch.rand(3, 4, 3, 2)), "at most steps = 2 time steps; got 3"),
        (lambda: BNTT(3, 2)(torch.rand(2, 4, 5, 2)), "C = channels = 3; got"),
        (lambda: BNTT(3, 2)(torch.rand(2, 1, 3)), "more than one value per step and channel"),
        (lambda: BNTT(0, 2), "channels must be a whole number >= 1; got 0"),
        (lambda: BNTT(3, 2, eps=0.0), "eps must be a number > 0; got 0.0"),
        (lambda: BNTT(3, 2, momentum=2), r"momentum must be None or .* in \[0, 1\]; got 2"),
        (lambda: StepDropout(1.0), r"p must be a number in \[0, 1\); got 1.0"),
        (lambda: Vote(0), "voters must be a whole number >= 1; got 0"),
        (lambda: Readout("sum"), "readout must be one of 'rate', .*; got 'sum'"),
    ],
)
def test_errors_name_argument_value_and_choices(make, told):
    with pytest.raises(ValueError, match=told):
        make()
