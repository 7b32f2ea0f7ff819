"""Times the neuron op over the benchmark cases, for `make bench-compare`.

No run of all tests collects this file, since its name does not begin with test_.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import snnkernels
from tests.tools.cases import BENCH_CASES, BenchCase, Inputs
from tests.tools.compare import assert_same

THREADS = torch.get_num_threads()  # before a fixture of all tests makes them one


@pytest.fixture(autouse=True)
def _all_threads(_seed_and_threads):
    torch.set_num_threads(THREADS)


@pytest.fixture(
    params=BENCH_CASES, ids=lambda c: f"T{c.steps}-N{c.neurons}-{str(c.dtype).split('.')[1]}"
)
def case(request) -> BenchCase:
    """One of the cases; a backend that does not equal the reference in it is not timed."""
    small = request.param._replace(neurons=min(request.param.neurons, 4096))
    inputs = small.inputs()
    for what, ours, reference in zip(
        ("s", "dx"), *(both(small, inputs, backend) for backend in ("cpp", "torch")), strict=True
    ):
        assert_same(ours, reference, what)
    return request.param


def forward(case: BenchCase, inputs: Inputs, backend: str = "cpp") -> Tensor:
    """Spikes."""
    return snnkernels.lif(
        inputs.x,
        decay=inputs.decay,
        v_threshold=inputs.v_threshold,
        backend=backend,
        **case.neuron.options(),
    )[0]


def both(case: BenchCase, inputs: Inputs, backend: str = "cpp") -> tuple[Tensor, Tensor]:
    """Spikes and the gradient on x, with all that autograd does."""
    x = inputs.x.detach().requires_grad_()
    s = forward(case, inputs._replace(x=x), backend)
    return s.detach(), torch.autograd.grad(s, x, inputs.ds)[0]


@pytest.mark.parametrize("run", (forward, both), ids=("forward", "forward_and_backward"))
def test_lif(benchmark, case, run):
    benchmark(run, case, case.inputs())
