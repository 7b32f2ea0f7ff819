"""What a newcomer waits for: ``python -m bench startup``.

Each row runs in fresh processes, one after the other in turns; figures are medians. The import of
torch is not ours and stands beside as what it is compared with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from bench.common import machine, markdown, save, too_noisy
from snnkernels.cli._timing import Timings

_TIMED = """
import time
{before}
start = time.perf_counter()
{timed}
print(time.perf_counter() - start)
"""
_STEP = """
import torch, snnkernels
x = torch.rand(8, 4, 64, requires_grad=True)
def adaptive(x, v, w, *, decay):
    h = decay * v + x - w
    s = snnkernels.spike(h - 1.0, snnkernels.ATan())
    return s, h * (1 - s), 0.9 * w + 0.2 * s
def other(x, v, *, decay):
    h = decay * v + x
    return snnkernels.spike(h - 1.0, snnkernels.ATan()), h
"""
ROWS = {
    "import torch": ("", "import torch"),
    "import snnkernels, torch being there": ("import torch", "import snnkernels"),
    "first lif, forward and backward": (_STEP, "snnkernels.lif(x)[0].sum().backward()"),
    "second lif": (
        _STEP + "snnkernels.lif(x)[0].sum().backward()\n",
        "snnkernels.lif(x)[0].sum().backward()",
    ),
    "first call of the first neuron of one's own": (
        _STEP,
        "snnkernels.fuse(adaptive)(x, decay=0.9)[0].sum().backward()",
    ),
    "first call of the next one": (
        _STEP + "snnkernels.fuse(adaptive)(x, decay=0.9)[0].sum().backward()\n",
        "snnkernels.fuse(other)(x, decay=0.9)[0].sum().backward()",
    ),
}


def seconds(name: str) -> float:
    """Seconds of a row, in a process of its own."""
    before, timed = ROWS[name]
    code = _TIMED.format(before=before, timed=timed)
    root = Path(__file__).resolve().parent.parent
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return float(made.stdout)


def main() -> int:
    """Run, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog=sys.argv[0], description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--out", type=Path, help="folder for JSON and table")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    again: list[float] = []
    first = next(iter(ROWS))
    for _ in range(3 if arguments.quick else 9):
        for name in ROWS:
            found[name].append(seconds(name))
        again.append(seconds(first))
    times = Timings(found, again, first)
    rows = [{"what": name, "ms": 1e3 * times.median(name)} for name in ROWS]
    command = " ".join(sys.argv)
    path = save("startup", command, {"rows": rows, "noise": times.noise}, arguments.out)
    head = f"`{command}` on {machine()['cpu']}, {machine()['threads']} threads"
    path.with_suffix(".md").write_text(f"{head}\n\n{markdown(rows)}\n")
    print(f"{markdown(rows)}\n{path}")
    return too_noisy({first: times.noise})


if __name__ == "__main__":
    sys.exit(main())
