"""Times the filter and the fused synapse on the CPU: ``python bench/iir.py``.

Kernels run on written buffers, in turns with the naive loop over ``x.unbind(0)`` (forward and
backward by autograd) or with the bare LIF kernel. Results are compared with the reference first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import interleave, markdown, median_ms, ratio, save  # noqa: E402
from snnkernels import iir, synapses  # noqa: E402
from snnkernels.backends import cpp  # noqa: E402
from snnkernels.filter_ops import lags_first  # noqa: E402
from snnkernels.layout import common_layout, empty_rows  # noqa: E402
from snnkernels.neuron_op import General, Numbers, Options  # noqa: E402

SIZES = ((64, 131_072), (10_000, 64))


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
    P, Q = alpha.shape[0], beta.shape[0] - 1
    every = cpp.CHECKPOINT_EVERY if learn else 0
    kept = (x.shape[0] - 1) // every if learn else 0
    checkpoints, state = empty_rows(f, kept, P).zero_(), empty_rows(f, P + Q).zero_()
    gradients = (torch.zeros_like(alpha), torch.zeros_like(beta)) if learn else (None, None)

    def run():
        cpp.iir_forward(
            common_layout(f, x),
            x,
            None,
            alpha,
            beta,
            f=f,
            state_out=state,
            checkpoint_every=every,
            checkpoints=checkpoints,
        )
        cpp.iir_backward(
            common_layout(dx, df, x if learn else None),
            df,
            None,
            alpha,
            beta,
            x if learn else None,
            None,
            every,
            checkpoints,
            dx=dx,
            dstate0=None,
            dalpha=gradients[0],
            dbeta=gradients[1],
        )

    return run, f, dx


def neuron_kernels(x, ds, general):
    """Forward and backward of a hard-reset neuron, with a synapse or without."""
    s, dx = torch.zeros_like(x), torch.zeros_like(x)
    options = Options(checkpoint_every=cpp.CHECKPOINT_EVERY)
    numbers = Numbers(0.5, 1.0, 0.0, 1.0, 1.0)
    kept = (x.shape[0] - 1) // cpp.CHECKPOINT_EVERY
    checkpoints = empty_rows(s, kept, 1 + general.outputs).zero_()
    state = empty_rows(s, 1 + general.synapse_rows).zero_()
    call = (options, numbers, x, None, None, None, None)
    more = {} if general.beta is None else {"general": general}
    outputs = {"dx": dx, "dv0": None, "ddecay": None, "dv_threshold": None}

    def run():
        forward = {"s": s, "state_out": state, "h": None, "checkpoints": checkpoints}
        cpp.neuron_forward(common_layout(s, x), *call, **forward, **more)
        layout = common_layout(dx, x, ds, None)
        cpp.neuron_backward(layout, *call, checkpoints, ds, None, None, **outputs, **more)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each size")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    alpha, beta = (torch.tensor(c) for c in synapses.dual_exponential(8.0, 2.0))
    rows = []
    for T, N in SIZES:
        x, df = torch.randn(T, N), torch.randn(T, N)
        leaf = x.clone().requires_grad_()
        want = iir(leaf, alpha, beta, backend="torch")[0]
        (want_dx,) = torch.autograd.grad(want, leaf, df)

        def loop(leaf=leaf, df=df):
            torch.autograd.grad(naive(leaf, alpha, beta), leaf, df)

        def learned_loop(leaf=leaf, df=df):
            a, b = (c.clone().requires_grad_() for c in (alpha, beta))
            torch.autograd.grad(naive(leaf, a, b), (leaf, a, b), df)

        for name, baseline, learn in (("fixed", loop, False), ("learned", learned_loop, True)):
            kernel, f, dx = filter_kernels(x, df, alpha, beta, learn)
            kernel()
            if not (torch.equal(f, want.detach()) and torch.equal(dx, want_dx)):
                raise SystemExit(f"T={T}, N={N}: the kernel is not the reference; nothing is timed")
            runs = interleave({"naive": baseline, "kernel": kernel}, arguments.seconds)
            rows.append(
                {
                    "what": f"filter, coefficients {name}",
                    "T": T,
                    "N": N,
                    "baseline": "unbind loop",
                    "baseline_ms": median_ms(runs["naive"]),
                    "kernel_ms": median_ms(runs["kernel"]),
                    "baseline / kernel": ratio(runs["naive"], runs["kernel"]),
                }
            )
        ds = torch.randn(T, N)
        a, b = lags_first(alpha, beta)
        functions = {
            "bare": neuron_kernels(x, ds, General()),
            "fused": neuron_kernels(x, ds, General(alpha=a, beta=b)),
        }
        runs = interleave(functions, arguments.seconds)
        rows.append(
            {
                "what": "LIF with synapse",
                "T": T,
                "N": N,
                "baseline": "bare LIF kernel",
                "baseline_ms": median_ms(runs["bare"]),
                "kernel_ms": median_ms(runs["fused"]),
                "baseline / kernel": ratio(runs["bare"], runs["fused"]),
            }
        )
    print(markdown(rows))
    print(save("iir", "python bench/iir.py", rows))


if __name__ == "__main__":
    main()
