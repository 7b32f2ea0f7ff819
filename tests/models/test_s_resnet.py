import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import snnkernels
from bench.models import StepLoop, batch, train_step
from snnkernels import LIF, models

CIFAR = (3, 32, 32)

# The papers' own figures, for 50 time steps.
S_RESNET = [
    (16, 10, False, 634_000),
    (16, 10, True, 639_760),
    (16, 100, False, 639_760),
    (16, 100, True, 697_360),
    (32, 10, False, 2_388_256),
    (32, 10, True, 2_399_776),
    (32, 100, False, 2_399_776),
    (32, 100, True, 2_514_976),
]


@pytest.mark.parametrize("filters, classes, boosting, parameters", S_RESNET)
def test_s_resnet38_has_the_papers_parameters(filters, classes, boosting, parameters):
    net = models.create("s_resnet38", filters=filters, num_classes=classes, boosting=boosting)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("norm", ["bntt", "bn"])
@pytest.mark.parametrize("residual", ["s2s", "s2m", "v2v"])
def test_residual_and_norm_leave_the_weights_as_they_are(residual, norm):
    net = models.create("s_resnet38", residual=residual, norm=norm)
    convs = [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(w.numel() for w in convs) == 561_200
    channels = 16 + 12 * (16 + 32 + 64) + 32 + 64
    per_channel = 50 if norm == "bntt" else 2
    assert sum(p.numel() for p in net.parameters()) == 561_200 + per_channel * channels


def test_learned_leaks_are_one_per_layer_or_one():
    plain = sum(p.numel() for p in models.create("s_resnet38").parameters())
    for kind, more in (("layer", 37), ("shared", 1)):
        net = models.create("s_resnet38", learn_decay=kind)
        assert sum(p.numel() for p in net.parameters()) == plain + more
        assert len({id(m.decay) for m in net.modules() if isinstance(m, LIF)}) == more


def test_a_constant_image_passes_the_first_convolution_once():
    net = models.create("s_resnet8", filters=2, steps=5)
    seen = []
    net.conv1.module.register_forward_hook(lambda m, i, o: seen.append(i[0].shape))
    image = torch.rand(2, 3, 32, 32)
    out = net(image)
    assert seen == [(2, 3, 32, 32)]
    twin = models.create("s_resnet8", filters=2, steps=5)
    models.load(
        twin,
        {k: v for k, v in net.state_dict().items() if "running" not in k}
        | {k: v for k, v in twin.state_dict().items() if "running" in k},
    )
    torch.testing.assert_close(twin(torch.stack([image] * 5)), out, rtol=1e-4, atol=1e-4)


def test_s_resnet_gives_the_logits_of_the_loop_in_float32():
    # Both in channels_last: a convolution adds up in another order where the format is another, and
    # a potential at the threshold then falls on the other side of it.
    net = models.create("s_resnet14", filters=16, steps=10)
    data = batch(4)
    logits = train_step(net, *data)
    torch.testing.assert_close(logits, train_step(StepLoop(net), *data), rtol=0, atol=1e-4)


def test_s_resnet_is_the_loop_over_time_of_the_paper():
    net = models.create("s_resnet14", filters=4, steps=6, backend="torch").double()
    loop = StepLoop(net).double()
    images, labels = batch(3, dtype=torch.float64)
    got = train_step(net, images, labels)
    grads = [p.grad.clone() for p in net.parameters()]
    torch.testing.assert_close(got, train_step(loop, images, labels))
    per_step = dict(loop.norms.named_children())
    for (name, p), g in zip(net.named_parameters(), grads, strict=True):
        norm = per_step.get(name.removesuffix(".weight").replace(".", "_"))
        want = p.grad if norm is None else torch.stack([n.weight.grad for n in norm])
        torch.testing.assert_close(g, want)


def half_the_spikes(module, args, out):
    return out * (torch.arange(out.shape[-1]) % 2)


@pytest.mark.parametrize("hook", [lambda *_: None, half_the_spikes], ids=["looks", "changes"])
def test_hooks_in_a_block_run_once_and_may_change_the_spikes(hook):
    results, calls = [], []
    for recompute in (True, False):
        torch.manual_seed(0)
        net = models.create("s_resnet8", filters=4, steps=3, recompute=recompute)
        for block in net.blocks:
            block.neuron1.register_forward_hook(hook)
            block.neuron1.register_forward_hook(lambda *_: calls.append(1))
        logits = train_step(net, *batch(2))
        results.append((logits, [p.grad for p in net.parameters()]))
        assert len(calls) == len(net.blocks)
        calls.clear()
    (logits, grads), (want, want_grads) = results
    assert torch.equal(logits, want)
    assert all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))


def test_neurons_that_carry_their_state_are_not_recomputed():
    grads = []
    for recompute in (True, False):
        torch.manual_seed(0)
        net = models.create("s_resnet8", filters=4, steps=3, recompute=recompute)
        for module in net.modules():
            if isinstance(module, LIF):
                module.stateful = True
        data = batch(2)
        train_step(net, *data)
        snnkernels.detach(net)
        train_step(net, *data)
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("options", [{}, {"norm": "bn", "residual": "v2v"}], ids=str)
def test_training_compiles_to_one_graph(options):
    torch._dynamo.reset()
    compiled, counted = [], CompileCounter()
    for compiler in (None, counted):
        torch.manual_seed(0)
        net = models.create("s_resnet8", filters=4, steps=2, **options)
        run = net if compiler is None else torch.compile(net, backend=compiler, fullgraph=True)
        images, labels = batch(2)
        logits = run(images)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        compiled.append([logits, *(p.grad for p in net.parameters())])
    assert counted.frame_count == 1
    torch.testing.assert_close(*compiled, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_early_exit_is_the_beginning_of_the_full_run(training):
    torch.manual_seed(0)
    net = models.create("s_resnet8", filters=2, steps=6).train(training)
    potentials = []
    net.fc.register_forward_hook(lambda m, i, o: potentials.append(o))
    x = torch.rand(6, 3, 3, 32, 32)
    with torch.no_grad():
        net(x)
        short = net(x[:4])
    torch.testing.assert_close(short, potentials[0][:4].mean(0))
