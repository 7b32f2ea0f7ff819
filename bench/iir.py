"""Times the filter and the fused synapse on the CPU: ``python -m bench iir``.

Forward and backward together. First op against op, allocations and autograd on both sides: ``iir``
against the loop over ``x.unbind(0)``, and long records of few neurons in chunks of time against
one sequence. Then kernels on buffers written before: the filter against a copy, LIF with a synapse
against LIF without. Results are compared with the reference first. Every row is a median over
rounds in which all of its functions run.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import machine, markdown, save  # noqa: E402
from snnkernels import iir  # noqa: E402
from snnkernels.backends import cpp  # noqa: E402
from snnkernels.cli._timing import interleave  # noqa: E402
from snnkernels.core.call import Arriving, Call, Coefficient, Gradients, Outputs  # noqa: E402
from snnkernels.core.strides import common_layout, empty_rows  # noqa: E402
from snnkernels.nn import synapses  # noqa: E402
from snnkernels.ops._checks import lags_first  # noqa: E402
from snnkernels.ops._neuron import empty_outputs  # noqa: E402

SIZES = ((64, 131_072), (10_000, 64))
LONG = ((100_000, 1), (100_000, 4), (1_000_000, 1), (1_000_000, 4))


def naive(x, alpha, beta):
    """What everybody writes, for P = 2 and Q = 1."""
    f1 = f2 = x1 = torch.zeros_like(x[0])
    out = []
    for x_t in x.unbind(0):
        f = beta[1] * x1 + beta[0] * x_t + alpha[1] * f2 + alpha[0] * f1
        f1, f2, x1 = f, f1, x_t
        out.append(f)
    return torch.stack(out)


def filter_kernels(x, df, alpha, beta, learn):
    """Forward and backward of the filter, as one function without an argument."""
    f, dx = torch.zeros_like(x), torch.zeros_like(x)
    alpha, beta = lags_first(alpha, beta)
    every = cpp.CHECKPOINT_EVERY if learn else 0
    call = Call(alpha=alpha, beta=beta, checkpoint_every=every)
    kept = empty_rows(f, (x.shape[0] - 1) // every if learn else 0, call.P).zero_()
    outputs = Outputs(f, kept, synapse=empty_rows(f, call.P + call.Q).zero_())
    gradients = Gradients(x=dx)
    if learn:
        gradients = Gradients(x=dx, alpha=torch.zeros_like(alpha), beta=torch.zeros_like(beta))
    kept_x = x if learn else None

    def run():
        cpp.iir_forward(common_layout(f, x), call, x, outputs)
        layout = common_layout(dx, kept_x, df, None)
        cpp.iir_backward(layout, call, kept_x, kept, Arriving(s=df), gradients)

    return run, f, dx


def neuron_kernels(x, ds, **synapse):
    """Forward and backward of a hard-reset neuron, with a synapse (alpha, beta) or without."""
    call = Call(
        decay=Coefficient(number=0.5),
        v_threshold=Coefficient(number=1.0),
        checkpoint_every=cpp.CHECKPOINT_EVERY,
        surrogate_p=1.0,
        surrogate_q=1.0,
        **synapse,
    )
    outputs, gradients = empty_outputs(x, call), Gradients(x=torch.zeros_like(x))
    for written in (outputs.s, outputs.v, outputs.checkpoints):
        written.zero_()

    def run():
        cpp.neuron_forward(common_layout(outputs.s, x), call, x, outputs)
        layout = common_layout(gradients.x, x, ds, None)
        cpp.neuron_backward(layout, call, x, outputs.checkpoints, Arriving(s=ds), gradients)

    return run


def row(what: str, x, values: int, seconds: float, ours, baseline: str = "", theirs=None) -> dict:
    """Time a function in turns with its baseline, where there is one, and with a copy of x.

    Args:
        what: is measured.
        x: [T, N].
        values: float32 that ``ours`` must move for each neuron and step, checkpoints left out.
        seconds: how long.
        ours: what is measured.
        baseline: what ``theirs`` is.
        theirs: the baseline.
    """
    to = torch.zeros_like(x)

    def copy():
        cpp._core.stream(to.data_ptr(), x.data_ptr(), 0, x.numel(), torch.get_num_threads())

    runs = {"ours": ours, "copy": copy} | ({"theirs": theirs} if theirs else {})
    times = interleave(runs, seconds, twice="ours")
    against = {}
    if theirs:
        against = {
            "baseline": baseline,
            "baseline ms": 1e3 * times.median("theirs"),
            "baseline / it": times.ratio("theirs", "ours"),
        }
    return {
        "what": what,
        "T": x.shape[0],
        "N": x.shape[1],
        "ms": 1e3 * times.median("ours"),
        **against,
        "noise": times.noise,
        "it / copy of as many bytes": times.ratio("ours", "copy") * 2 / values,
    }


def against_loop(T: int, N: int, alpha, beta, seconds: float) -> list[dict]:
    """The op against the naive loop, both with all that autograd does."""
    x, df, rows = torch.randn(T, N), torch.randn(T, N), []
    for name, learn in (("fixed", False), ("learned", True)):
        leaves = [
            c.clone().requires_grad_(need) for c, need in ((x, True), (alpha, learn), (beta, learn))
        ]

        def both(run, leaves=leaves):
            f = run(*leaves)
            return f.detach(), *torch.autograd.grad(f, [t for t in leaves if t.requires_grad], df)

        ours = partial(both, lambda *call: iir(*call, backend="cpp")[0])
        theirs = partial(both, naive)
        for got, want in zip(ours(), theirs(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
        what = f"iir, coefficients {name}"
        rows.append(row(what, x, 4 + learn, seconds, ours, "unbind loop", theirs))
    return rows


def written_buffers(T: int, N: int, alpha, beta, seconds: float) -> list[dict]:
    """The kernels alone: the filter, and LIF with a synapse against LIF without."""
    x, df = torch.randn(T, N), torch.randn(T, N)
    leaf = x.clone().requires_grad_()
    want = iir(leaf, alpha, beta, backend="torch")[0]
    (want_dx,) = torch.autograd.grad(want, leaf, df)
    rows = []
    for name, learn in (("fixed", False), ("learned", True)):
        kernel, f, dx = filter_kernels(x, df, alpha, beta, learn)
        kernel()
        if not (torch.equal(f, want.detach()) and torch.equal(dx, want_dx)):
            raise SystemExit(f"T={T}, N={N}: the kernel is not the reference; nothing is timed")
        rows.append(row(f"filter, coefficients {name}", x, 4 + learn, seconds, kernel))
    a, b = lags_first(alpha, beta)
    bare, fused = neuron_kernels(x, df), neuron_kernels(x, df, alpha=a, beta=b)
    rows.append(row("LIF", x, 5, seconds, bare))
    rows.append(row("LIF with synapse", x, 5, seconds, fused, "LIF", bare))
    return rows


def over_time(T: int, N: int, alpha, beta, seconds: float) -> dict:
    """The op, time in chunks side by side against one sequence."""
    x, df = torch.randn(T, N, requires_grad=True), torch.randn(T, N)

    def run(sequential):
        f, _ = iir(x, alpha, beta, sequential=sequential, backend="cpp")
        return f.detach(), *torch.autograd.grad(f, x, df)

    for got, want in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(got, want)
    ours, theirs = (lambda: run(False)), (lambda: run(True))
    return row("iir, chunks of time", x.detach(), 4, seconds, ours, "sequential", theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row")
    parser.add_argument("--out", type=Path, default=None, help="folder for JSON and table")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    alpha, beta = (torch.tensor(c) for c in synapses.dual_exponential(8.0, 2.0))
    command = " ".join(["python -m bench iir", *sys.argv[1:]])
    about, results = machine(), {"ops": [], "kernels": []}

    def keep(part: str, rows: list[dict]) -> str:
        """Write all that is there so far: it outlives Ctrl-C."""
        results[part] += rows
        path = save("iir", command, results, arguments.out)
        head = (
            f"`{command}` on {about['cpu']}, {about['threads']} threads, commit {about['commit']}"
        )
        text = f"{head}\n\nOp against op, allocations and autograd on both sides:\n\n"
        text += markdown(results["ops"])
        if results["kernels"]:
            text += "\n\nKernels alone, on buffers written before:\n\n" + markdown(
                results["kernels"]
            )
        path.with_suffix(".md").write_text(text + "\n")
        return f"{text}\n{path}"

    for T, N in SIZES:
        keep("ops", against_loop(T, N, alpha, beta, arguments.seconds))
    for T, N in LONG:
        keep("ops", [over_time(T, N, alpha, beta, arguments.seconds)])
    for T, N in SIZES:
        text = keep("kernels", written_buffers(T, N, alpha, beta, arguments.seconds))
    print(text)


if __name__ == "__main__":
    main()
