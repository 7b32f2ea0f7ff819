"""The device, the sizes, the time that is left and the clock of a GPU run (``gpu.py``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.backends import why_unavailable

MOST = 1 << 28  # neuron-steps of one measurement


class Run:
    """The device, the sizes and the time that is left."""

    def __init__(self, seconds: float, rehearse: bool):
        self.end = time.monotonic() + seconds
        self.device = "cpu" if rehearse else "cuda"
        self.rehearse = rehearse
        names = ("cpp",) if rehearse else ("cuda", "triton")
        self.left_out: list[str] = []
        self.backends = []
        for name in names:
            reason = why_unavailable(name, self.device)
            if reason:
                self.leave_out(f"backend {name}: {reason}")
            else:
                self.backends.append(name)

    def leave_out(self, what: str) -> None:
        print(f"LEFT OUT: {what}", flush=True)
        self.left_out.append(what)

    def remaining(self) -> float:
        return self.end - time.monotonic()

    def sizes(self, pairs) -> list[tuple[int, int]]:
        """At small sizes where this is a rehearsal."""
        if not self.rehearse:
            return [(t, n) for t, n in pairs if t * n <= MOST]
        return sorted({(min(t, 20), min(n, 512)) for t, n in pairs})

    def milliseconds(self, calls: list[Callable[[], object]], seconds: float = 0.05) -> float:
        """One call's time: the median over repetitions of the mean over ``calls``."""
        if self.rehearse:
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) * 1e3 / len(calls)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        return self.timed(graph.replay, seconds) / len(calls)

    def timed(self, call: Callable[[], object], seconds: float = 0.1, least: int = 5) -> float:
        """Median milliseconds of a call, launches included."""
        if self.rehearse:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        call()
        torch.cuda.synchronize()
        found, end = [], time.monotonic() + seconds
        while len(found) < least or time.monotonic() < end:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[0].record()
            call()
            marks[1].record()
            torch.cuda.synchronize()
            found.append(marks[0].elapsed_time(marks[1]))
        return statistics.median(found)

    def tensors(self, sets: int, steps: int, neurons: int, dtype) -> list[Tensor]:
        return [
            (torch.randn(steps, neurons, device=self.device) + 0.2).to(dtype) for _ in range(sets)
        ]
