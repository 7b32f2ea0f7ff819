"""Losses against the papers' formulas written out."""

from __future__ import annotations

import pytest
import torch

from snnkernels import losses, synapses

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
