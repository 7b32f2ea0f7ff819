"""The command ``tune``."""

from __future__ import annotations

import argparse
import sys

import torch

from snnkernels.backends import load, why_unavailable
from snnkernels.backends.cache import cache_folder
from snnkernels.backends.faster import MEASURED
from snnkernels.backends.gpu import gpu_key
from snnkernels.cli._options import whole
from snnkernels.core.files import check_folder

HELP = """Measure the launch parameters of the GPU kernels on this GPU and keep what is faster.

Around each launch that snnkernels brings, a few others are timed, forward and backward, in float32
and bfloat16. What equals the reference and is faster by more than 3 % is stored in the user's cache
folder for GPUs of this name and this version of Triton; later processes use it. So is, for each
number of neurons, which of the backends "triton" and "cuda" is faster: "auto" then takes it. It
takes a few minutes, most of them to compile.
"""
DTYPES = (torch.float32, torch.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how much to measure, or to forget it."""
    parser.add_argument(
        "--forget", action="store_true", help="delete what was stored, for all GPUs"
    )
    parser.add_argument(
        "--rounds", type=whole(), default=15, metavar="N", help="runs of each candidate (15)"
    )


def run(args: argparse.Namespace) -> int:
    """Tune, or forget; 2 without a GPU that Triton can use, 1 where nothing can be stored."""
    if args.forget:
        return _forget()
    reason = why_unavailable("triton", "cuda")
    if reason is not None or not torch.cuda.is_available():
        reason = reason or "torch finds no GPU"
        print(f"tune: this needs a CUDA GPU that Triton can use: {reason}.", file=sys.stderr)
        return 2
    from snnkernels.backends.triton import launch_table as launches
    from snnkernels.cli import _timing, _tuning

    try:
        check_folder(cache_folder())
    except OSError as error:
        return _not_written(error)
    device = torch.cuda.current_device()
    kind, name = launches.gpu_class(device), torch.cuda.get_device_name(device)
    known = "" if kind in launches.LAUNCHES else ", which the table does not know"
    print(f"{name} ({kind}{known})\n{HEADER}", flush=True)
    no_cuda = why_unavailable("cuda", "cuda")
    if no_cuda is not None:
        print(f"Backend 'cuda' is not compared: {no_cuda}.")
    clock, rows, faster = _timing.replayed_graph(flush=True), {}, {}
    for dtype in DTYPES:
        found, wins = [], []
        for start, neurons in _tuning.MEASURED_AT.items():
            old = launches.launches_for(kind, start, dtype)
            case = _tuning.Case(neurons, dtype, "cuda")
            forward, backward = case.choices(old, clock, args.rounds)
            print(lines(neurons, dtype, forward, backward), flush=True)
            found.append(launches.Row(start, forward.new, backward.new))
            if no_cuda is None:
                compared = case.faster(found[-1], "cuda", load("cuda"), clock, args.rounds)
                print(comparison(compared), flush=True)
                wins.append((start, compared.name))
        rows[dtype.itemsize], faster[dtype.itemsize] = tuple(reversed(found)), wins[::-1]
    return store(gpu_key(device), rows, None if no_cuda else faster)


def store(key: str, rows: dict, faster: dict | None = None) -> int:
    """Store and say where; 1 where it cannot be written.

    Args:
        key: `gpu_key`.
        rows: launches, by bytes of an element.
        faster: the faster backends, by the same; None where they were not compared.
    """
    from snnkernels.backends.triton import launch_tuned

    try:
        launch_tuned.store(key, rows)
        if faster is not None:
            MEASURED.store(key, faster)
    except OSError as error:
        return _not_written(error)
    print(f"Stored in {cache_folder()}; 'python -m snnkernels tune --forget' deletes it.")
    return 0


def _not_written(error: OSError) -> int:
    print(
        f"tune: {cache_folder()} cannot be written to ({error}): what was measured is not stored, "
        "and the kernels run as before. Set XDG_CACHE_HOME to a folder that can be written",
        file=sys.stderr,
    )
    return 1


HEADER = (
    f"{'kernel':9}{'dtype':10}{'neurons':>9}  {'old':>13}{'us':>9}  {'new':>13}{'us':>9}{'gain':>7}"
)


def lines(neurons: int, dtype: torch.dtype, forward, backward) -> str:
    """Two rows of the table, and a note for each candidate that was refused."""
    found = []
    for kernel, choice in (("forward", forward), ("backward", backward)):
        old, new = ("x".join(map(str, launch)) for launch in (choice.old, choice.new))
        gain = f"{choice.old_ms / choice.new_ms:.2f}x" if choice.new != choice.old else "kept"
        found.append(
            f"{kernel:9}{str(dtype)[6:]:10}{neurons:9}  {old:>13}{choice.old_ms * 1e3:9.1f}  "
            f"{new:>13}{choice.new_ms * 1e3:9.1f}{gain:>7}"
        )
        found += [
            f"  refused {'x'.join(map(str, launch))}: {why.splitlines()[0]}"
            for launch, why in choice.refused.items()
        ]
    return "\n".join(found)


def comparison(faster) -> str:
    """One line on two backends."""
    if faster.problem is not None:
        return f"  backend 'cuda' refused: {faster.problem}"
    times = ", ".join(f"{name} {1e3 * ms:.1f} us" for name, ms in faster.milliseconds.items())
    return f'  both passes: {times}; "auto" takes {faster.name}'


def _forget() -> int:
    from snnkernels.backends.triton import launch_tuned

    tables = (launch_tuned.MEASURED, MEASURED)
    try:
        there = [table.path() for table in tables if table.forget()]
    except OSError as error:
        print(f"tune: {error.filename} cannot be deleted: {error}", file=sys.stderr)
        return 1
    for path in there:
        print(f"Deleted {path}.")
    if not there:
        print(f"Nothing is stored in {cache_folder()}.")
    return 0
