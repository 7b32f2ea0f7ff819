"""The kernels on CPU in threads whose stacks are small."""

from __future__ import annotations

import os
import subprocess
import sys

CALLS = """
import torch
import snnkernels

torch.set_num_threads(4)
x = torch.randn(40, 2, 4, 3000, requires_grad=True)
values = [torch.full((4,), value, requires_grad=True) for value in (0.9, 1.0, 0.5, 0.7)]
decay, v_threshold, gain, trace_decay = values
for reset in ("hard", "trace"):
    s, state, h, penalty = snnkernels.lif(
        x, decay=decay, v_threshold=v_threshold, gain=gain, reset=reset, refractory=2,
        trace_decay=trace_decay if reset == "trace" else None, record="h",
        regulariser=(0.1, 0.0), synapse=([0.1] * 2, [0.2] * 3), backend="cpp",
    )
    torch.autograd.backward([s.sum() + h.sum() + penalty.sum() + state.v.sum()])
alpha, beta = torch.full((64,), 0.01).requires_grad_(), torch.ones(65, requires_grad=True)
f, state = snnkernels.iir(x, alpha, beta, backend="cpp")
(f.sum() + state.sum()).backward()
print("done")
"""


def test_small_stacks_suffice():
    environment = {**os.environ, "OMP_STACKSIZE": "256k"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and done.stdout == "done\n", (done.returncode, done.stderr)
