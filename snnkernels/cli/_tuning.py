"""Measures launches of the kernels on one device, and another backend's kernels, and chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from snnkernels.backends import triton as kernels
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, Launch, Row
from snnkernels.cli._timing import Clock, Run, interleave
from snnkernels.core.call import Arriving, Call, Coefficient, Gradients
from snnkernels.core.strides import common_layout
from snnkernels.core.surrogates import Triangle
from snnkernels.ops._neuron import empty_outputs
from snnkernels.ops.lif import lif

# Neurons that a row is measured at, by those it begins at: all rows of `launches.LAUNCHES`.
MEASURED_AT = {0: 1 << 12, 1 << 14: 1 << 15, 1 << 16: 1 << 16, 1 << 17: 1 << 17, 1 << 18: 1 << 20}
STEPS = 64
LEAST_GAIN = 1.03  # old time / new time that is more than noise
DECAY = 0.9
_WIDEST = 16  # neurons of a thread
_REFERENCE = 1 << 17  # neurons that the reference computes at once: it keeps all steps


class Choice(NamedTuple):
    """What came of the candidates for one kernel.

    Attributes:
        old: the launch of the table.
        new: the launch to use; ``old`` where none is faster by LEAST_GAIN.
        old_ms: milliseconds.
        new_ms: milliseconds, measured in turns with ``old_ms``.
        refused: candidates that do not equal the reference or cannot be launched, and why.
    """

    old: Launch
    new: Launch
    old_ms: float
    new_ms: float
    refused: dict[Launch, str]


def candidates(launch: Launch, backward: bool) -> list[Launch]:
    """The launch itself, first, and those beside it: one or two of its numbers halved or doubled.

    Args:
        launch: of the table.
        backward: its steps ahead are fixed.
    """
    block, warps, ahead = launch
    beside = [(b, w, ahead) for b, w in ((block // 2, warps), (block * 2, warps))]
    beside += [
        (b, w, ahead) for b in (block // 2, block, block * 2) for w in (warps // 2, warps * 2)
    ]
    if not backward:
        beside += [(b, warps, ahead // 2) for b in (block, block * 2)]
        beside += [(b, warps, ahead * 2) for b in (block // 2, block)]
    return [launch, *filter(_sensible, (Launch(*numbers) for numbers in beside))]


def _sensible(launch: Launch) -> bool:
    """Every thread has a neuron, and what it loads ahead fits its registers."""
    threads = 32 * launch.warps
    return (
        1 <= launch.warps <= 16
        and threads <= launch.block <= _WIDEST * threads
        and 2 <= launch.ahead <= 32
        and launch.block // threads * launch.ahead <= 128
    )


def choose(
    tried: list[Launch],
    problem: Callable[[Launch], str | None],
    run: Callable[[Launch], object],
    clock: Clock,
    rounds: int,
) -> Choice:
    """The fastest launch that computes the same, measured twice.

    The fastest of many is in part the luckiest: it is measured again, in turns with the old one
    alone, and that decides.

    Args:
        tried: candidates; the first one is the old launch.
        problem: None, or why a candidate must not be used.
        run: runs the kernel with a candidate.
        clock: times it.
        rounds: runs of each candidate, in turns.

    Raises:
        RuntimeError: the old launch itself has a problem.
    """
    old, refused = tried[0], {}
    for launch in tried:
        reason = problem(launch)
        if reason is not None:
            refused[launch] = reason
    if old in refused:
        raise RuntimeError(f"the launch of the table, {old}, must not be used: {refused[old]}")
    ms = _milliseconds({c: partial(run, c) for c in tried if c not in refused}, clock, rounds)
    best = min(ms, key=ms.get)
    if best == old:
        return Choice(old, old, ms[old], ms[old], refused)
    ms = _milliseconds({c: partial(run, c) for c in (old, best)}, clock, rounds)
    if ms[old] < LEAST_GAIN * ms[best]:
        best = old
    return Choice(old, best, ms[old], ms[best], refused)


def _milliseconds(runs: dict, clock: Clock, rounds: int) -> dict:
    """Medians over runs in turns."""
    times = interleave(runs, rounds=rounds, clock=clock)
    return {name: 1e3 * times.median(name) for name in runs}


class Faster(NamedTuple):
    """What came of a comparison of backends.

    Attributes:
        name: of the faster one; "triton" where another is not faster by LEAST_GAIN.
        milliseconds: of a forward and a backward pass, by name.
        problem: why the other one was refused; None where it was measured.
    """

    name: str
    milliseconds: dict[str, float]
    problem: str | None


class Case:
    """One size: buffers, the reference's results, and both kernels as functions of a launch."""

    def __init__(self, neurons: int, dtype: torch.dtype, device: str, steps: int = STEPS):
        generator = torch.Generator(device).manual_seed(0)
        x, ds = (torch.randn(steps, neurons, device=device, generator=generator) for _ in range(2))
        self.x, self.ds = (x + 0.2).to(dtype), ds.to(dtype)
        self.dx = torch.empty_like(self.x)
        p, q = Triangle().constants()
        self._call = Call(
            decay=Coefficient(number=DECAY),
            v_threshold=Coefficient(number=1.0),
            checkpoint_every=CHECKPOINT_EVERY,
            surrogate_p=p,
            surrogate_q=q,
        )
        self.outputs = empty_outputs(self.x, self._call)
        parts = [_reference(*part) for part in zip(*self._parts(), strict=True)]
        self.expected = [torch.cat(part, -1) for part in zip(*parts, strict=True)]

    def _parts(self) -> list[tuple[Tensor, ...]]:
        return [t.split(_REFERENCE, 1) for t in (self.x, self.ds)]

    def forward(self, launch: Launch) -> None:
        """Fill s, state and checkpoints."""
        self._forward(kernels, launch=launch)

    def backward(self, launch: Launch) -> None:
        """Fill dx from ds and the checkpoints."""
        self._backward(kernels, launch=launch)

    def _forward(self, backend: ModuleType, **launch) -> None:
        backend.neuron_forward(
            common_layout(self.outputs.s, self.x), self._call, self.x, self.outputs, **launch
        )

    def _backward(self, backend: ModuleType, **launch) -> None:
        backend.neuron_backward(
            common_layout(self.dx, self.x, self.ds, None),
            self._call,
            self.x,
            self.outputs.checkpoints,
            Arriving(s=self.ds),
            Gradients(x=self.dx),
            **launch,
        )

    def problem(self, row: Row) -> str | None:
        """Why launches must not be used: what differs from the reference, or the failure."""
        try:
            return self._problem(lambda: (self.forward(row.forward), self.backward(row.backward)))
        except OutOfResources as error:  # of the device's shared memory or registers
            return str(error)

    def _problem(self, both: Callable[[], object]) -> str | None:
        for tensor in (self.outputs.s, self.outputs.v, self.outputs.checkpoints, self.dx):
            tensor.fill_(float("nan"))
        both()
        got = (self.outputs.s, self.outputs.v, self.dx)
        for name, ours, theirs in zip(("s", "v", "dx"), got, self.expected, strict=True):
            if not torch.equal(ours, theirs):
                return f"{name} does not equal the reference"
        return None

    def choices(self, row: Row, clock: Clock, rounds: int) -> tuple[Choice, Choice]:
        """Choose for the forward and the backward kernel.

        Args:
            row: of the table.
            clock: times a kernel.
            rounds: runs of each candidate, in turns.
        """

        def pick(old: Launch, backward: bool) -> Choice:
            run = self.backward if backward else self.forward

            def problem(launch: Launch) -> str | None:
                return self.problem(row._replace(**{"backward" if backward else "forward": launch}))

            return choose(candidates(old, backward), problem, run, clock, rounds)

        return pick(row.forward, False), pick(row.backward, True)

    def faster(self, row: Row, name: str, other: ModuleType, clock: Clock, rounds: int) -> Faster:
        """Compare another backend with these kernels.

        Args:
            row: the launches of these.
            name: of the other backend.
            other: its module.
            clock: times both kernels together.
            rounds: runs of each, in turns.
        """
        both: dict[str, Run] = {
            "triton": lambda: (self.forward(row.forward), self.backward(row.backward)),
            name: lambda: (self._forward(other), self._backward(other)),
        }
        problem = self._problem(both[name])
        if problem is not None:
            return Faster("triton", {}, problem)
        ms = _milliseconds(both, clock, rounds)
        wins = ms["triton"] >= LEAST_GAIN * ms[name]
        return Faster(name if wins else "triton", ms, None)


def _reference(x: Tensor, ds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    s, state = lif(x, decay=DECAY, surrogate=Triangle(), backend="torch")
    return s.detach(), state.v.detach(), torch.autograd.grad(s, x, ds)[0]
