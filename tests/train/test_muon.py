"""The optimizer `Muon`."""

import pytest
import torch

from snnkernels.train.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_a_matrix_keeps_its_directions_and_loses_its_sizes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    x = u * torch.logspace(0, 1.5, len(s), dtype=torch.float64) @ v
    got = u.T @ orthogonal(x) @ v.T
    torch.testing.assert_close(got, got.diagonal().diag(), rtol=0, atol=1e-9)
    assert got.diagonal().min() > 0.6 and got.diagonal().max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_matrices_move_by_their_momentum_and_all_else_as_in_adam():
    torch.manual_seed(0)
    weight, ours, theirs = (torch.randn(6, 4, requires_grad=True) for _ in range(3))
    theirs.data.copy_(ours)
    groups = [{"params": [weight], "orthogonal": True}, {"params": [ours], "lr": 0.01}]
    optimizer = Muon(groups, lr=0.1, momentum=0.8)
    adam = torch.optim.Adam([theirs], lr=0.01)
    mean = torch.zeros(6, 4)
    for _ in range(3):
        grad = torch.randn(6, 4)
        weight.grad, ours.grad, theirs.grad = grad, grad.clone(), grad.clone()
        before = weight.detach().clone()
        optimizer.step()
        adam.step()
        mean = 0.8 * mean + 0.2 * grad
        step = orthogonal(0.8 * mean + 0.2 * grad)
        torch.testing.assert_close(before - weight, 0.1 * 1.5**0.5 * step)
    torch.testing.assert_close(ours, theirs)


def test_the_state_goes_through_a_checkpoint(tmp_path):
    def make():
        torch.manual_seed(0)
        p, q = (torch.randn(3, 2, requires_grad=True) for _ in range(2))
        return p, q, Muon([{"params": [p], "orthogonal": True}, {"params": [q]}], lr=0.1)

    def steps(p, q, optimizer, first, last):
        for k in range(first, last):
            for x in (p, q):
                x.grad = torch.full_like(x, k + 1.0) + x.detach()
            optimizer.step()

    p, q, optimizer = make()
    steps(p, q, optimizer, 0, 2)
    torch.save([p, q, optimizer.state_dict()], tmp_path / "state.pt")
    steps(p, q, optimizer, 2, 4)
    p2, q2, again = make()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for x, y in zip((p2, q2), saved, strict=False):
        x.data.copy_(y)
    again.load_state_dict(saved[2])
    steps(p2, q2, again, 2, 4)
    assert torch.equal(p, p2) and torch.equal(q, q2)


def test_a_wrong_option_is_named():
    p = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match="lr must be a number > 0; got 0"):
        Muon([p], lr=0)
    with pytest.raises(ValueError, match=r"momentum must be a number in \[0, 1\); got 1"):
        Muon([p], lr=1.0, momentum=1)
    with pytest.raises(ValueError, match=r"orthogonal=True is for matrices; got \[3\]"):
        Muon([{"params": [torch.zeros(3, requires_grad=True)], "orthogonal": True}], lr=1.0)
