"""Times the filter and the fused synapse on the CPU: ``python bench/iir.py``.

Forward and backward together. Kernels run on written buffers, in turns with the naive loop over
``x.unbind(0)`` (backward by autograd) or with the bare LIF kernel; long records of few neurons run
through the op, in chunks of time and as one sequence. Results are compared with the reference
first. Every row is a median over rounds in which all of its functions run.
"""

from __future__ import annotations

import argparse
import sys
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
    outputs = Outputs(f, None, kept, None, None, empty_rows(f, call.P + call.Q).zero_(), None, None)
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


def row(what: str, x, baseline: str, theirs, ours, values: int, seconds: float) -> dict:
    """Time two functions in turns with a copy of x.

    Args:
        what: is measured.
        x: [T, N].
        baseline: what ``theirs`` is.
        theirs: the baseline.
        ours: what is measured.
        values: float32 that ``ours`` must move for each neuron and step, checkpoints left out.
        seconds: how long.
    """
    to = torch.zeros_like(x)

    def copy():
        cpp._core.stream(to.data_ptr(), x.data_ptr(), 0, x.numel(), torch.get_num_threads())

    runs = {"theirs": theirs, "ours": ours, "copy": copy}
    times = interleave(runs, seconds, twice="ours")
    return {
        "what": what,
        "T": x.shape[0],
        "N": x.shape[1],
        "baseline": baseline,
        "baseline ms": 1e3 * times.median("theirs"),
        "ms": 1e3 * times.median("ours"),
        "baseline / it": times.ratio("theirs", "ours"),
        "noise": times.noise,
        "it / copy of as many bytes": times.ratio("ours", "copy") * 2 / values,
    }


def written_buffers(T: int, N: int, alpha, beta, seconds: float) -> list[dict]:
    """The kernels alone: the filter against the naive loop, the fused synapse against none."""
    x, df = torch.randn(T, N), torch.randn(T, N)
    leaf = x.clone().requires_grad_()
    want = iir(leaf, alpha, beta, backend="torch")[0]
    (want_dx,) = torch.autograd.grad(want, leaf, df)
    rows = []

    def loop():
        torch.autograd.grad(naive(leaf, alpha, beta), leaf, df)

    def learned_loop():
        a, b = (c.clone().requires_grad_() for c in (alpha, beta))
        torch.autograd.grad(naive(leaf, a, b), (leaf, a, b), df)

    for name, baseline, learn in (("fixed", loop, False), ("learned", learned_loop, True)):
        kernel, f, dx = filter_kernels(x, df, alpha, beta, learn)
        kernel()
        if not (torch.equal(f, want.detach()) and torch.equal(dx, want_dx)):
            raise SystemExit(f"T={T}, N={N}: the kernel is not the reference; nothing is timed")
        what = f"filter, coefficients {name}"
        rows.append(row(what, x, "unbind loop", baseline, kernel, 4 + learn, seconds))
    a, b = lags_first(alpha, beta)
    bare, fused = neuron_kernels(x, df), neuron_kernels(x, df, alpha=a, beta=b)
    rows.append(row("LIF with synapse", x, "bare LIF kernel", bare, fused, 5, seconds))
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
    return row("iir, chunks of time", x.detach(), "sequential", theirs, ours, 4, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row")
    parser.add_argument("--out", type=Path, default=None, help="folder for JSON and table")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    alpha, beta = (torch.tensor(c) for c in synapses.dual_exponential(8.0, 2.0))
    command, rows = " ".join(["python bench/iir.py", *sys.argv[1:]]), []
    for T, N in SIZES:
        rows += written_buffers(T, N, alpha, beta, arguments.seconds)
        path = save("iir", command, rows, arguments.out)  # what is there outlives Ctrl-C
    for T, N in LONG:
        rows.append(over_time(T, N, alpha, beta, arguments.seconds))
        path = save("iir", command, rows, arguments.out)
    about = machine()
    head = f"`{command}` on {about['cpu']}, {about['threads']} threads, commit {about['commit']}"
    path.with_suffix(".md").write_text(f"{head}\n\n{markdown(rows)}\n")
    print(f"{markdown(rows)}\n{path}")


if __name__ == "__main__":
    main()
