"""A Norse network, trained in a loop over time and at all steps at once: less time.

python examples/norse_net.py [steps of training]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import norse.torch as norse
import torch
from torch import Tensor, nn

import snnkernels

T = 25


def network() -> norse.SequentialState:
    """A convolution and a dense layer with neurons of one step, as in Norse's tutorials."""
    torch.manual_seed(0)
    return norse.SequentialState(
        nn.Conv2d(1, 16, 5),
        norse.LIFCell(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 6 * 6, 10),
        norse.LICell(),
    )


def loop(net: nn.Module, frames: Tensor) -> Tensor:
    """Voltages `[T, N, 10]` of the last layer, as without snnkernels."""
    state, voltages = None, []
    for frame in frames:
        voltage, state = net(frame, state)
        voltages.append(voltage)
    return torch.stack(voltages)


def at_once(net: nn.Module, frames: Tensor) -> Tensor:
    """The same, with time inside."""
    voltages, state = net(frames)
    return voltages


def train(net: nn.Module, forward: Callable, steps: int) -> tuple[list[float], float]:
    """Losses of each step of training, and the CPU time of one in seconds."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    losses, started = [], time.process_time()
    for _ in range(steps):
        frames = 4 * torch.rand(T, 8, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)
        loss = nn.functional.cross_entropy(forward(net, frames).max(0).values, labels)
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
