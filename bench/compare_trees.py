"""Time two source trees against each other on the CPU, both built: is the new one as fast?

    python bench/compare_trees.py OLD NEW            # all cases of tests/tools/cases.py
    python bench/compare_trees.py OLD NEW --quick    # those up to 131 k neurons

Each case runs in three fresh processes: of OLD, of NEW, and once more of OLD, whose ratio to the
first is the noise (where a process's memory lies in the physical one changes its speed by some per
cent). Rows are the kernels alone, as the bench/kernels.py of each tree calls them, and ops through
the public interface in a process that keeps freed memory. The processes take turns, one run of a
row each; a ratio is the median over rounds of old time / new time, so below 1 the new tree is
slower. The exit status is 1 where the median over rows or one row is below its limit.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

TURN = 0.02  # seconds that a turn of a process takes at the least
PROCESSES = ("old", "new", "old again")


# --- one tree ------------------------------------------------------------------------------------


class _Handed(Exception):
    """The functions that a benchmark was about to time."""


def kernel_functions(kernels, case, inputs) -> dict:
    """The kernels alone. Their signature is each tree's own, so its benchmark prepares them."""

    def hand_over(functions, *_, **__):
        raise _Handed(functions)

    kernels.interleave = hand_over
    try:
        kernels.time_kernels(case, inputs, 0.0)
    except _Handed as handed:
        (functions,) = handed.args
    return {f"kernel, {name}": functions[name] for name in ("forward", "backward")}


