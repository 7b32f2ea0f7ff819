"""A snnTorch network, trained in a loop over time and at all steps at once: less time.

python examples/snntorch_net.py [steps of training]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import snnkernels

T = 25


def network() -> nn.Sequential:
    """Dense layers with neurons between them, as in snnTorch's tutorials."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 512),
        snn.Leaky(beta=0.95, init_hidden=True),
        nn.Linear(512, 10),
        snn.Leaky(beta=0.95, init_hidden=True, output=True),
    )


def loop(net: nn.Module, images: Tensor) -> Tensor:
    """Potentials `[T, N, 10]` of the last layer, as without snnkernels."""
    potentials = []
    for _ in range(T):
        spikes, mem = net(images)
        potentials.append(mem)
    return torch.stack(potentials)


def at_once(net: nn.Module, images: Tensor) -> Tensor:
    """The same, with time inside."""
    spikes, mem = net(images.expand(T, -1, -1))
    return mem


def train(net: nn.Module, forward: Callable, steps: int) -> tuple[list[float], float]:
    """Losses of each step of training, and the CPU time of one in seconds."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    losses, started = [], time.process_time()
    for _ in range(steps):
        images = torch.rand(32, 784, generator=generator)
        labels = torch.randint(10, (32,), generator=generator)
        utils.reset(net)
        mem = forward(net, images)
        loss = nn.functional.cross_entropy(mem.flatten(0, 1), labels.repeat(T))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (time.process_time() - started) / steps


def main(steps: int = 10) -> None:
    """Train both and say what came out."""
    ours = snnkernels.run_over_time(network())
    losses, before = train(network(), loop, steps)
    fused, after = train(ours, at_once, steps)
    print(ours.report)
    print(f"last loss {losses[-1]:.6f} before, {fused[-1]:.6f} after")
    print(f"CPU time of a step {before:.3f} s before, {after:.3f} s after")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
