"""Many random calls, one after the other, on one backend for one GPU."""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import torch

from tests.tools.fake_gpus import FakeGpus
from tests.tools.ptx.families import FAMILIES
from tests.tools.ptx.families.base import Case, Family
from tests.tools.ptx.machine import Loaded, Machine

COMPILERS = {"nvcc": "cuda", "nvrtc": "cuda", "triton": "triton"}  # and their backends
_SHOWN = 8  # findings of one call


@dataclass
class Counts:
    """What a sample ran and found; two of them can be added up.

    Attributes:
        calls: first calls by family, each with its own options.
        repeats: calls with other sizes and values, by family.
        differing: calls that differ from the reference or did what a kernel must not do.
        kernels: of each compiled kernel, by a hash of its text, its instructions that ran and all.
        launches: of kernels.
        simulated: what the simulator did.
        seconds: that it took.
    """

    calls: Counter = field(default_factory=Counter)
    repeats: Counter = field(default_factory=Counter)
    differing: int = 0
    kernels: dict[str, list[int]] = field(default_factory=dict)
    launches: int = 0
    simulated: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    def as_json(self) -> dict:
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}

    @staticmethod
    def from_json(record: dict) -> Counts:
        counters = {k: Counter(record[k]) for k in ("calls", "repeats", "simulated")}
        return Counts(**record | counters)

    def __add__(self, other: Counts) -> Counts:
        kernels = self.kernels | {
            key: max(kernel, self.kernels.get(key, kernel)) for key, kernel in other.kernels.items()
        }
        sums = {k: v + getattr(other, k) for k, v in vars(self).items() if k != "kernels"}
        return Counts(kernels=kernels, **sums)

    def summary(self) -> dict:
        """Numbers of a row of the table, by the names of its columns."""
        ran, instructions = (sum(kernel[k] for kernel in self.kernels.values()) for k in (0, 1))
        of_global = self.simulated["global loads"] + self.simulated["global stores"]
        return {
            "calls": self.calls.total(),
            "repeats": self.repeats.total(),
            "families": dict(sorted(self.calls.items())),
            "wrong": self.differing,
            "kernels": len(self.kernels),
            "instructions that ran": ran,
            "instructions": instructions,
            "launches": self.launches,
            "accesses to global memory": of_global,
            "accesses to shared memory": self.simulated["shared accesses"],
        }

    def __str__(self) -> str:
        summary = self.summary()
        return ", ".join(f"{name}: {value}" for name, value in summary.items())


@dataclass
class Done:
    """A call that has run: how to run it again, and which instructions it led through."""

    family: Family
    case: Case
    values: tuple
    launch: tuple
    hits: list[tuple[Loaded, np.ndarray]]


