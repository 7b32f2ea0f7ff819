"""Losses against the papers' formulas written out."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snnkernels.nn import losses, synapses

DOUBLE = torch.float64


def test_spike_count_cross_entropy_is_equations_6_and_7():
    s = (torch.rand(12, 3, 4, dtype=DOUBLE) < 0.4).to(DOUBLE).requires_grad_()
    labels = torch.tensor([0, 3, 1])
    p = s.sum(0).exp()
    p = p / p.sum(1, keepdim=True)
    want = -p[torch.arange(3), labels].log().mean()
    got = losses.spike_count_cross_entropy(s, labels)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(e, s, retain_graph=True) for e in (got, want)))
    with pytest.raises(ValueError, match=r"s must be \[T, N, C\]"):
        losses.spike_count_cross_entropy(s[0], labels)


def distance(s, target, kernel):
    """Eq. 8 with the convolution written out, per sample."""
    T = s.shape[0]
    traces = [
        torch.stack([sum(kernel[t - u] * x[u] for u in range(t + 1)) for t in range(T)])
        for x in (s, target)
    ]
    return (traces[0] - traces[1]).square().sum((0, 2)) / (2 * T)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_van_rossum_is_equation_8(reduction):
    alpha, beta = synapses.dual_exponential(4.0, 1.0)
    kernel, _ = losses.iir(torch.eye(1, 15, dtype=DOUBLE).T, alpha, beta)
    s = torch.rand(15, 2, 3, dtype=DOUBLE, requires_grad=True)
    target = torch.rand(15, 2, 3, dtype=DOUBLE, requires_grad=True)
    want = distance(s, target, kernel[:, 0])
    want = want if reduction == "none" else getattr(want, reduction)()
    got = losses.van_rossum_distance(s, target, alpha, beta, reduction=reduction)
    torch.testing.assert_close(got, want)
    weights = torch.rand(want.shape, dtype=DOUBLE)
    grads = [torch.autograd.grad((e * weights).sum(), (s, target)) for e in (got, want)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_van_rossum_keeps_the_spikes_alone(dtype):
    s = (torch.rand(200, 2, 30) < 0.2).to(dtype).requires_grad_()
    target = torch.rand(200, 2, 30) < 0.2
    kept = []

    def pack(tensor):
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = losses.van_rossum_distance(s, target, [0.8], [1.0])
    assert sum(kept) <= s.numel() * s.element_size() + target.numel() + 100
    (ds,) = torch.autograd.grad(loss, s)
    exact = s.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(losses.van_rossum_distance(exact, target, [0.8], [1.0]), exact)
    torch.testing.assert_close(
        ds.double(), want, rtol=1e-2 if dtype != torch.float32 else 1e-4, atol=1e-6
    )


@pytest.mark.parametrize("channels", (None, 3))
def test_van_rossum_does_not_depend_on_its_blocks(monkeypatch, channels):
    """Blocks of 7 steps, of 16 and the whole: the float32 loss and gradients have the same bits."""
    alpha = torch.rand(*([] if channels is None else [channels]), 2) * 0.4
    beta = torch.randn(*([] if channels is None else [channels]), 3)
    s, target = (torch.rand(50, 2, 3, 4) < 0.3).float(), (torch.rand(50, 2, 3, 4) < 0.3).float()
    found = []
    for steps in (7, 16, 50):
        monkeypatch.setattr(losses, "_BLOCK", 0)
        monkeypatch.setattr(losses, "_BLOCK_STEPS", steps)
        leaves = s.clone().requires_grad_(), target.clone().requires_grad_()
        loss = losses.van_rossum_distance(*leaves, alpha, beta)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for result in found[:-1]:
        for a, b in zip(result, found[-1], strict=True):
            assert torch.equal(a, b)


def test_gradcheck_of_van_rossum(monkeypatch):
    monkeypatch.setattr(losses, "_BLOCK", 0)
    monkeypatch.setattr(losses, "_BLOCK_STEPS", 3)
    s, target = torch.rand(2, 8, 2, 2, dtype=DOUBLE)

    def distance(s, target):
        return losses.van_rossum_distance(s, target, [0.5, -0.2], [0.3, 1.0], reduction="none")

    assert torch.autograd.gradcheck(distance, (s.requires_grad_(), target.requires_grad_()))


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it took at one time, beside one that was there."""

    def __init__(self, there):
        super().__init__()
        self.now = self.peak = 0
        self.known = {there.untyped_storage()._cdata}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is None or storage._cdata in self.known:
                continue
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, name, size):
        self.known.discard(name)
        self.now -= size


def test_van_rossum_takes_memory_for_a_block_alone(monkeypatch):
    s, target = (torch.rand(2, 640, 2, 50) < 0.2).float()
    s.requires_grad_()
    size, steps = s.numel() * 4, 32
    monkeypatch.setattr(losses, "_BLOCK", 0)
    with Live(s) as forward:
        loss = losses.van_rossum_distance(s, target, [0.8], [1.0])
    with Live(s) as backward:
        loss.backward()
    block = size * steps // 640
    states = size // steps
    assert states < forward.peak <= 5 * block + states
    assert size < backward.peak <= size + 8 * block + states


def test_van_rossum_of_equal_trains_is_zero_and_errors_are_named():
    s = (torch.rand(20, 3) < 0.3).float()
    assert losses.van_rossum_distance(s, s, [0.5], [1.0]).item() == 0
    with pytest.raises(ValueError, match="reduction must be"):
        losses.van_rossum_distance(s, s, [0.5], [1.0], reduction="max")
    with pytest.raises(ValueError, match="target must have the shape"):
        losses.van_rossum_distance(s, s[1:], [0.5], [1.0])


def test_potential_regulariser():
    h = torch.tensor([0.0, 0.9, 1.0, 1.3, 2.0], dtype=DOUBLE).view(5, 1).requires_grad_()
    loss = losses.potential_regulariser(h, 1.0, tolerance=0.2)
    torch.testing.assert_close(loss.item(), (0.8**2 + 0.1**2 + 0.8**2) / 5)
    (dh,) = torch.autograd.grad(loss, h)
    torch.testing.assert_close(dh.flatten(), torch.tensor([-0.32, 0, 0, 0.04, 0.32], dtype=DOUBLE))
    shifted = losses.potential_regulariser(h, 1.0, tolerance=0.2, shift=-0.5)
    torch.testing.assert_close(shifted.item(), (0.3**2 + 0.2**2 + 0.3**2 + 0.6**2 + 1.3**2) / 5)
    per_channel = torch.tensor([0.5, 1.5])
    losses.potential_regulariser(torch.zeros(3, 1, 2, 4), per_channel, tolerance=0.1)
    with pytest.raises(ValueError, match="tolerance must be >= 0"):
        losses.potential_regulariser(h, 1.0, tolerance=-1.0)
