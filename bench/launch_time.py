"""Python's time for one call of `lif` on backend "triton": no GPU, and launches that do nothing.

``python -m bench.launch_time`` prints medians in microseconds, of the forward pass without
gradients and of forward and backward together. It runs without TRITON_INTERPRET.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch

import snnkernels
from tests.tools.triton_stub import no_gpu

ROUNDS = 300  # of each, in turns, after as many that warm up
SHAPE = (64, 4, 32)  # what a call allocates is small


def forward(x: torch.Tensor) -> None:
    """A call that keeps nothing for a backward pass."""
    with torch.no_grad():
        snnkernels.lif(x, backend="triton")


def both(x: torch.Tensor) -> None:
    """A call and its backward pass."""
    s, _ = snnkernels.lif(x, backend="triton")
    torch.autograd.grad(s, x, s)


def measure() -> dict[str, float]:
    """Medians in microseconds by name."""
    torch.set_num_threads(1)
    x = torch.zeros(SHAPE, requires_grad=True)
    times = {"forward": [], "both": []}
    with no_gpu():
        for _ in range(2 * ROUNDS):
            for name, call in (("forward", forward), ("both", both)):
                begin = perf_counter()
                call(x)
                times[name].append(1e6 * (perf_counter() - begin))
    return {name: median(found[ROUNDS:]) for name, found in times.items()}


if __name__ == "__main__":
    for name, microseconds in measure().items():
        print(f"{name:8}{microseconds:8.1f} us")
