"""Times functions in turns: the one mechanism of the commands and of everything in bench/.

It is part of the package because ``demo``, ``associative`` and ``tune`` need it where the package
is installed and bench/ is not; bench/ imports it from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

import torch

Run = Callable[[], object]
# Makes, of a function, another one that runs it once and returns the seconds that it took.
Clock = Callable[[Run], Callable[[], float]]


class Timings(NamedTuple):
    """What `interleave` measured.

    Attributes:
        seconds: of every run, by function; the k-th entries belong to the same round.
        again: seconds of the second run in each round of the function that ran twice, else None.
        twice: the name of that function, else None.
    """

    seconds: dict[Hashable, list[float]]
    again: list[float] | None = None
    twice: Hashable | None = None

    def median(self, name: Hashable) -> float:
        """The median of a function's seconds."""
        return median(self.seconds[name])

    def quartiles(self, name: Hashable) -> list[float]:
        """First quartile, median and third quartile of a function's seconds.

        It takes two rounds or more.
        """
        return quantiles(self.seconds[name])

    def ratio(self, slow: Hashable, fast: Hashable) -> float:
        """The median over rounds of how many times as long ``slow`` takes as ``fast``."""
        return median(s / f for s, f in self._rounds(slow, fast))

    def spread(self, slow: Hashable, fast: Hashable) -> list[float]:
        """First and third quartile over rounds of `ratio`. It takes two rounds or more."""
        low, _, high = quantiles(s / f for s, f in self._rounds(slow, fast))
        return [low, high]

    def _rounds(self, one: Hashable, other: Hashable) -> zip:
        return zip(self.seconds[one], self.seconds[other], strict=True)

    @property
    def noise(self) -> float | None:
        """How far two runs of the same function in the same round lie apart.

        The median over rounds of longer / shorter - 1, or None where no function ran twice. Two
        functions whose `ratio` is nearer to 1 than this are equally fast.
        """
        if self.again is None:
            return None
        pairs = zip(self.seconds[self.twice], self.again, strict=True)
        return median(max(a, b) / min(a, b) for a, b in pairs) - 1


def wall_clock(run: Run) -> Callable[[], float]:
    """Seconds of a function that returns when its work is done."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def device_events(run: Run) -> Callable[[], float]:
    """Seconds on the current CUDA device from the first to the last kernel, launches included."""

    def seconds() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return seconds


def replayed_graph(flush: bool = False) -> Clock:
    """A clock for kernels alone: they are captured in a CUDA graph, and its replay is timed.

    Args:
        flush: write twice the L2 cache's size, 256 MiB at the least, before each run: the kernels
            find no data of theirs in the cache, and the replay is launched while the device is
            still busy. Default: False.
    """
    other = None
    if flush:
        cache = torch.cuda.get_device_properties().L2_cache_size
        other = torch.empty(max(2 * cache, 256 << 20), dtype=torch.uint8, device="cuda")

    def clock(run: Run) -> Callable[[], float]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay = device_events(graph.replay)

        def seconds() -> float:
            if other is not None:
                other.zero_()
            return replay()

        seconds()  # the first replay uploads the graph
        return seconds

    return clock


def interleave(
    functions: Mapping[Hashable, Run],
    seconds: float = 0.0,
    rounds: int = 5,
    *,
    twice: Hashable | None = None,
    clock: Clock = wall_clock,
) -> Timings:
    """Time functions in turns, A B C A B C ..., so that a change of the machine's speed meets all.

    Args:
        functions: by name. Each runs once before the first round, which is not counted: it compiles
            and loads.
        seconds: how long to go on. Default: 0, for ``rounds`` rounds.
        rounds: how many at the least. Default: 5.
        twice: this function runs a second time at the end of each round; see `Timings.noise`.
            Default: none does.
        clock: `wall_clock`, `device_events` or ``replayed_graph()``. Default: `wall_clock`.

    Returns:
        The seconds of every run.
    """
    for run in functions.values():
        run()
    clocks = {name: clock(run) for name, run in functions.items()}
    found: dict[Hashable, list[float]] = {name: [] for name in functions}
    again: list[float] | None = None if twice is None else []
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < end:
        for name, measure in clocks.items():
            found[name].append(measure())
        if again is not None:
            again.append(clocks[twice]())
        done += 1
    return Timings(found, again, twice)
