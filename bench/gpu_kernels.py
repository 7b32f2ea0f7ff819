"""What a GPU run (``gpu.py``) times: copies, the neuron's kernels, filters, the loops and peers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache, partial

import peers
import torch
from gpu_run import Run

import snnkernels
from snnkernels.backends import load
from snnkernels.core.call import Arriving, Call, Coefficient, Gradients
from snnkernels.core.strides import common_layout
from snnkernels.nn import synapses
from snnkernels.ops._neuron import empty_outputs
from tests.tools.compare import assert_same

DECAY = 0.9
STEPS = (4, 8, 16, 64, 256, 1024, 4096)
NEURONS = tuple(1 << k for k in (12, 14, 16, 18, 20, 22))
# Where the loops and libraries are measured: their time, not ours, sets the limit.
BASELINES = ((16, 1 << 20), (50, 1 << 20), (250, 1 << 16), (1000, 1 << 14))
COMPILED = ((16, 1 << 20),)  # torch.compile unrolls the loop: many steps take minutes to compile
HEADLINE = (50, 1 << 20)
BITS = ((16, 1 << 20), (300, 4096), (7, 100_003))  # each leads to another kind of kernel
FILTERS = ((64, 1 << 20), (1000, 1 << 14), (100_000, 64))
SETS_BYTES = 256 << 20  # what the sets of buffers of one graph cover, beyond every cache


def copy(run: Run) -> Iterator[dict]:
    """Bytes read plus bytes written by a copy, per second."""

    def measure(megabytes: int) -> dict:
        count = megabytes << 18
        pairs = [torch.randn(2, count, device=run.device) for _ in range(max(1, 512 // megabytes))]
        ms = run.kernel_ms({"copy": [lambda p=p: p[1].copy_(p[0]) for p in pairs]})
        return {"megabytes": megabytes, "gb_s": 8 * count / ms["copy"] / 1e6}

    for megabytes in (1, 1) if run.rehearse else (64, 256, 1024, 4096):
        yield from run.attempt(f"copy of {megabytes} MB", partial(measure, megabytes))


def kernel_calls(run: Run, backend: str, steps: int, neurons: int, dtype) -> tuple[list, list]:
    """Calls of a backend's forward and backward kernel, over several sets of buffers."""
    module, every = load(backend), load(backend).CHECKPOINT_EVERY
    p, q = snnkernels.Triangle().constants()
    call = Call(
        decay=Coefficient(number=DECAY),
        v_threshold=Coefficient(number=1.0),
        checkpoint_every=every,
        surrogate_p=p,
        surrogate_q=q,
    )
    forward, backward = [], []
    size = 3 * steps * neurons * dtype.itemsize
    for _ in range(1 if run.rehearse else max(1, min(256, SETS_BYTES // size))):
        x, ds = run.tensors(2, steps, neurons, dtype)
        dx, outputs = torch.empty_like(x), empty_outputs(x, call)

        def one_forward(x=x, outputs=outputs):
            module.neuron_forward(common_layout(outputs.s, x), call, x, outputs)

        def one_backward(x=x, ds=ds, dx=dx, kept=outputs.checkpoints):
            layout = common_layout(dx, x, ds, None)
            module.neuron_backward(layout, call, x, kept, Arriving(s=ds), Gradients(x=dx))

        forward.append(one_forward)
        backward.append(one_backward)
    return forward, backward


def differs(run: Run, backend: str, steps: int, neurons: int, dtype) -> str | None:
    """Why a backend must not be timed: what differs from eager PyTorch, or None."""
    (x, ds), results = run.tensors(2, steps, min(neurons, 1 << 20), dtype), []
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


def sweep(run: Run, backend: str, ceiling: float) -> Iterator[dict]:
    """Forward and backward of a backend, large sizes first."""
    unequal = lru_cache(partial(differs, run, backend))

    def measure(steps: int, neurons: int, dtype: torch.dtype) -> dict:
        why = unequal(130 if steps > 64 else min(steps, 40), neurons, dtype)
        if why:
            raise AssertionError(why)
        forward, backward = kernel_calls(run, backend, steps, neurons, dtype)
        e, n = dtype.itemsize, steps * neurons
        extra = 4 * ((steps - 1) // load(backend).CHECKPOINT_EVERY) / steps
        row = {"backend": backend, "dtype": str(dtype)[6:], "T": steps, "N": neurons}
        ms = run.kernel_ms({"fwd": forward, "bwd": backward})
        for name, floor in (("fwd", 2 * e), ("bwd", 3 * e)):
            row[f"{name}_us"] = ms[name] * 1e3
            row[f"{name}_gb_s"] = (floor + extra) * n / ms[name] / 1e6
            row[f"{name}_of_copy"] = row[f"{name}_gb_s"] / ceiling if ceiling else None
        return row

    pairs = sorted(run.sizes(itertools.product(STEPS, NEURONS)), key=lambda p: -p[1])
    for (steps, neurons), dtype in itertools.product(pairs, (torch.float32, torch.bfloat16)):
        what = f"sweep: {backend} {dtype} at {steps} x {neurons}"
        yield from run.attempt(what, partial(measure, steps, neurons, dtype))


def bits(run: Run) -> Iterator[dict]:
    """Whether each backend gives the spikes, states and gradients of eager PyTorch."""

    def measure(backend: str, steps: int, neurons: int, dtype: torch.dtype) -> dict:
        why = differs(run, backend, steps, neurons, dtype)
        row = {"backend": backend, "dtype": str(dtype)[6:], "T": steps, "N": neurons}
        way = getattr(load(backend), "way", None)  # to the CUDA kernels
        found = {"way": way and way(), "equal": why is None, "first difference": why}
        return row | found

    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for dtype, size, backend in itertools.product(dtypes, run.sizes(BITS), run.backends):
        what = f"bits: {backend} {dtype} at {size[0]} x {size[1]}"
        yield from run.attempt(what, partial(measure, backend, *size, dtype))


def _lifs(run: Run) -> dict:
    """Our neuron on each backend, ours first, and the loop of PyTorch."""
    return {
        name: (lambda x, b=name: snnkernels.lif(x, decay=DECAY, backend=b)[0])
        for name in (*run.backends, "torch")
    }


def _side_by_side(run: Run, functions: dict, steps: int, neurons: int, dtype) -> Iterator[dict]:
    """Forward + backward of functions as a user calls them, in turns: a row for each."""
    what = f"{dtype} at {steps} x {neurons}"

    def measure() -> list[dict]:
        x, ds = run.tensors(2, steps, neurons, dtype)

        def both(function) -> None:
            leaf = x.detach().requires_grad_()
            s = function(leaf)
            torch.autograd.grad(s, leaf, ds.to(s.dtype))

        calls = {name: partial(both, function) for name, function in functions.items()}
        calls = run.that_run(what, calls)
        first = next(iter(calls))
        found = run.times(calls, rounds=3, twice=first)
        row = {"dtype": str(dtype)[6:], "T": steps, "N": neurons}
        return [
            {"who": name, **row, "both_ms": 1e3 * found.median(name)}
            | {f"times as long as {first}": found.ratio(name, first), "noise": found.noise}
            for name in calls
        ]

    for rows in run.attempt(what, measure):
        yield from rows


def headline(run: Run) -> Iterator[dict]:
    """Ours against the loop, at one size."""
    for size in run.sizes([HEADLINE]):
        yield from _side_by_side(run, _lifs(run), *size, torch.float32)


def baselines(run: Run) -> Iterator[dict]:
    """Ours, the loop, the peers, torch.compile of the loop.

    The last takes as long as the compiler likes: it comes last.
    """
    there, missing = peers.installed(DECAY)
    for name, why in missing.items():
        run.leave_out(f"{name}: {why}")
    lifs = _lifs(run)
    ours = next(iter(lifs))
    for size, dtype in itertools.product(run.sizes(BASELINES), (torch.float32, torch.bfloat16)):
        yield from _side_by_side(run, lifs | there, *size, dtype)
    compiled = {ours: lifs[ours], "torch.compile": torch.compile(lifs["torch"])}
    for size in run.sizes(COMPILED):
        yield from _side_by_side(run, compiled, *size, torch.float32)


def filters(run: Run) -> Iterator[dict]:
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

    def measure(what: str, backend: str, steps: int, neurons: int) -> dict:
        x, dy = run.tensors(2, steps, neurons, torch.float32)

        def both(function) -> None:
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(function(leaf, backend), leaf, dy)

        calls = {name: partial(both, function) for name, function in functions.items()}
        found = run.times(run.that_run(what, calls), rounds=3)
        return {
            f"{name}, ms": 1e3 * found.median(name) if name in found.seconds else None
            for name in functions
        }

    for (steps, neurons), backend in itertools.product(
        run.sizes(FILTERS), (*run.backends, "torch")
    ):
        if backend == "torch" and steps > 1000:
            run.leave_out(f"filters: backend torch at {steps} steps takes too long")
            continue
        what = f"filters: {backend} at {steps} x {neurons}"
        for row in run.attempt(what, partial(measure, what, backend, steps, neurons)):
            yield {"backend": backend, "T": steps, "N": neurons} | row


def convolutions(run: Run) -> Iterator[dict]:
    """What cuDNN reaches on 3 x 3 convolutions of the papers' widths, in bf16, channels_last."""
    batch, size = (2, 8) if run.rehearse else (2048, 32)

    def measure(channels: int) -> dict:
        conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(
            run.device, torch.bfloat16, memory_format=torch.channels_last
        )
        x = torch.randn(batch, channels, size, size, device=run.device, dtype=torch.bfloat16)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        dy = torch.randn_like(conv(x))
        operations = 2 * 9 * channels * channels * batch * size * size
        found = run.times(
            {
                "forward": lambda: conv(x),
                "both": lambda: torch.autograd.grad(conv(x), (x, conv.weight), dy),
            }
        )
        return {
            "channels": channels,
            "fwd_tflop_s": operations / found.median("forward") / 1e12,
            "fwd_bwd_tflop_s": 3 * operations / found.median("both") / 1e12,
        }

    for channels in (32, 64, 128):
        yield from run.attempt(f"convolution of {channels} channels", partial(measure, channels))
