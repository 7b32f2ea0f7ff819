"""Measures launches of the kernels on one device, and another backend's kernels, and chooses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from snnkernels.backends import triton as kernels
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, Launch, Row
from snnkernels.core.call import Numbers, Options
from snnkernels.core.strides import common_layout, empty_rows
from snnkernels.core.surrogates import Triangle
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
    milliseconds: Callable[[Launch], float],
    rounds: int,
) -> Choice:
    """The fastest launch that computes the same, measured twice.

    The fastest of many is in part the luckiest: it is measured again, in turns with the old one
    alone, and that decides.

    Args:
        tried: candidates; the first one is the old launch.
        problem: None, or why a candidate must not be used.
        milliseconds: of one run of a candidate.
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
    times = _medians([c for c in tried if c not in refused], milliseconds, rounds)
    best = min(times, key=times.get)
    if best == old:
        return Choice(old, old, times[old], times[old], refused)
    times = _medians([old, best], milliseconds, rounds)
    if times[old] < LEAST_GAIN * times[best]:
        best = old
    return Choice(old, best, times[old], times[best], refused)


def _medians(tried: list, milliseconds: Callable[[object], float], rounds: int) -> dict:
    """Medians over runs in turns, so that a change of the clock meets all."""
    found: dict[object, list[float]] = {candidate: [] for candidate in tried}
    for _ in range(rounds):
        for candidate in tried:
            found[candidate].append(milliseconds(candidate))
    return {candidate: median(times) for candidate, times in found.items()}


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
        self.s, self.dx = torch.empty_like(self.x), torch.empty_like(self.x)
        self.state = empty_rows(self.x, 1)
        self.checkpoints = empty_rows(self.x, (steps - 1) // CHECKPOINT_EVERY, 1)
        numbers = Numbers(DECAY, 1.0, 0.0, *Triangle().constants())
        options = Options(checkpoint_every=CHECKPOINT_EVERY)
        self._call = (options, numbers, self.x, None, None, None, None)
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
            common_layout(self.s, self.x),
            *self._call,
            s=self.s,
            state_out=self.state,
            h=None,
            checkpoints=self.checkpoints,
            **launch,
        )

    def _backward(self, backend: ModuleType, **launch) -> None:
        backend.neuron_backward(
            common_layout(self.dx, self.x, self.ds, None),
            *self._call,
            self.checkpoints,
            self.ds,
            None,
            None,
            dx=self.dx,
            dv0=None,
            ddecay=None,
            dv_threshold=None,
            **launch,
        )

    def problem(self, row: Row) -> str | None:
        """Why launches must not be used: what differs from the reference, or the failure."""
        try:
            return self._problem(lambda: (self.forward(row.forward), self.backward(row.backward)))
        except OutOfResources as error:  # of the device's shared memory or registers
            return str(error)

    def _problem(self, both: Callable[[], object]) -> str | None:
        for tensor in (self.s, self.state, self.checkpoints, self.dx):
            tensor.fill_(float("nan"))
        both()
        got = (self.s, self.state[0], self.dx)
        for name, ours, theirs in zip(("s", "v", "dx"), got, self.expected, strict=True):
            if not torch.equal(ours, theirs):
                return f"{name} does not equal the reference"
        return None

    def choices(self, row: Row, timer: Callable, rounds: int) -> tuple[Choice, Choice]:
        """Choose for the forward and the backward kernel.

        Args:
            row: of the table.
            timer: makes, of a function, another one that returns the milliseconds of one run.
            rounds: runs of each candidate, in turns.
        """

        def pick(old: Launch, backward: bool) -> Choice:
            run = self.backward if backward else self.forward
            timers: dict[Launch, Callable[[], float]] = {}

            def problem(launch: Launch) -> str | None:
                return self.problem(row._replace(**{"backward" if backward else "forward": launch}))

            def milliseconds(launch: Launch) -> float:
                if launch not in timers:
                    timers[launch] = timer(partial(run, launch))
                return timers[launch]()

            return choose(candidates(old, backward), problem, milliseconds, rounds)

        return pick(row.forward, False), pick(row.backward, True)

    def faster(
        self, row: Row, name: str, other: ModuleType, timer: Callable, rounds: int
    ) -> Faster:
        """Compare another backend with these kernels.

        Args:
            row: the launches of these.
            name: of the other backend.
            other: its module.
            timer: as in `choices`.
            rounds: runs of each, in turns.
        """
        both = {
            "triton": lambda: (self.forward(row.forward), self.backward(row.backward)),
            name: lambda: (self._forward(other), self._backward(other)),
        }
        problem = self._problem(both[name])
        if problem is not None:
            return Faster("triton", {}, problem)
        timers = {backend: timer(run) for backend, run in both.items()}
        times = _medians(list(both), lambda backend: timers[backend](), rounds)
        wins = times["triton"] >= LEAST_GAIN * times[name]
        return Faster(name if wins else "triton", times, None)


def _reference(x: Tensor, ds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    s, state = lif(x, decay=DECAY, surrogate=Triangle(), backend="torch")
    return s.detach(), state.v.detach(), torch.autograd.grad(s, x, ds)[0]


def gpu_timer(device: torch.device | str = "cuda") -> Callable:
    """A timer for `Case.choices`: CUDA events around a replayed graph, the L2 cache flushed.

    The flush also keeps the device busy while the replay is being launched.
    """
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    other = torch.empty(max(2 * cache, 256 << 20), dtype=torch.uint8, device=device)

    def timer(run: Callable[[], None]) -> Callable[[], float]:
        graph = torch.cuda.CUDAGraph()
        run()  # compiled and loaded before the capture
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            run()

        def milliseconds() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            other.zero_()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)

        milliseconds()
        return milliseconds

    return timer
