"""What a GPU run (``gpu.py``) times: copies, the neuron's kernels, filters, the loops and peers."""

from __future__ import annotations

import peers
import torch
from gpu_run import Run

import snnkernels
from snnkernels import synapses
from snnkernels.backends import load
from snnkernels.layout import common_layout, empty_rows
from snnkernels.neuron_op import Numbers, Options
from tests.compare import assert_same

DECAY = 0.9
STEPS = (4, 8, 16, 64, 256, 1024, 4096)
NEURONS = tuple(1 << k for k in (12, 14, 16, 18, 20, 22))
# Where the loops and libraries are measured: their time, not ours, sets the limit.
BASELINES = ((16, 1 << 20), (50, 1 << 20), (250, 1 << 16), (1000, 1 << 14))
COMPILED = ((16, 1 << 20),)  # torch.compile unrolls the loop: many steps take minutes to compile
FILTERS = ((64, 1 << 20), (1000, 1 << 14), (100_000, 64))
SETS_BYTES = 256 << 20  # what the sets of buffers of one graph cover, beyond every cache


def copy_ceiling(run: Run) -> list[dict]:
    """Bytes read plus bytes written by a copy, per second."""
    rows = []
    for megabytes in (1, 1) if run.rehearse else (64, 256, 1024, 4096):
        count = megabytes << 18
        pairs = [torch.randn(2, count, device=run.device) for _ in range(max(1, 512 // megabytes))]
        ms = run.milliseconds([lambda p=p: p[1].copy_(p[0]) for p in pairs])
        rows.append({"megabytes": megabytes, "gb_s": 8 * count / ms / 1e6})
    return rows


def kernel_calls(run: Run, backend: str, steps: int, neurons: int, dtype) -> tuple[list, list]:
    """Calls of a backend's forward and backward kernel, over several sets of buffers."""
    module, every = load(backend), load(backend).CHECKPOINT_EVERY
    options = Options(checkpoint_every=every)
    numbers = Numbers(DECAY, 1.0, 0.0, *snnkernels.Triangle().constants())
    forward, backward = [], []
    size = 3 * steps * neurons * dtype.itemsize
    for _ in range(1 if run.rehearse else max(1, min(256, SETS_BYTES // size))):
        x, ds = run.tensors(2, steps, neurons, dtype)
        s, dx, state = torch.empty_like(x), torch.empty_like(x), empty_rows(x, 1)
        kept = (steps - 1) // every
        checkpoints = empty_rows(x, kept, 1) if kept else x.new_empty(0, dtype=torch.float32)
        call = (options, numbers, x, None, None, None, None)

        def one_forward(x=x, s=s, state=state, checkpoints=checkpoints, call=call):
            layout = common_layout(s, x)
            module.neuron_forward(
                layout, *call, s=s, state_out=state, h=None, checkpoints=checkpoints
            )

        def one_backward(x=x, ds=ds, dx=dx, checkpoints=checkpoints, call=call):
            layout = common_layout(dx, x, ds, None)
            nothing = {"dv0": None, "ddecay": None, "dv_threshold": None}
            module.neuron_backward(layout, *call, checkpoints, ds, None, None, dx=dx, **nothing)

        forward.append(one_forward)
        backward.append(one_backward)
    return forward, backward


def differs(run: Run, backend: str, steps: int, neurons: int, dtype) -> str | None:
    """Why a backend must not be timed: what differs from eager PyTorch, or None."""
    (x, ds), results = run.tensors(2, steps, min(neurons, 1 << 16), dtype), []
    for name in (backend, "torch"):
        leaf = x.detach().requires_grad_()
        s, state = snnkernels.lif(leaf, decay=DECAY, backend=name)
        results.append((s, state.v, *torch.autograd.grad(s, leaf, ds)))
    try:
        for what, ours, theirs in zip(("s", "v", "dx"), *results, strict=True):
            assert_same(ours.detach(), theirs.detach(), what)
    except AssertionError as error:
        return str(error)
    return None


def sweep(run: Run, ceiling: float) -> list[dict]:
    """Forward and backward of every backend, large sizes first."""
    rows = []
    pairs = sorted(run.sizes([(t, n) for t in STEPS for n in NEURONS]), key=lambda p: -p[1])
    unequal: dict[tuple, str | None] = {}
    for steps, neurons in pairs:
        for dtype in (torch.float32, torch.bfloat16):
            for backend in run.backends:
                if run.remaining() < 120 and not run.rehearse:
                    run.leave_out(f"sweep: {backend} {dtype} at {steps} x {neurons}: out of time")
                    continue
                key = (backend, dtype, steps > 64, neurons)
                if key not in unequal:
                    unequal[key] = differs(run, backend, min(steps, 130), neurons, dtype)
                if unequal[key]:
                    run.leave_out(
                        f"sweep: {backend} {dtype} at {steps} x {neurons}: {unequal[key]}"
                    )
                    continue
                forward, backward = kernel_calls(run, backend, steps, neurons, dtype)
                e, n = dtype.itemsize, steps * neurons
                extra = 4 * ((steps - 1) // load(backend).CHECKPOINT_EVERY) / steps
                row = {"backend": backend, "dtype": str(dtype)[6:], "T": steps, "N": neurons}
                for name, calls, floor in (("fwd", forward, 2 * e), ("bwd", backward, 3 * e)):
                    ms = run.milliseconds(calls)
                    row[f"{name}_us"] = ms * 1e3
                    row[f"{name}_gb_s"] = (floor + extra) * n / ms / 1e6
                    row[f"{name}_of_copy"] = row[f"{name}_gb_s"] / ceiling
                rows.append(row)
    return rows


def baselines(run: Run) -> list[dict]:
    """Forward + backward as a user calls it: ours, the loop, torch.compile of it, the peers."""
    rows = []
    there, missing = peers.installed(DECAY)
    for name, why in missing.items():
        run.leave_out(f"{name}: {why}")
    for steps, neurons in run.sizes(BASELINES):
        for dtype in (torch.float32, torch.bfloat16):
            runs = {
                name: (lambda x, b=name: snnkernels.lif(x, decay=DECAY, backend=b)[0])
                for name in (*run.backends, "torch")
            }
            if (steps, neurons) in run.sizes(COMPILED) and dtype == torch.float32:
                runs["torch.compile"] = torch.compile(runs["torch"])
            runs |= there
            x, ds = run.tensors(2, steps, neurons, dtype)
            for name, function in runs.items():
                if run.remaining() < 45 and not run.rehearse:
                    run.leave_out(f"baseline {name} {dtype} at {steps} x {neurons}: out of time")
                    continue

                def both(function=function, x=x, ds=ds):
                    leaf = x.detach().requires_grad_()
                    s = function(leaf)
                    torch.autograd.grad(s, leaf, ds.to(s.dtype))

                try:
                    ms = run.timed(both, least=3)
                except Exception as error:  # a peer of another version: say so and go on
                    run.leave_out(f"baseline {name} {dtype} at {steps} x {neurons}: {error!r}")
                    continue
                row = {"who": name, "dtype": str(dtype)[6:], "T": steps, "N": neurons}
                rows.append(row | {"both_ms": ms})
    return rows


def filters(run: Run) -> list[dict]:
    """Forward + backward of a second-order filter, alone and as the synapse of a neuron."""
    coefficients = synapses.dual_exponential(8.0, 2.0)
    functions = {
        "iir": lambda x, b: snnkernels.iir(x, *coefficients, backend=b)[0],
        "iir, sequential": lambda x, b: snnkernels.iir(
            x, *coefficients, backend=b, sequential=True
        )[0],
        "lif": lambda x, b: snnkernels.lif(x, decay=DECAY, backend=b)[0],
        "lif with synapse": lambda x, b: snnkernels.lif(
            x, decay=DECAY, synapse=coefficients, backend=b
        )[0],
    }
    rows = []
    for steps, neurons in run.sizes(FILTERS):
        x, dy = run.tensors(2, steps, neurons, torch.float32)
        for backend in (*run.backends, "torch"):
            if backend == "torch" and steps > 1000:
                run.leave_out(f"filters: backend torch at {steps} steps takes too long")
                continue
            row = {"backend": backend, "T": steps, "N": neurons}
            for name, function in functions.items():
                row[f"{name}, ms"] = None
                if run.remaining() < 45 and not run.rehearse:
                    run.leave_out(f"filters: {name} {backend} at {steps} x {neurons}: out of time")
                    continue

                def both(function=function, backend=backend, x=x, dy=dy):
                    leaf = x.detach().requires_grad_()
                    torch.autograd.grad(function(leaf, backend), leaf, dy)

                row[f"{name}, ms"] = run.timed(both, least=3)
            rows.append(row)
    return rows


def convolutions(run: Run) -> list[dict]:
    """What cuDNN reaches on 3 x 3 convolutions of the papers' widths, in bf16, channels_last."""
    rows = []
    batch, size = (2, 8) if run.rehearse else (2048, 32)
    for channels in (32, 64, 128):
        conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(
            run.device, torch.bfloat16, memory_format=torch.channels_last
        )
        x = torch.randn(batch, channels, size, size, device=run.device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        y = conv(x)
        dy = torch.randn_like(y)
        operations = 2 * 9 * channels * channels * batch * size * size
        forward = run.timed(lambda conv=conv, x=x: conv(x))
        both = run.timed(
            lambda conv=conv, x=x, dy=dy: torch.autograd.grad(conv(x), (x, conv.weight), dy)
        )
        rows.append(
            {
                "channels": channels,
                "fwd_tflop_s": operations / forward / 1e9,
                "fwd_bwd_tflop_s": 3 * operations / both / 1e9,
            }
        )
    return rows
