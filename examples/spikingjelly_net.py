"""A SpikingJelly network, trained as it is and accelerated: the same losses, less time.

python examples/spikingjelly_net.py [steps of training]
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import snnkernels


def network() -> nn.Sequential:
    """Convolution and dense layers with neurons between them, in multi-step mode."""
    net = nn.Sequential(
        layer.Conv2d(2, 16, 3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True),
        layer.MaxPool2d(2),
        layer.Conv2d(16, 16, 3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.ParametricLIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
        layer.AdaptiveAvgPool2d(4),
        layer.Flatten(),
        layer.Linear(256, 10),
        neuron.IFNode(surrogate_function=surrogate.ATan()),
    )
    functional.set_step_mode(net, "m")
    return net


def train(net: nn.Module, steps: int) -> tuple[list[float], float]:
    """Losses of each step of training on random events, and the CPU time of one in seconds."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses, started = [], time.process_time()
    for _ in range(steps):
        x = (torch.rand(25, 8, 2, 16, 16, generator=generator) < 0.2).float()  # [T, N, C, H, W]
        labels = torch.randint(10, (8,), generator=generator)
        loss = nn.functional.cross_entropy(net(x).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        losses.append(loss.item())
    return losses, (time.process_time() - started) / steps


def main(steps: int = 10) -> None:
    """Train both and say what came out."""
    torch.manual_seed(0)
    theirs = network()
    ours = copy.deepcopy(theirs)
    report = snnkernels.accelerate(ours)
    before, seconds_before = train(theirs, steps)
    after, seconds_after = train(ours, steps)
    print(report)
    print(f"last loss {before[-1]:.6f} before, {after[-1]:.6f} after")
    print(f"CPU time of a step {seconds_before:.3f} s before, {seconds_after:.3f} s after")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
