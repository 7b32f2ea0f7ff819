"""Time a network with its neurons on two backends, after checking that both compute the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkernels.cli._timing import interleave
from snnkernels.nn.lif import LIF
from snnkernels.train.probe import Seen, watch


class Comparison(NamedTuple):
    """Median times of the same work on different backends, by backend.

    Attributes:
        layer: seconds of the first neuron layer alone, forward and backward.
        shape: of that layer's input.
        step: seconds of one whole training step.
        share: of the step's time that passes in its neuron layers, 0 ... 1.
        noise: how far two steps of the last network lie apart, 0.01 for one per cent.
        equal: whether losses, spikes and gradients were equal bit for bit; else they were close.
    """

    layer: dict[str, float]
    shape: tuple[int, ...]
    step: dict[str, float]
    share: dict[str, float]
    noise: float
    equal: bool


def compare(
    networks: dict[str, nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    *,
    rounds: int = 9,
) -> Comparison:
    """Time networks that differ in the backend of their neurons alone.

    Args:
        networks: one for each backend, with equal weights; each step trains them.
        loss: of outputs and labels.
        batch: samples and labels of one step.
        optimizer: makes an optimizer for a network's parameters.
        rounds: how often each one runs, in turn. Default: 9.

    Raises:
        RuntimeError: the backends do not compute the same; nothing is timed then.
    """
    seen = {name: watch(network, batch[0]) for name, network in networks.items()}
    equal = _check_equal(networks, loss, batch, seen)
    layers = {name: _forward_backward(calls[0]) for name, calls in seen.items()}
    steps = {
        name: _TrainingStep(network, loss, batch, optimizer(network.parameters()))
        for name, network in networks.items()
    }
    layer = interleave(layers, rounds=rounds)
    step = interleave(steps, rounds=rounds, twice=list(steps)[-1])
    return Comparison(
        layer={name: layer.median(name) for name in layers},
        shape=tuple(next(iter(seen.values()))[0].x.shape),
        step={name: step.median(name) for name in steps},
        share={name: median(run.shares[1:]) for name, run in steps.items()},
        noise=step.noise,
        equal=equal,
    )


def _check_equal(networks, loss, batch, seen: dict[str, list[Seen]]) -> bool:
    """Compare losses, spikes of all layers and gradients of the networks with the first one's."""
    results = {}
    for name, network in networks.items():
        network.zero_grad()
        value = loss(network(batch[0]), batch[1])
        value.backward()
        spikes = [call.s for call in seen[name]]
        results[name] = [value.detach(), *spikes, *(p.grad for p in network.parameters())]
        network.zero_grad()
    (first, expected), *others = results.items()
    equal = True
    for name, result in others:
        for a, b in zip(expected, result, strict=True):
            equal &= torch.equal(a, b)
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-6):
                raise RuntimeError(f"backends {first} and {name} differ: nothing is timed")
    return equal


def _forward_backward(call: Seen) -> Callable[[], None]:
    x = call.x.detach().requires_grad_()
    gradient = torch.empty_like(x).normal_()  # with the strides of the spikes

    def run() -> None:
        out = call.layer(x)
        torch.autograd.grad(out if isinstance(out, Tensor) else out[0], x, gradient)

    return run


class _TrainingStep:
    """One step of training; notes the share of its time that passed in neuron layers."""

    def __init__(self, network, loss, batch, optimizer):
        self.shares: list[float] = []
        self._network, self._loss, self._batch, self._optimizer = network, loss, batch, optimizer
        self._inside = 0.0  # seconds in neuron layers, forward and backward
        for layer in network.modules():
            if isinstance(layer, LIF):
                layer.register_forward_pre_hook(self._enter)
                layer.register_forward_hook(self._leave)
                layer.register_full_backward_pre_hook(self._enter)
                layer.register_full_backward_hook(self._leave)

    def _enter(self, *_) -> None:
        self._inside -= time.perf_counter()

    def _leave(self, *_) -> None:
        self._inside += time.perf_counter()

    def __call__(self) -> None:
        samples, labels = self._batch
        self._inside, start = 0.0, time.perf_counter()
        self._optimizer.zero_grad()
        self._loss(self._network(samples), labels).backward()
        self._optimizer.step()
        self.shares.append(self._inside / (time.perf_counter() - start))
