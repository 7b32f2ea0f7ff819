"""Times neurons written as steps: ``python -m bench fuse``.

Forward and backward, allocations and autograd on both sides, medians of runs in turns:

* a step of two states and five learned values per channel, against the loop over ``x.unbind(0)``,
  as it stands (interpreted) and as the neuron that ships (compiled ahead of time);
* LIF as a step, against `lif`: interpreted, and compiled ahead of time.

A step whose spikes do not equal the loop's is not timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.common import machine, markdown, save, too_noisy
from snnkernels import Laplace, Triangle, fuse, lif, spike
from snnkernels.cli._timing import interleave
from snnkernels.nn import neurons

ADAPTIVE = ((500, 8192), (64, 131_072))
PLAIN = ((500, 8192), (64, 1 << 20))
CHANNELS = 64


def adaptive(x, u, w, *, alpha, beta, a, b, theta):
    """SE-adLIF with w's leak written another way, so that it is interpreted."""
    u = alpha * u + (1 - alpha) * (x - w)
    s = spike(u - theta, Laplace(height=0.4, width=0.2), strict=True)
    u = u * (1 - s.detach())
    return s, u, w + (1 - beta) * (a * u + b * s - w)


def leaky(x, v, *, decay):
    """LIF whose reset is a product, so that it is interpreted."""
    h = decay * v + x
    s = spike(h - 1.0, Triangle())
    return s, h * (1 - s.detach())


def learned() -> dict[str, Tensor]:
    """Five values per channel, with gradients."""
    start = {"alpha": 0.9, "beta": 0.95, "a": 0.5, "b": 1.0, "theta": 1.0}
    return {k: torch.full((CHANNELS,), v, requires_grad=True) for k, v in start.items()}


def looped(step: Callable, states: int, x: Tensor, **parameters) -> Tensor:
    """The step in a loop over time: spikes."""
    after, spikes = [torch.zeros_like(x[0])] * states, []
    shaped = {
        k: v.view(-1, *[1] * (x.ndim - 3)) if isinstance(v, Tensor) else v
        for k, v in parameters.items()
    }
    for x_t in x.unbind(0):
        s, *after = step(x_t, *after, **shaped)
        spikes.append(s)
    return torch.stack(spikes)


def trained(run: Callable, x: Tensor, ds: Tensor, learned: list[Tensor]) -> None:
    """Forward, and backward to x and to all that learns."""
    x = x.detach().requires_grad_()
    torch.autograd.grad(run(x), [x, *learned], ds)


def row(
    what: str,
    x: Tensor,
    seconds: float,
    run: Callable,
    other: str,
    against: Callable,
    learned: Sequence[Tensor] = (),
) -> dict:
    """One row: what, against the other."""
    if not torch.equal(run(x), against(x)):
        raise RuntimeError(f"{what}: other spikes than {other}; nothing is timed")
    ds = torch.randn_like(x)
    each = {"fused": run, other: against}
    runs = {name: partial(trained, function, x, ds, learned) for name, function in each.items()}
    times = interleave(runs, seconds, rounds=3, twice="fused")
    return {
        "what": what,
        "T": x.shape[0],
        "neurons": x[0].numel(),
        "ms": 1e3 * times.median("fused"),
        "against": other,
        "its ms": 1e3 * times.median(other),
        "times as long as the fused step": times.ratio(other, "fused"),
        "noise": times.noise,
    }


def rows(steps: int, size: int, seconds: float, plain: bool) -> list[dict]:
    """The rows of one size."""
    torch.manual_seed(0)
    x = torch.rand(steps, size // CHANNELS, CHANNELS)
    if plain:
        ours = lambda x: lif(x, decay=0.9, detach_reset=True)[0]  # noqa: E731
        runs = {
            "LIF as a step, interpreted": lambda x: fuse(leaky)(x, decay=0.9)[0],
            "LIF as a step, compiled": lambda x: fuse(neurons.lif)(x, decay=0.9)[0],
        }
        return [row(what, x, seconds, run, "lif", ours) for what, run in runs.items()]
    x, values = 4.0 * x, learned()
    found = []
    for what, step in {"interpreted": adaptive, "compiled": neurons.se_adlif}.items():
        names = set(values) if step is adaptive else set(values) - {"theta"}
        given = {k: v for k, v in values.items() if k in names}
        if step is not adaptive:
            given["v_threshold"] = values["theta"]
        run = lambda x, s=step, g=given: fuse(s)(x, **g)[0]  # noqa: E731
        loop = partial(looped, step, 2, **given)
        found.append(row(f"adaptive LIF, {what}", x, seconds, run, "loop", loop, [*given.values()]))
    return found


def main() -> int:
    """Run, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog=sys.argv[0], description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8,192 neurons alone")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    parser.add_argument("--out", type=Path, help="folder for JSON and table")
    arguments = parser.parse_args()
    command, results = " ".join(sys.argv), {"rows": []}
    for plain, sizes in ((False, ADAPTIVE), (True, PLAIN)):
        for steps, size in sizes[: 1 if arguments.quick else None]:
            print(f"T={steps}, {size} neurons ...", flush=True)
            results["rows"] += rows(steps, size, arguments.seconds, plain)
            path = save("fuse", command, results, arguments.out)  # outlives Ctrl-C
            head = f"`{command}` on {machine()['cpu']}, {machine()['threads']} threads"
            path.with_suffix(".md").write_text(f"{head}\n\n{markdown(results['rows'])}\n")
    print(f"{markdown(results['rows'])}\n{path}")
    return too_noisy({f"{r['what']}, T={r['T']}": r["noise"] for r in results["rows"]})


if __name__ == "__main__":
    sys.exit(main())
