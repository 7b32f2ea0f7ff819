"""Batch norm through time in Triton; its reference is float64, as its sums may be fused."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from snnkernels.backends import load
from tests.tools.ptx.families.base import Case, Family
from tests.tools.ptx.families.inputs import DTYPES

EPS = 1e-4  # of the norm


class Bntt(Family):
    """Both passes, on images whose channels are innermost in memory."""

    name, backends, may_fuse = "bntt", ("triton",), True

    def draw(self, rng: random.Random, backend: str) -> Case:
        return self.again(
            {
                "dtype": rng.choice(DTYPES),
                "channels": rng.choice((1, 3, 4, 8, 16, 20, 32, 64, 65, 72, 128)),
                "keep": rng.random() < 0.4,
                "offset": rng.choice((0, 0, 0, 1, 8)),
                "gap": rng.choice((0, 0, 8)),
                "mean": rng.choice((0.0, 0.0, 30.0)),
            },
            rng,
        )

    def again(self, case: Case, rng: random.Random) -> Case:
        images = rng.randint(1, 3), rng.randint(1, 9), rng.randint(2, 9)
        return case | {"steps": rng.choice((1, 2, 3, 5)), "images": images}

    def check(self, case: Case, rng: random.Random, backend: str, ulps: int) -> list[str]:
        kernels = load(backend)
        steps, channels, dtype = case["steps"], case["channels"], getattr(torch, case["dtype"])
        count, height, width = case["images"]
        shape = (steps, count, channels, height, width)
        x = _place(torch.randn(shape) * 1.3 + case["mean"], case)
        dout = _place(torch.randn(shape), case)
        weight = torch.rand(steps, channels) + 0.5
        out, dx = (_place(torch.empty(shape), case | {"offset": 0, "gap": 0}) for _ in range(2))
        mean, rstd, dweight = torch.empty(3, steps, channels)
        if not kernels.takes_bntt(x):
            return ["a sequence that the kernels do not take"]
        kernels.bntt_forward(x, weight, EPS, out=out, mean=mean, rstd=rstd)
        kept = out if case["keep"] else x
        kernels.bntt_backward(
            dout, kept, None if case["keep"] else mean, rstd, weight, dx=dx, dweight=dweight
        )
        exact = _exact(x, weight, dout, (out, mean, rstd) if case["keep"] else (None, mean, rstd))
        eps, size = torch.finfo(dtype).eps, 1 + abs(case["mean"])
        allowed = {"mean": 4e-7 * size, "rstd": 2e-6 * size, "out": eps + 4e-6 * size}
        allowed |= {"dweight": 2e-5 * size, "dx": eps + 2e-5 * size}
        got = {"mean": mean, "rstd": rstd, "out": out, "dweight": dweight, "dx": dx}
        found = []
        for name, most in allowed.items():
            largest = max(exact[name].abs().max().item(), 1e-6)
            error = (got[name].double() - exact[name]).abs().max().item() / largest
            if not error <= most:
                found.append(f"{name}: off by {error:.3g} of the largest, allowed {most:.3g}")
        return found


def _place(values: Tensor, case: Case) -> Tensor:
    """In memory with channels innermost, and with a gap between the steps."""
    steps, count, channels, height, width = values.shape
    step = count * height * width * channels + case["gap"]
    memory = torch.zeros(steps * step + case["offset"], dtype=getattr(torch, case["dtype"]))
    strides = (step, height * width * channels, 1, width * channels, channels)
    return memory[case["offset"] :].as_strided(values.shape, strides).copy_(values)


def _exact(x: Tensor, weight: Tensor, dout: Tensor, kept: tuple) -> dict[str, Tensor]:
    """Both passes in float64; the second one from what the first one kept, rounded as it is."""

    def each(t: Tensor) -> Tensor:
        return t.double()[:, None, :, None, None]

    dims = (1, 3, 4)
    mean, variance = x.double().mean(dims), x.double().var(dims, unbiased=False)
    rstd = (variance + EPS).rsqrt()
    out, kept_mean, kept_rstd = kept
    if out is None:
        normal = (x.double() - each(kept_mean)) * each(kept_rstd)
    else:
        normal = out.double() / each(weight)
    gradient = dout.double()
    along = (gradient * normal).mean(dims)
    return {
        "mean": mean,
        "rstd": rstd,
        "out": (x.double() - each(mean)) * each(rstd) * each(weight),
        "dweight": along * (x[0].numel() // x.shape[2]),
        "dx": each(weight)
        * each(kept_rstd)
        * (gradient - each(gradient.mean(dims)) - normal * each(along)),
    }
