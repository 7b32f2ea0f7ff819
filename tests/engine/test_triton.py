"""The Triton backend in its interpreter: programs of few neurons, and where it is unavailable.

The equations and all options are covered by ``test_backends.py`` with programs so large that one is
often enough; here many of them share the work, in rows and across rows.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import snnkernels as snn
from tests.engine import test_general as general
from tests.tools.cases import NEURONS, Shape, make_inputs
from tests.tools.compare import assert_matches, assert_same, expected, run
from tests.tools.targets import TARGETS

interpreted = pytest.mark.skipif(
    not any(target.interpreted for target in TARGETS), reason="Triton is not in its interpreter"
)

# T is no multiple of the steps loaded ahead, or of those between checkpoints.
MANY = {
    "one_row_aligned": Shape((19, 2, 3, 32)),
    "one_row_odd": Shape((5, 2, 3, 13)),
    "rows_aligned": Shape((34, 3, 64), order=(1, 0, 2)),
    "rows_odd": Shape((19, 3, 61), order=(1, 0, 2)),
    "narrow_rows": Shape((18, 21, 5), order=(1, 0, 2)),
    "time_innermost": Shape((17, 7, 11), order=(1, 2, 0)),
}


@interpreted
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(
    ("name", "ahead"), (("default", 8), ("everything", 2), ("channel_hard", 32))
)
@pytest.mark.parametrize("shape", MANY.values(), ids=MANY)
def test_many_programs(shape, name, ahead, monkeypatch):
    from snnkernels.backends.triton.launch_table import LAUNCHES, Launch, Row

    row = Row(0, Launch(32, 1, ahead), Launch(32, 1))
    monkeypatch.setitem(LAUNCHES, "interpreter", {2: (row,), 4: (row,)})
    dtype = torch.bfloat16 if ahead == 8 else torch.float32
    want = expected(make_inputs(shape, NEURONS[name], dtype, seed=ahead), NEURONS[name])
    assert_matches(run(want.inputs, NEURONS[name], "triton"), want)


@interpreted
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("name", ("rows_odd", "narrow_rows"))
def test_every_option_at_once(name, monkeypatch):
    """The general neuron in several programs, cut into the shortest pieces of steps."""
    from snnkernels.backends.triton.launch_table import LAUNCHES, Launch, Row

    row = Row(0, Launch(128, 4, 4), Launch(128, 4))
    monkeypatch.setitem(LAUNCHES, "interpreter", {2: (row,), 4: (row,)})
    shape = MANY[name]
    x, want, arriving = general.make(shape.sizes, (2, 2), True, 0.8, "trace")
    arriving |= {"h": torch.randn(shape.sizes), "penalty": torch.tensor(300.0)}
    options = {"reset": "trace", "refractory": 2, "record": "h", "regulariser": (0.3, -0.1)}
    x = shape.arrange(x)
    got, got_grads = general.run(x, want, arriving, "triton", **options)
    ref, ref_grads = general.run(x, want, arriving, "torch", **options)
    assert_same(got["s"], ref["s"], "s")
    for name in ("h", "v", "synapse", "trace", "refractory"):
        assert_same(got[name], ref[name], name, strides=False)
    for name in ("x", "v", "synapse", "trace"):
        assert_same(got_grads[name], ref_grads[name], f"d{name}", strides=False)
    for name in ("decay", "v_threshold", "gain", "trace_decay", "alpha", "beta"):
        torch.testing.assert_close(got_grads[name], ref_grads[name], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(got["penalty"], ref["penalty"])


@interpreted
def test_bfloat16_denormals_stay():
    inputs = make_inputs(Shape((4, 300)), NEURONS["soft"], torch.bfloat16, "special")
    assert ((inputs.x != 0) & (inputs.x.abs() < 1e-38)).any()
    want = expected(inputs, NEURONS["soft"])
    assert_matches(run(inputs, NEURONS["soft"], "triton"), want)


@interpreted
@pytest.mark.parametrize("size", (1, 7, 64, (1 << 30) - 1, 1 << 30, (1 << 31) + 5, 1 << 40))
def test_neurons_are_counted_in_64_bits(size):
    """What finds the channel of a neuron, for channels and samples of any size."""
    from tests.tools.triton_probe import wrapped_kernel

    for first in {0, size // 2, size - 1}:
        found = torch.empty(2, 64, dtype=torch.int64)
        wrapped_kernel[(1,)](found, first, size, 64)
        want = [divmod(first + lane, size) for lane in range(64)]
        assert found.T.tolist() == [list(pair) for pair in want], (first, size)


@interpreted
def test_too_many_steps_are_refused_before_any_launch():
    from snnkernels.backends import triton as kernels
    from snnkernels.backends.triton.launch import MAX_STEPS
    from snnkernels.core.call import Call, Outputs
    from snnkernels.core.strides import common_layout

    s, v = torch.full((1, 4), 7.0), torch.empty(4)
    layout = common_layout(s, s)._replace(steps=1 << 31)
    outputs = Outputs(s, torch.empty(0), v=v)
    with pytest.raises(ValueError, match=f"x has {1 << 31} steps.*at most {MAX_STEPS}"):
        kernels.neuron_forward(layout, Call(), torch.zeros(1, 4), outputs)
    assert (s == 7.0).all()


@interpreted
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("detach", (True, False))
@pytest.mark.parametrize("reset", ("hard", "soft", "none", "trace"))
def test_spikes_without_a_gradient_have_no_term(reset, detach):
    """Not 0 times the surrogate: that is NaN where the potential is, and changes signs of zeros."""
    x = torch.randn(19, 2, 21)
    x[3, 0, 4], x[9, 1, 2], x[5:, 1, 7] = float("nan"), float("inf"), 0.0
    arriving = torch.randn(2, 21)
    arriving[1, :8] = -0.0
    options = {"decay": 0.5, "reset": reset, "detach_reset": detach}
    if reset == "trace":
        options["trace_decay"] = 0.7
    for name in ("v", "trace") if reset == "trace" and not detach else ("v",):
        found = []
        for backend in ("triton", "torch"):
            leaf = x.clone().requires_grad_()
            _, state = snn.lif(leaf, **options, backend=backend)
            part = getattr(state, name)
            found += torch.autograd.grad(part, leaf, arriving, materialize_grads=True)
        assert_same(*found, f"dx from {name}")


def test_launches_cover_every_call():
    pytest.importorskip("triton")
    from snnkernels.backends.triton.launch_table import (
        CHECKPOINT_EVERY,
        LAUNCHES,
        LIMITS,
        launches_for,
    )

    for kind in (*LAUNCHES, "sm_86"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for neurons in (1, 1 << 14, 1 << 17, 1 << 40):
                row = launches_for(kind, neurons, dtype)
                assert row.backward.ahead == CHECKPOINT_EVERY
                for kernel, limits in LIMITS.items():
                    launch = getattr(row, kernel)
                    assert kind == "interpreter" or launch.within(limits["plain"], True) == launch
                    fits = [
                        launch.within(each, a) for each in limits.values() for a in (True, False)
                    ]
                    for number in (n for fit in fits for n in fit):
                        assert number > 0 and number & (number - 1) == 0, (kind, launch)


def test_says_why_not_without_interpreter():
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = (
        "import sys, torch, snnkernels as snn\n"
        "assert 'snnkernels.backends.triton' not in sys.modules\n"
        "try: snn.lif(torch.zeros(2, 3), backend='triton')\n"
        "except RuntimeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "TRITON_INTERPRET=1" in done.stdout
