"""A sinabs network, trained as it is and accelerated: the same losses, less time.

python examples/sinabs_net.py [steps of training]
"""

from __future__ import annotations

import sys
import time

import sinabs
import torch
from torch import nn

import snnkernels

T, N = 25, 8


def network() -> nn.Module:
    """A network of rates, converted with sinabs' defaults."""
    torch.manual_seed(0)
    rates = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 6 * 6, 10),
        nn.ReLU(),
    )
    return sinabs.from_model(rates, input_shape=(1, 28, 28), batch_size=N).spiking_model


def train(net: nn.Module, steps: int) -> tuple[list[float], float]:
    """Losses of each step of training, and the CPU time of one in seconds."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    losses, started = [], time.process_time()
    for _ in range(steps):
        frames = 2 * torch.rand(N * T, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (N,), generator=generator)
        sinabs.reset_states(net)
        loss = nn.functional.cross_entropy(net(frames).unflatten(0, (N, T)).sum(1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (time.process_time() - started) / steps


def main(steps: int = 10) -> None:
    """Train both and say what came out."""
    ours = network()
    report = snnkernels.accelerate(ours)
    losses, before = train(network(), steps)
    fused, after = train(ours, steps)
    print(report)
    print(f"last loss {losses[-1]:.6f} before, {fused[-1]:.6f} after")
    print(f"CPU time of a step {before:.3f} s before, {after:.3f} s after")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
