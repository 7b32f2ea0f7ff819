"""The device, sizes, clock and processes of a GPU run (``gpu.py``)."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from snnkernels.backends import why_unavailable
from snnkernels.cli._timing import Timings, device_events, interleave, replayed_graph

MOST = 1 << 28  # neuron-steps of one measurement
LEFT_OUT = "LEFT OUT: "
_Found = TypeVar("_Found")


def allotted(remaining: float, this: float, *later: float) -> float:
    """Seconds for what comes first: all but the later shares, or its own where time is short."""
    return max(remaining - sum(later), remaining * this / (this + sum(later)))


class Job:
    """A process and all that it starts, over in time: then it is interrupted, at last killed.

    Args:
        command: what runs.
        seconds: from now on.
        log: takes its output; None: `lines` gives it.
        cwd: where it runs.
        more: environment variables beside those of this process.
    """

    def __init__(
        self,
        command: list[str],
        seconds: float,
        log: Path | None = None,
        cwd: Path | None = None,
        more: dict[str, str] | None = None,
    ):
        self.log, self._late = log, False
        with open(log or os.devnull, "w") as file:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=os.environ | (more or {}),
                stdout=file if log else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self._timer = threading.Timer(max(seconds, 0), self._stop)
        self._timer.start()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _stop(self) -> None:
        self._late = True
        self._signal(signal.SIGINT)  # pytest and the sanitizer then say what they have found
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)

    def lines(self) -> Iterator[str]:
        """Its output as it comes, where there is no log."""
        return (line.rstrip("\n") for line in self._process.stdout)

    def wait(self) -> int | str:
        """Its exit status, or "out of time"; nothing of it runs on."""
        code = self._process.wait()
        self._timer.cancel()
        self._timer.join()
        self._signal(signal.SIGKILL)
        return "out of time" if self._late else code


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
        print(LEFT_OUT + what, flush=True)
        self.left_out.append(what)

    def attempt(self, what: str, work: Callable[[], _Found]) -> Iterator[_Found]:
        """What ``work`` gives; where it fails or no time is left, nothing, and that is said."""
        if self.remaining() < 0 and not self.rehearse:
            self.leave_out(f"{what}: out of time")
            return
        try:
            found = work()
        except Exception as error:  # must not cost the measurements that follow
            self.leave_out(f"{what}: {error!r}".replace("\n", " "))
            return
        yield found

    def remaining(self) -> float:
        return self.end - time.monotonic()

    def sizes(self, pairs) -> list[tuple[int, int]]:
        """At small sizes where this is a rehearsal."""
        if not self.rehearse:
            return [(t, n) for t, n in pairs if t * n <= MOST]
        return sorted({(min(t, 20), min(n, 512)) for t, n in pairs})

    def that_run(self, what: str, functions: dict[str, Callable]) -> dict[str, Callable]:
        """The functions that run without failing; the others are left out, and that is said."""
        return {
            name: function
            for name, function in functions.items()
            if list(self.attempt(f"{what}: {name}", function))
        }

    def times(
        self,
        functions: dict[str, Callable[[], object]],
        seconds: float = 0.1,
        rounds: int = 5,
        twice: str | None = None,
    ) -> Timings:
        """Times of functions in turns, launches included; in a rehearsal one round."""
        if self.rehearse:
            return interleave(functions, rounds=1, twice=twice)
        return interleave(functions, seconds, rounds, twice=twice, clock=device_events)

    def kernel_ms(self, sets: dict[str, list[Callable[[], object]]]) -> dict[str, float]:
        """Median milliseconds of kernels alone, in turns.

        Args:
            sets: by name, calls of one kernel over several sets of buffers, which together are too
                large for the cache; a CUDA graph goes through all of them. The result is the mean
                over the sets.
        """

        def all_of(calls: list[Callable[[], object]]) -> Callable[[], None]:
            def run() -> None:
                for call in calls:
                    call()

            return run

        runs = {name: all_of(calls) for name, calls in sets.items()}
        if self.rehearse:
            found = interleave(runs, rounds=1)
        else:
            found = interleave(runs, seconds=0.1, clock=replayed_graph())
        return {name: 1e3 * found.median(name) / len(calls) for name, calls in sets.items()}

    def tensors(self, sets: int, steps: int, neurons: int, dtype) -> list[Tensor]:
        return [
            (torch.randn(steps, neurons, device=self.device) + 0.2).to(dtype) for _ in range(sets)
        ]