class Sample:
    """Calls of some families on one backend for one GPU; this process does nothing else.

    Args:
        compiler: of `COMPILERS`.
        target: compute capability, such as 90.
        families: names of `FAMILIES`; empty: all that the backend has.
        seed: of all cases; case k of a seed is always the same one.
        repeats: calls with other sizes and values after each first one.
        ulps: how far approximate instructions may lie from the value rounded to nearest.
    """

    def __init__(
        self,
        compiler: str,
        target: int,
        families: tuple[str, ...] = (),
        seed: int = 0,
        repeats: int = 0,
        ulps: int = 0,
    ):
        torch.set_num_threads(1)
        self.backend, self.target, self.seed = COMPILERS[compiler], target, seed
        self.repeats, self.ulps = repeats, ulps
        self.gpus = FakeGpus()
        self.machine = Machine(ulps=ulps)
        self.families = [
            family
            for name, family in FAMILIES.items()
            if self.backend in family.backends and (name in families or not families)
        ]
        self._loaded = self._install(compiler)
        self.counts = Counts()

    def _install(self, compiler: str) -> dict:
        """Put the simulator in the place of the GPU; gives the kernels that have been loaded."""
        if self.backend == "triton":
            from tests.tools.ptx.triton_driver import Driver

            self._launches = import_module("snnkernels.backends.triton.launch_table").LAUNCHES
            self._rows = self._launches[f"sm_{self.target}"]
            return Driver(self.machine, self.target, self.gpus).install().loaded
        from tests.tools.ptx import cuda_launch

        make = {"nvcc": cuda_launch.Nvcc, "nvrtc": cuda_launch.Nvrtc}[compiler]
        launches = cuda_launch.Launches(self.machine, make(self.target))
        cuda_launch.install(launches, self.gpus)
        return launches.loaded

    @property
    def kernels(self) -> list[Loaded]:
        """Those that have been compiled so far."""
        return list(self._loaded.values())

    def run(self, numbers: range, seconds: float) -> Iterator[tuple[int, list[Done], list[str]]]:
        """Run cases until the time is over.

        Yields:
            Number of the case, its calls that were right, and lines that say what was wrong with
            the last one.
        """
        begin = time.monotonic()
        for number in numbers:
            if time.monotonic() - begin > seconds:
                return
            yield self._run(number)
            self.counts.seconds = time.monotonic() - begin

    def _run(self, number: int) -> tuple[int, list[Done], list[str]]:
        rng = random.Random(f"{self.seed}-{number}")
        torch.manual_seed(rng.randrange(1 << 30))
        family = rng.choices(self.families, [f.weight for f in self.families])[0]
        launch = rng.getstate()
        self.cut(rng)
        right: list[Done] = []
        case = family.draw(rng, self.backend)
        for repeat in range(1 + self.repeats):
            if repeat:
                case = family.again(case, rng)
            values = rng.getstate(), torch.get_rng_state()
            before = {id(k): k.hits for k in self.kernels}
            wrong = self.check(family, case, rng)
            counter = self.counts.repeats if repeat else self.counts.calls
            counter[family.name] += 1
            if wrong:
                break
            hits = [(k, np.flatnonzero(k.hits > before.get(id(k), 0))) for k in self.kernels]
            right.append(Done(family, case, values, launch, hits))
        self.counts.differing += bool(wrong)
        self._count()
        about = f"case {number}, {self.backend} sm_{self.target}, {family.name} {case}"
        return number, right, [about, *wrong] if wrong else []

    def _count(self) -> None:
        self.counts.kernels = {
            k.key: [int((k.hits > 0).sum()), len(k.hits)] for k in self.kernels if k.hits.any()
        }
        self.counts.launches = sum(self.machine.launches.values())
        self.counts.simulated = Counter(self.machine.counts)

    def check(self, family: Family, case: Case, rng: random.Random) -> list[str]:
        """Run a call; gives lines that say what is wrong."""
        self.machine.may_fuse = family.may_fuse
        seen = len(self.machine.findings)
        try:
            wrong = family.check(case, rng, self.backend, self.ulps)
        except Exception:  # any error of the package is a finding, and must not end the sample
            wrong = [traceback.format_exc()]
        found = self.machine.findings[seen:]
        del self.machine.findings[seen:]
        return wrong + [f"found: {finding}" for finding in found[:_SHOWN]]

    def check_again(self, done: Done) -> list[str]:
        """Run a call once more, with the same values."""
        rng = random.Random()
        rng.setstate(done.launch)
        self.cut(rng)
        state, torch_state = done.values
        rng.setstate(state)
        torch.set_rng_state(torch_state)
        return self.check(done.family, done.case, rng)

    def cut(self, rng: random.Random) -> None:
        """Choose how kernels are cut into blocks, whatever the number of neurons."""
        if self.backend == "triton":
            place = rng.choice((None, None, 0, 1, 2, 3, 4))
            self._launches[f"sm_{self.target}"] = (
                self._rows
                if place is None
                else {
                    size: (rows[place % len(rows)]._replace(neurons=0),)
                    for size, rows in self._rows.items()
                }
            )
            return
        cuda, launch = map(
            import_module, ("snnkernels.backends.cuda", "snnkernels.backends.cuda.launch")
        )
        self.gpus.multiprocessors = rng.choice((1, 1, 4, 16, 132))
        launch.RING_STEPS = 1 if rng.random() < 0.25 else 64
        for cached in (cuda._multiprocessors, launch.forward, launch.backward):
            cached.cache_clear()
