"""Random steps, drawn from the table of instructions, are the loop in PyTorch."""

from __future__ import annotations

import os

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from snnkernels import fuse
from tests.tools.steps import BACKENDS, EXACT, NEAR, leaves, loop, near, random_step, same

EPS = torch.finfo(torch.float32).eps
MANY = int(os.environ.get("SNN_RANDOM_PROGRAMS", "40"))  # the long run has 200


def _program(table):
    return st.lists(
        st.tuples(st.sampled_from(sorted(table)), *[st.integers(0, 40)] * 3),
        min_size=2,
        max_size=14,
    )


KINDS = {"0-d": (), "channel": (5,), "neuron": (5, 3)}
PLACES = ("plain", "channels_last", "expanded", "transposed")


def _place(x: Tensor, place: str) -> Tensor:
    if place == "channels_last":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if place == "expanded":
        return x[:1].expand_as(x)
    return x.transpose(0, 1).contiguous().transpose(0, 1) if place == "transposed" else x


def _sum_to(gradient: Tensor, value: Tensor) -> Tensor:
    """Terms `[T, 3, 5, 3]` of a gradient, added up for a value of any kind."""
    gradient = gradient.double().sum(0)
    if value.shape == (5,):
        return gradient.sum((0, 2)).float()
    return gradient.sum_to_size(value.shape).float()


def _check_random(operations, kinds, states, steps, place, cut, exact):
    tensors = [f"p{k}" for k in range(len(kinds))]
    step = random_step(operations, states, tensors)
    neuron = fuse(step)
    generator = torch.Generator().manual_seed(len(operations))
    x = _place(torch.randn(steps, 3, 5, 3, generator=generator), place).detach()
    values = {
        n: torch.rand(KINDS[k], generator=generator) for n, k in zip(tensors, kinds, strict=True)
    }
    shaped = {n: v.view(5, 1) if v.shape == (5,) else v for n, v in values.items()}
    results = {}
    for name in ("loop", *BACKENDS):
        x.grad = None
        (leaf,) = leaves(x) if place != "expanded" else [x.clone().requires_grad_()]
        given = leaf if place != "expanded" else leaf[:1].expand_as(leaf)
        learned = {n: v.clone().requires_grad_() for n, v in values.items()}
        if name == "loop":
            if steps == 0:
                continue
            # One value per step and neuron, so that the terms of each gradient are seen.
            each = [shaped[n].expand(steps, 3, 5, 3).clone().requires_grad_() for n in tensors]
            learned = dict(zip(tensors, each, strict=True))

            def with_inputs(x, *rest):
                now = dict(zip(tensors, rest, strict=False))
                return step(x, *rest[len(tensors) :], number=0.9, **now)

            out = loop(with_inputs, (given, *each), [0.25] * states)
        else:
            start = (0.25,) * states
            s, start = neuron(given[:cut], start, number=0.9, backend=name, **learned)
            s2, after = neuron(given[cut:], start, number=0.9, backend=name, **learned)
            out = (torch.cat([s, s2]), *after)
        arriving = [torch.randn(o.shape, generator=torch.Generator().manual_seed(7)) for o in out]
        used = [(o, a) for o, a in zip(out, arriving, strict=True) if o.requires_grad]
        wanted = [leaf, *learned.values()]
        found = [None] * len(wanted)
        if used:
            found = torch.autograd.grad(
                [o for o, _ in used], wanted, [a for _, a in used], allow_unused=True
            )
        found = [
            torch.zeros_like(w) if f is None else f for f, w in zip(found, wanted, strict=True)
        ]
        if name == "loop":
            sizes = [g.abs() for g in found[1:]]
            found[1:] = [_sum_to(g, v) for g, v in zip(found[1:], values.values(), strict=True)]
            sizes = [_sum_to(g, v) for g, v in zip(sizes, values.values(), strict=True)]
        results[name] = out, found
    if not steps:
        assert all(torch.equal(v, torch.full_like(v, 0.25)) for v in results["torch"][0][1:])
        results["loop"] = results["torch"]
    for name in BACKENDS:
        for a, b in zip(results[name][0], results["loop"][0], strict=True):
            assert same(a, b) if exact else near(a, b, 1e-5)
    if not exact:
        return
    dx, *sums = zip(results["torch"][1], results["loop"][1], strict=True)
    assert near(*dx, 1e-5)
    if steps:  # in units of what is added up: the terms may cancel
        for (a, b), size in zip(sums, sizes, strict=True):
            assert ((a - b).abs() <= 8 * EPS * size).all()
    if "cpp" in BACKENDS:
        dx, *sums = zip(results["cpp"][1], results["torch"][1], strict=True)
        assert same(*dx)
        if steps:
            for (a, b), size in zip(sums, sizes, strict=True):
                assert ((a - b).abs() <= 8 * EPS * size).all()


@settings(max_examples=MANY, deadline=None, print_blob=True)
@given(
    operations=_program(EXACT),
    kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=3),
    states=st.integers(1, 3),
    steps=st.sampled_from([0, 1, 2, 16, 17, 35]),
    place=st.sampled_from(PLACES),
    cut=st.integers(0, 20),
)
def test_random_steps_are_the_loop(operations, kinds, states, steps, place, cut):
    _check_random(operations, kinds, states, steps, place, min(cut, steps), exact=True)


@settings(max_examples=MANY // 4, deadline=None)
@given(operations=_program(NEAR), kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=2))
def test_random_steps_with_functions_are_near_the_loop(operations, kinds):
    _check_random(operations, kinds, 1, 5, "plain", 5, exact=False)
