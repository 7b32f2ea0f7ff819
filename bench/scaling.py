"""Time and memory against the number of steps: ``python -m bench scaling``.

Forward and backward of one layer of neurons, from 4 to 100,000 steps: the op, the loop over
``x.unbind(0)`` and the loop over ``x[t]``, whose backward pass grows with the square of T. Times
are medians of runs in turns; memory is the growth of the resident set in a process of its own. A
run that would take more memory than is free, or more time than ``--limit``, is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.common import available_bytes, machine, markdown, save, too_noisy
from bench.kernels import both_ways, indexed_loop
from snnkernels.cli._memory import peak_mib
from snnkernels.cli._timing import interleave
from tests.tools.cases import BENCH_CASES

STEPS = (4, 16, 64, 256, 1024, 4096, 16384, 100_000)
BYTES = {"snnkernels": 16, "unbind loop": 64, "x[t] loop": 96}  # at most, per neuron-step


def provider(who: str) -> Callable[[Tensor], Tensor]:
    """A function from x `[T, N]` to spikes, hard reset, decay 0.5."""
    from bench.kernels import lif

    case = BENCH_CASES[0]
    inputs = case._replace(neurons=1, steps=1).inputs()
    if who == "x[t] loop":
        return lambda x: indexed_loop(x, case, inputs)
    backend = "cpp" if who == "snnkernels" else "torch"
    return lambda x: lif(x, case, inputs, backend)[0]


def data(steps: int, neurons: int) -> tuple[Tensor, Tensor]:
    """x and the gradient that arrives on the spikes."""
    torch.manual_seed(0)
    return torch.rand(steps, neurons), torch.randn(steps, neurons)


def peak(who: str, steps: int, neurons: int) -> float | None:
    """Growth of the resident set in MiB, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (who, steps, neurons, torch.get_num_threads()))


def _peak(who: str, steps: int, neurons: int, threads: int) -> float | None:
    torch.set_num_threads(threads)
    run = provider(who)
    both_ways(run, *data(4, neurons))  # what the first call loads does not count
    x, ds = data(steps, neurons)
    return peak_mib(lambda: both_ways(run, x, ds))


def picture(rows: list[dict], path: Path) -> None:
    """Draw time and memory against T, on log axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    about = {
        "ms": ("time of forward and backward, ms", "Time"),
        "MiB": ("memory added at the peak, MiB", "Memory"),
    }
    for axis, (key, (label, title)) in zip(axes, about.items(), strict=True):
        for who in BYTES:
            points = [(r["T"], r[key]) for r in rows if r["who"] == who and r.get(key)]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=who)
        axis.set(xscale="log", yscale="log", xlabel="time steps T", ylabel=label, title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def due(who: str, steps: int, longer: int, seconds: float) -> float:
    """Seconds that a provider will take for more steps, from those that it took."""
    return seconds * (longer / steps) ** (2 if who == "x[t] loop" else 1)


def measure(steps: int, neurons: int, seconds: float, limit: float, before: dict) -> tuple:
    """Rows of one T, and what was left out of it.

    Args:
        steps: T.
        neurons: N.
        seconds: to measure for.
        limit: seconds that one run may take.
        before: (T, seconds) of each provider's last run; changed in place.
    """
    x, ds = data(steps, neurons)
    runs, rows, left_out = {}, [], []
    for who, each in BYTES.items():
        need, last = each * x.numel(), before.get(who)
        if last and due(who, last[0], steps, last[1]) > limit:
            left_out.append({"who": who, "T": steps, "reason": f"more than {limit:g} s"})
        elif need > 0.7 * available_bytes():
            reason = f"takes up to {need / 2**30:.1f} GiB"
            left_out.append({"who": who, "T": steps, "reason": reason})
        else:
            runs[who] = partial(both_ways, provider(who), x, ds)
    if "snnkernels" not in runs:  # nothing to compare with
        return rows, left_out
    times = interleave(runs, seconds, rounds=3, twice="snnkernels")
    for who in runs:
        before[who] = steps, times.median(who)
        rows.append(
            {
                "T": steps,
                "neurons": neurons,
                "who": who,
                "ms": 1e3 * times.median(who),
                "times as long as ours": times.ratio(who, "snnkernels"),
                "MiB": peak(who, steps, neurons),
                "noise": times.noise,
            }
        )
    return rows, left_out


def main() -> int:
    """Run, print a table, write JSON, Markdown and the picture."""
    parser = argparse.ArgumentParser(prog=sys.argv[0], description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,024 steps")
    parser.add_argument("--neurons", type=int, default=1024, help="in the layer (default: 1024)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each T (default: 3)")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds of one run at most")
    parser.add_argument("--out", type=Path, help="folder for JSON, table and picture")
    arguments = parser.parse_args()
    results, before = {"rows": [], "left_out": []}, {}
    command = " ".join(sys.argv)
    for steps in STEPS:
        if arguments.quick and steps > 1024:
            break
        print(f"T={steps} ...", flush=True)
        rows, left_out = measure(
            steps, arguments.neurons, arguments.seconds, arguments.limit, before
        )
        results["rows"] += rows
        results["left_out"] += left_out
        path = save("scaling", command, results, arguments.out)  # what is there outlives Ctrl-C
        head = f"`{command}` on {machine()['cpu']}, {machine()['threads']} threads"
        text = f"{head}\n\n{markdown(results['rows'])}\n"
        if results["left_out"]:
            text += f"\nLeft out:\n\n{markdown(results['left_out'])}\n"
        path.with_suffix(".md").write_text(text)
        picture(results["rows"], path.with_suffix(".png"))
    print(f"{text}\n{path}")
    return too_noisy({f"T={row['T']}": row["noise"] for row in results["rows"]})


if __name__ == "__main__":
    sys.exit(main())
