"""The filter of `snnkernels.iir`."""

from __future__ import annotations

import random

import torch
from torch import Tensor

import snnkernels
from snnkernels.backends import max_order
from tests.tools.ptx.families.base import Case, Family, differences
from tests.tools.ptx.families.inputs import (
    DTYPES,
    LAYOUTS,
    OFFSETS,
    arrange,
    draw,
    expanded,
    sizes,
)


class Iir(Family):
    """Filters of all orders, learnt or not."""

    name = "iir"

    def draw(self, rng: random.Random, backend: str) -> Case:
        def order() -> int:
            return rng.randint(0, max_order(backend) if rng.random() < 0.5 else 2)

        return {
            "dtype": rng.choice(DTYPES),
            "shape": sizes(rng, 5000),
            "layout": rng.choice(LAYOUTS),
            "offset": rng.choice(OFFSETS),
            "values": rng.choice(("normal",) * 4 + ("special",)),
            "orders": (order(), order()),
            "per_channel": rng.random() < 0.4,
            "start": rng.random() < 0.5,
            "learn": rng.random() < 0.5,
            "arriving": [n for n, share in (("f", 0.9), ("state", 0.5)) if rng.random() < share],
            "need_x": rng.random() < 0.9,
            "df": rng.choice(("dense", "expand0", "one_value")),
        }

    def check(self, case: Case, rng: random.Random, backend: str, ulps: int) -> list[str]:
        (P, Q), shape, kind = case["orders"], case["shape"], case["values"]
        dtype = getattr(torch, case["dtype"])
        per = (shape[2],) if case["per_channel"] and len(shape) > 2 else ()
        x = arrange(draw(shape, rng, kind).to(dtype), case["layout"], case["offset"])
        leaves = {
            "x": x,
            "alpha": (torch.rand(*per, P) - 0.5) * 0.9 / max(P, 1),
            "beta": torch.rand(*per, Q + 1) - 0.3,
        }
        if case["start"] and P + Q:
            leaves["state"] = draw((P + Q, *shape[1:]), rng, kind)
        arriving = {
            "f": expanded(draw(shape, rng, kind).to(dtype), case["df"]),
            "state": draw((P + Q, *shape[1:]), rng, kind),
        }
        got, want = (_run(case, b, leaves, arriving) for b in (backend, "torch"))
        return differences(got, want, exact=True, values=kind)


def _run(case: Case, backend: str, leaves: dict, arriving: dict) -> dict[str, Tensor | None]:
    needs = {"x": case["need_x"], "alpha": case["learn"], "beta": case["learn"], "state": True}
    given = {name: t.detach().requires_grad_(needs[name]) for name, t in leaves.items()}
    f, state = snnkernels.iir(**given, sequential=True, backend=backend)
    out = {"f": f, "state": state}
    found = {name: t.detach() for name, t in out.items()}
    wanted = {name: t for name, t in given.items() if t.requires_grad}
    ends = [n for n in case["arriving"] if out[n].requires_grad and out[n].numel()]
    if ends and wanted:
        grads = torch.autograd.grad(
            [out[n] for n in ends],
            list(wanted.values()),
            [arriving[n] for n in ends],
            allow_unused=True,
        )
        found |= {f"d{name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return found
