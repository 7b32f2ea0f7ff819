"""``python -m tests.tools.ptx``: the sample of ``make ptx``, or one part of it.

python -m tests.tools.ptx --seconds 3600                # all parts, one after the other
python -m tests.tools.ptx nvrtc --target 100 --cases 50 # one part
python -m tests.tools.ptx triton --cases 20 --mutate 60 # faulty kernels: are they noticed?
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # before anything imports triton

from tests.tools.ptx.campaign import DEFAULT, Progress, campaign, write_docs  # noqa: E402
from tests.tools.ptx.fixed import check  # noqa: E402
from tests.tools.ptx.mutants import shares, try_faults  # noqa: E402
from tests.tools.ptx.sample import COMPILERS, Sample  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.ptx", description="Runs compiled GPU kernels without a GPU."
    )
    parser.add_argument("compiler", nargs="?", choices=COMPILERS, help="default: all of them")
    parser.add_argument("--target", type=int, default=90, help="compute capability (90)")
    parser.add_argument("--families", nargs="*", default=(), help="default: all")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many (no end)")
    parser.add_argument("--repeats", type=int, default=None, help="of each case (Triton 5, CUDA 0)")
    parser.add_argument("--seconds", type=float, default=3600, help="until it ends (3600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ulps", type=int, default=0, help="error of approximate instructions")
    parser.add_argument("--mutate", type=int, default=0, help="faults to try afterwards")
    parser.add_argument("--triton", type=Path, help="folder with another release of Triton")
    parser.add_argument("--out", type=Path, default=DEFAULT, help="results of all parts")
    parser.add_argument(
        "--fixed", nargs="?", const="", help="calls that no sample may miss, or those so named"
    )
    parser.add_argument("--docs", type=Path, help="put this record of counts into the docs")
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def one_part(arguments: argparse.Namespace) -> int:
    """Run one compiler's kernels for one GPU; 1 where something was wrong."""
    repeats = arguments.repeats
    if repeats is None:
        repeats = 5 if arguments.compiler == "triton" else 0
    sample = Sample(
        arguments.compiler,
        arguments.target,
        tuple(arguments.families),
        arguments.seed,
        repeats,
        arguments.ulps,
    )
    if arguments.fixed is not None:
        return fixed_calls(sample, arguments.fixed)
    progress = Progress(arguments.json) if arguments.json else None
    first = progress.next if progress else arguments.first
    history = []
    for number, right, wrong in sample.run(
        range(first, first + arguments.cases), arguments.seconds
    ):
        if wrong:
            print("\n    ".join(wrong), flush=True)
        if arguments.mutate:
            history += right
        if progress:
            progress.write(number + 1, sample.counts)
    print(sample.counts)
    if arguments.mutate:
        found = []
        for fault in try_faults(sample, history, arguments.mutate, arguments.seed):
            found.append(fault)
            if not fault.noticed:
                print("survived", *fault[:4], sep=" | ", flush=True)
        print(shares(found))
    return int(sample.counts.differing > 0)


def fixed_calls(sample: Sample, only: str) -> int:
    """Run the calls of ``fixed.py``, a line of JSON for each; 1 where something was wrong."""
    wrong = False
    for name, lines in check(sample, only):
        print(json.dumps([name, lines]), flush=True)
        wrong |= bool(lines)
    return int(wrong)


def main() -> int:
    arguments = parse()
    if arguments.triton:
        sys.path.insert(0, str(arguments.triton))
    if arguments.docs:
        write_docs(json.loads(arguments.docs.read_text()))
        return 0
    if arguments.compiler:
        return one_part(arguments)
    return campaign(arguments.out, arguments.seconds, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
