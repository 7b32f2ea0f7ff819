"""Times layers as people train them, beside other libraries: ``python -m bench layers``.

* "neurons" and "Linear, neurons": Linear(N, N) and LIF, 16 samples, 500 steps, N from 128 to 2048,
  forward and backward; what Open Neuromorphic's benchmark times, at sizes where neurons show.
* "two layers": two of them, 128 wide, 256 samples, 256 steps, forward, backward and Adam; the
  setting of jaxpike's benchmark.

Every provider gets the same weights and the same input spikes, and its linear layers run on all
steps at once, so that only the neurons differ. All of a case run in turns; figures are medians,
and ours runs twice a round: what its two runs lie apart is the noise. A provider whose step takes
longer than ten seconds runs once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench import peers
from bench.common import machine, markdown, save, too_noisy
from snnkernels import lif
from snnkernels.cli._timing import interleave, wall_clock

DECAY = 0.9
SLOW = 10.0  # seconds of a step from where a provider runs once only


class Case(NamedTuple):
    """A network of linear layers and neurons, and what is timed of it."""

    name: str
    steps: int
    samples: int
    width: int
    linears: int  # 0: neurons alone
    trains: bool  # a step of Adam after the backward pass


WIDTHS = (128, 256, 512, 1024, 2048)
CASES = [
    *(Case("neurons", 500, 16, n, 0, False) for n in WIDTHS),
    *(Case("Linear, neurons", 500, 16, n, 1, False) for n in WIDTHS),
    Case("two layers", 256, 256, 128, 2, True),
]


class Net(nn.Module):
    """Linear layers, each with neurons of its own; without one, neurons alone."""

    def __init__(self, case: Case, build: peers.Build) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(case.width, case.width) for _ in range(case.linears))
        for linear in self.linears:
            nn.init.normal_(linear.weight, std=4.0 * case.width**-0.5)
        self.neurons = [build(DECAY) for _ in range(max(1, case.linears))]

    def forward(self, x: Tensor) -> Tensor:
        """Spikes `[T, N, width]` of the last layer."""
        if not self.linears:
            return self.neurons[0](x)
        for linear, neurons in zip(self.linears, self.neurons, strict=True):
            x = neurons(linear(x))
        return x


def providers() -> tuple[dict[str, peers.Build], dict[str, str]]:
    """(who can run, why the others cannot)."""
    ours = {
        "snnkernels": lambda decay: lambda x: lif(x, decay=decay)[0],
        "unbind loop": lambda decay: lambda x: lif(x, decay=decay, backend="torch")[0],
    }
    there, missing = peers.installed(DECAY)
    return ours | {name: peers.PEERS[name] for name in there}, missing


def measure(case: Case, seconds: float) -> list[dict]:
    """One row for each provider."""
    torch.manual_seed(1)
    x = torch.rand(case.steps, case.samples, case.width)
    x = 2.0 * x if not case.linears else (x < 0.1).float()
    nets = {name: Net(case, build) for name, build in providers()[0].items()}
    with torch.no_grad():
        wanted = nets["snnkernels"](x)
        differing = {n: (net(x) != wanted).float().mean().item() for n, net in nets.items()}
    if differing["unbind loop"]:
        raise RuntimeError(f"{case}: ours and the loop differ; nothing is timed")

    def step(net: Net, optimizer: torch.optim.Optimizer | None) -> None:
        leaf = x.detach().requires_grad_(not case.linears)
        net.zero_grad()
        net(leaf).mean().backward()
        if optimizer is not None:
            optimizer.step()

    runs = {}
    for name, net in nets.items():
        adam = torch.optim.Adam(net.parameters(), 1e-6) if case.trains else None
        runs[name] = lambda n=net, a=adam: step(n, a)
    once = {name: wall_clock(run)() for name, run in runs.items()}
    runs = {name: run for name, run in runs.items() if once[name] <= SLOW}
    times = interleave(runs, seconds, rounds=3, twice="snnkernels")
    ours = times.median("snnkernels")
    return [
        {
            "case": case.name,
            "T": case.steps,
            "samples": case.samples,
            "width": case.width,
            "who": name,
            "ms": 1e3 * (times.median(name) if name in runs else once[name]),
            "times as long as ours": times.ratio(name, "snnkernels")
            if name in runs
            else once[name] / ours,
            "rounds": len(times.seconds[name]) if name in runs else 1,
            "differing spikes": differing[name],
            "noise": times.noise,
        }
        for name in nets
    ]


def main() -> int:
    """Run, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog=sys.argv[0], description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="N = 128 and 512 alone")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each case")
    parser.add_argument("--out", type=Path, help="folder for JSON and table")
    arguments = parser.parse_args()
    results = {"missing": providers()[1], "rows": []}
    command = " ".join(sys.argv)
    for case in CASES:
        if arguments.quick and case.width not in (128, 512):
            continue
        print(f"{case.name}, T={case.steps}, N={case.width} ...", flush=True)
        results["rows"] += measure(case, min(arguments.seconds, 3.0 if arguments.quick else 1e9))
        path = save("layers", command, results, arguments.out)  # what is there outlives Ctrl-C
        head = f"`{command}` on {machine()['cpu']}, {machine()['threads']} threads"
        path.with_suffix(".md").write_text(f"{head}\n\n{markdown(results['rows'])}\n")
    print(f"{markdown(results['rows'])}\n{path}")
    return too_noisy({f"{r['case']} {r['width']}": r["noise"] for r in results["rows"]})


if __name__ == "__main__":
    sys.exit(main())