def op_functions(inputs) -> dict:
    """Ops by their public interface, with all that backward allocates and computes."""
    import torch

    import snnkernels

    x, ds = inputs.x, inputs.ds
    leaf = x.clone().requires_grad_()
    steps, neurons = x.shape
    images = (steps, neurons // 1024, 64, 16)  # T, N, C, pixels
    channels = torch.full((64,), 0.9).requires_grad_()
    filters = [torch.tensor(c).requires_grad_() for c in ([0.9, -0.2], [1.0, 0.5])]
    synapse = tuple(f.detach() for f in filters)

    def lif(x, **options):
        return snnkernels.lif(x, decay=options.pop("decay", 0.9), backend="cpp", **options)[0]

    def both(run, *wanted):
        torch.autograd.grad(run(leaf), (leaf, *wanted), ds)

    more = {"synapse": synapse, "gain": 0.8, "trace_decay": 0.7, "reset": "trace"}
    functions = {
        "lif, forward": lambda: lif(x),
        "lif": lambda: both(lif),
        "lif, soft, refractory": lambda: both(lambda x: lif(x, reset="soft", refractory=2)),
        "lif, a learned decay per channel": lambda: both(
            lambda x: lif(x.view(images), decay=channels).view(x.shape), channels
        ),
        "lif, synapse, gain, trace": lambda: both(lambda x: lif(x, **more)),
        "iir": lambda: both(lambda x: snnkernels.iir(x, *synapse, backend="cpp")[0]),
        "iir, learned": lambda: both(
            lambda x: snnkernels.iir(x, *filters, backend="cpp")[0], *filters
        ),
    }
    if steps * neurons <= 1 << 22:  # once: no size of the case matters
        small, ones = torch.randn(4, 64), torch.ones(4, 64)
        small_leaf = small.clone().requires_grad_()
        functions |= {
            "lif of [4, 64], forward": lambda: lif(small),
            "lif of [4, 64]": lambda: torch.autograd.grad(lif(small_leaf), small_leaf, ones),
        }
    return functions


def serve(tree: Path, index: int) -> None:
    """Time functions of one tree: a row and a count come in, seconds of one run go out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tree prints is no answer
    sys.path[:1] = [str(tree), str(tree / "bench")]
    import kernels

    import snnkernels

    if tree not in Path(snnkernels.__file__).parents:
        raise SystemExit(f"{tree} holds no package: {snnkernels.__file__} was imported")
    case = kernels.BENCH_CASES[index]
    inputs = case.inputs()
    snnkernels.keep_freed_memory()
    functions = kernel_functions(kernels, case, inputs) | op_functions(inputs)
    print(json.dumps(list(functions)), file=answers, flush=True)
    gc.collect()
    gc.disable()
    for line in sys.stdin:
        name, count = json.loads(line)
        function = functions[name]
        function()  # brings its data back into the caches
        start = time.perf_counter()
        for _ in range(count):
            function()
        print((time.perf_counter() - start) / count, file=answers, flush=True)


class Process:
    """A tree's functions for one case, in a process of their own."""

    def __init__(self, tree: Path, index: int):
        command = [sys.executable, __file__, "--serve", str(tree), str(index)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env=environment,
        )
        self.rows: list[str] = self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with {self._process.wait()}: nothing is compared")
        return json.loads(line)

    def seconds(self, row: str, count: int) -> float:
        """Of one run of a row: the mean over ``count`` of them."""
        print(json.dumps((row, count)), file=self._process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


# --- two trees -----------------------------------------------------------------------------------


def compare(trees: dict[str, Path], index: int, rounds: int) -> list[dict]:
    """The rows of one case."""
    sys.path.insert(0, str(trees["new"]))
    from snnkernels.cli._timing import interleave

    processes = {name: Process(trees[name.split()[0]], index) for name in PROCESSES}
    try:
        rows = [row for row in processes["old"].rows if row in processes["new"].rows]
        found = []
        for row in rows:
            count = math.ceil(TURN / min(processes["old"].seconds(row, 1) for _ in range(3)))
            # The processes measure themselves: what a call returns is its time.
            turns = {
                name: lambda p=process, r=row, c=count: p.seconds(r, c)
                for name, process in processes.items()
            }
            times = interleave(turns, rounds=rounds, clock=lambda turn: turn)
            found.append(
                {
                    "row": row,
                    "old ms": 1e3 * times.median("old"),
                    "new ms": 1e3 * times.median("new"),
                    "old / new": times.ratio("old", "new"),
                    "old / old": times.ratio("old again", "old"),
                }
            )
        return found
    finally:
        for process in processes.values():
            process.end()


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="a source tree with its C++ core built")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--quick", action="store_true", help="only cases up to 131 k neurons")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each process (15)")
    parser.add_argument("--median", type=float, default=0.97, help="limit of the median (0.97)")
    parser.add_argument("--least", type=float, default=0.90, help="limit of each row (0.90)")
    arguments = parser.parse_args()
    trees = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    sys.path.insert(0, str(trees["new"]))
    from bench.common import machine, markdown
    from tests.tools.cases import BENCH_CASES

    print(f"{machine()['cpu']}, {machine()['threads']} threads: {trees['old']}, {trees['new']}")
    rows = []
    for index, case in enumerate(BENCH_CASES):
        if arguments.quick and case.neurons > 1 << 17:
            continue
        head = {"dtype": str(case.dtype)[6:], "T": case.steps, "N": case.neurons}
        found = [head | row for row in compare(trees, index, arguments.rounds)]
        print(markdown(found), flush=True)
        rows += found
    ratios = [row["old / new"] for row in rows]
    noise = [row["old / old"] for row in rows]
    slow = [row for row in rows if row["old / new"] < arguments.least]
    print(
        f"\n{len(rows)} rows, old / new: median {median(ratios):.3f}, least {min(ratios):.3f}; "
        f"{len(slow)} below {arguments.least}. The old tree against itself: median "
        f"{median(noise):.3f}, least {min(noise):.3f}, most {max(noise):.3f}"
    )
    for row in slow:
        print("below: " + ", ".join(str(v) for v in itertools.islice(row.values(), 4)))
    return int(bool(slow) or median(ratios) < arguments.median)


if __name__ == "__main__":
    sys.exit(main())
