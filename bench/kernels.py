"""Time the neuron kernels: against the memory's speed, the naive loop, and other libraries.

    python bench/kernels.py            # all cases of tests/tools/cases.py
    python bench/kernels.py --quick    # those up to 131 k neurons

Per case: the kernels alone on buffers that were written before, beside a copy (read one, write
one) and a triad (read two, write one) of the same size by the same stores; then the op as a user
calls it, allocations and autograd included, beside the loop over ``x.unbind(0)``, the loop over
``x[t]`` (its backward pass is quadratic in T), ``torch.compile`` of the loop, and the installed
peers. All of one case run in turns; figures are medians, ratios are medians of ratios of a round.
A backend of ours that does not equal the reference is not timed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import peers  # noqa: E402
from common import interleave, machine, markdown, median_ms, ratio, save  # noqa: E402

import snnkernels  # noqa: E402
from snnkernels import _core  # noqa: E402
from snnkernels.backends import cpp  # noqa: E402
from snnkernels.core import reference  # noqa: E402
from snnkernels.core.call import RESETS, Numbers, Options  # noqa: E402
from snnkernels.core.state import State  # noqa: E402
from snnkernels.core.strides import common_layout, empty_rows  # noqa: E402
from tests.tools.cases import BENCH_CASES, BenchCase, Inputs  # noqa: E402
from tests.tools.compare import assert_same  # noqa: E402

INDEXED_LIMIT = 1 << 21  # neuron-steps from where the quadratic loop is not waited for


def lif(x: Tensor, case: BenchCase, inputs: Inputs, backend: str) -> tuple[Tensor, State]:
    return snnkernels.lif(
        x,
        decay=inputs.decay,
        v_threshold=inputs.v_threshold,
        backend=backend,
        **case.neuron.options(),
    )


def both_ways(run, x: Tensor, ds: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and the gradient on x."""
    x = x.detach().requires_grad_()
    s = run(x)
    return s, torch.autograd.grad(s, x, ds.to(s.dtype))[0]


def indexed_loop(x: Tensor, case: BenchCase, inputs: Inputs) -> Tensor:
    """The loop over x[t], as most code has it."""
    v, spikes = torch.zeros_like(x[0], dtype=torch.float32), []
    decay, theta = torch.tensor(inputs.decay), torch.tensor(inputs.v_threshold)
    for t in range(x.shape[0]):
        h = decay * v + x[t].float()
        s = reference.Fire.apply(h, theta, None, case.neuron.surrogate)
        v = reference.HardReset.apply(h, s, case.neuron.v_reset)
        spikes.append(s)
    return torch.stack(spikes).to(x.dtype)


def check(case: BenchCase) -> None:
    """Raise where backend cpp differs from the reference on this case, cut to 4,096 neurons."""
    inputs = case._replace(neurons=min(case.neurons, 4096)).inputs()
    results = []
    for backend in ("torch", "cpp"):
        results.append(
            both_ways(lambda x, b=backend: lif(x, case, inputs, b)[0], inputs.x, inputs.ds)
        )
    for what, ours, theirs in zip(("s", "dx"), results[1], results[0], strict=True):
        assert_same(ours, theirs, what)


def time_kernels(case: BenchCase, inputs: Inputs, seconds: float) -> dict:
    """The kernels alone, on written buffers, beside the copies."""
    x, ds = inputs.x, inputs.ds
    s, dx = torch.zeros_like(x), torch.zeros_like(x)
    p, q = case.neuron.surrogate.constants()
    options = Options(
        reset=RESETS.index(case.neuron.reset),
        surrogate=case.neuron.surrogate.code,
        checkpoint_every=cpp.CHECKPOINT_EVERY,
    )
    numbers = Numbers(inputs.decay, inputs.v_threshold, case.neuron.v_reset, p, q)
    state = empty_rows(s, 1).zero_()
    kept = (case.steps - 1) // cpp.CHECKPOINT_EVERY
    checkpoints = empty_rows(s, kept, 1).zero_()
    call = (options, numbers, x, None, None, None, None)
    words = x.numel() * x.element_size() // 4

    def forward() -> None:
        cpp.neuron_forward(
            common_layout(s, x), *call, s=s, state_out=state, h=None, checkpoints=checkpoints
        )

    def backward() -> None:
        layout = common_layout(dx, x, ds, None)
        outputs = {"dx": dx, "dv0": None, "ddecay": None, "dv_threshold": None}
        cpp.neuron_backward(layout, *call, checkpoints, ds, None, None, **outputs)

    def copy() -> None:
        _core.stream(s.data_ptr(), x.data_ptr(), 0, words, torch.get_num_threads())

    def triad() -> None:
        _core.stream(dx.data_ptr(), x.data_ptr(), ds.data_ptr(), words, torch.get_num_threads())

    functions = {"forward": forward, "backward": backward, "copy": copy, "triad": triad}
    runs = interleave(functions, seconds)
    e, n = x.element_size(), x.numel()
    extra = 4 * kept / case.steps
    return {
        "forward_ms": median_ms(runs["forward"]),
        "backward_ms": median_ms(runs["backward"]),
        "forward_gb_s": (2 * e + extra) * n / median_ms(runs["forward"]) / 1e6,
        "backward_gb_s": (3 * e + extra) * n / median_ms(runs["backward"]) / 1e6,
        "copy_gb_s": 2 * e * n / median_ms(runs["copy"]) / 1e6,
        "triad_gb_s": 3 * e * n / median_ms(runs["triad"]) / 1e6,
        "forward_of_copy": (2 * e + extra) / (2 * e) * ratio(runs["copy"], runs["forward"]),
        "backward_of_triad": (3 * e + extra) / (3 * e) * ratio(runs["triad"], runs["backward"]),
    }


def peak_mb(function) -> float | None:
    """Growth of the resident set while a function runs, where Linux lets us reset the mark.

    Memory that lies idle is given back first: used again it would not count.
    """
    gc.collect()
    snnkernels.keep_freed_memory(False)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        kept = function()
        peak = _status("VmHWM")
        del kept
    except (OSError, AttributeError):  # not Linux, or another C library
        return None
    return (peak - before) / 1024


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(key)


def saved_bytes(function, x: Tensor) -> float:
    """Bytes that autograd keeps per neuron-step between forward and backward, x included."""
    seen = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = function(x.detach().requires_grad_())
    del kept
    return sum(seen.values()) / x.numel()


def time_op(case: BenchCase, inputs: Inputs, seconds: float, compiled: bool) -> list[dict]:
    """The op as it is called, beside what people run instead."""
    x, ds = inputs.x, inputs.ds
    runs = {
        "cpp": lambda x: lif(x, case, inputs, "cpp")[0],
        "unbind loop": lambda x: lif(x, case, inputs, "torch")[0],
    }
    if x.numel() <= INDEXED_LIMIT:
        runs["x[t] loop"] = lambda x: indexed_loop(x, case, inputs)
    if compiled:
        runs["torch.compile"] = torch.compile(lambda x: lif(x, case, inputs, "torch")[0])
    if case.neuron.reset == "hard":
        runs |= peers.installed(inputs.decay)[0]
    expected = runs["unbind loop"](x)
    differing = {
        name: (run(x.clone()).to(expected.dtype) != expected).float().mean().item()
        for name, run in runs.items()
    }
    times = interleave(
        {name: (lambda r=run: both_ways(r, x, ds)) for name, run in runs.items()}, seconds, least=3
    )
    forward = interleave(
        {name: (lambda r=run: r(x)) for name, run in runs.items()}, seconds / 3, least=3
    )
    return [
        {
            "who": name,
            "forward_ms": median_ms(forward[name]),
            "both_ms": median_ms(times[name]),
            "times_ours": ratio(times[name], times["cpp"]),
            "peak_mb": peak_mb(lambda r=run: both_ways(r, x, ds)),
            "saved_bytes_per_neuron_step": saved_bytes(run, x),
            "differing_spikes": differing[name],
        }
        for name, run in runs.items()
    ]


def time_kept(case: BenchCase, inputs: Inputs, seconds: float) -> dict:
    """The op and the loop once more, in a process that keeps freed memory."""
    snnkernels.keep_freed_memory(True)
    try:
        runs = interleave(
            {
                backend: lambda b=backend: both_ways(
                    lambda x: lif(x, case, inputs, b)[0], inputs.x, inputs.ds
                )
                for backend in ("cpp", "torch")
            },
            seconds,
            least=3,
        )
    finally:
        snnkernels.keep_freed_memory(False)
    return {"both_ms": median_ms(runs["cpp"]), "loop_over_op": ratio(runs["torch"], runs["cpp"])}


def time_calls() -> dict:
    """One call at [4, 64], where Python is all there is: microseconds."""
    x = torch.randn(4, 64)
    leaf = x.clone().requires_grad_()
    many = 500

    def repeat(function) -> None:
        for _ in range(many):
            function()

    runs = interleave(
        {
            "without gradient": lambda: repeat(lambda: snnkernels.lif(x)),
            "forward with gradient": lambda: repeat(lambda: snnkernels.lif(leaf)),
        }
    )
    return {name: median_ms(values) * 1e3 / many for name, values in runs.items()}


def measure(case: BenchCase, seconds: float, compiled: bool) -> dict:
    check(case)
    inputs = case.inputs()
    kernel = time_kernels(case, inputs, seconds)
    op = time_op(case, inputs, seconds, compiled)
    loop = next(row for row in op if row["who"] == "unbind loop")
    alone = kernel["forward_ms"] + kernel["backward_ms"]
    kernel["loop_over_kernels"] = loop["both_ms"] / alone
    for row in op:
        if row["who"] == "torch.compile":
            kernel["compile_over_kernels"] = row["both_ms"] / alone
    return {
        "steps": case.steps,
        "neurons": case.neurons,
        "dtype": str(case.dtype).removeprefix("torch."),
        "kernels": kernel,
        "op": op,
        "memory_kept": time_kept(case, inputs, seconds / 2),
    }


def tables(results: dict) -> str:
    """The results as Markdown."""
    kernels, op = [], []
    for row in results["cases"]:
        k, head = row["kernels"], {key: row[key] for key in ("dtype", "steps", "neurons")}
        kernels.append(
            head
            | {
                "forward ms": k["forward_ms"],
                "of copy": k["forward_of_copy"],
                "backward ms": k["backward_ms"],
                "of triad": k["backward_of_triad"],
                "copy GB/s": k["copy_gb_s"],
                "unbind loop, times as long": k["loop_over_kernels"],
                "torch.compile, times as long": k.get("compile_over_kernels"),
            }
        )
        for run in row["op"]:
            op.append(
                head
                | {
                    "who": run["who"],
                    "forward ms": run["forward_ms"],
                    "forward + backward ms": run["both_ms"],
                    "times as long as ours": run["times_ours"],
                    "the same, memory kept": (
                        row["memory_kept"]["loop_over_op"] if run["who"] == "unbind loop" else None
                    ),
                    "peak MB": run["peak_mb"],
                    "kept B per neuron-step": run["saved_bytes_per_neuron_step"],
                    "differing spikes": run["differing_spikes"],
                }
            )
    calls = ", ".join(f"{name} {value:.0f} us" for name, value in results["calls_us"].items())
    return (
        "The kernels alone, on buffers written before:\n\n"
        + markdown(kernels)
        + "\n\nThe op with its allocations and autograd:\n\n"
        + markdown(op)
        + f"\n\nOne call at [4, 64]: {calls}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only cases up to 131 k neurons")
    parser.add_argument("--neurons", type=int, nargs="+", help="only cases of these sizes")
    parser.add_argument("--seconds", type=float, default=6.0, help="per group of runs")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=None, help="folder for JSON and table")
    arguments = parser.parse_args()
    missing = peers.installed(0.5)[1]
    for name, reason in missing.items():
        print(f"left out: {name} ({reason}; `make peers` installs it)", flush=True)
    results = {"calls_us": time_calls(), "missing": missing, "cases": []}
    command = " ".join(["python bench/kernels.py", *sys.argv[1:]])
    about = machine()
    head = f"`{command}` on {about['cpu']}, {about['threads']} threads, commit {about['commit']}"
    for case in BENCH_CASES:
        if arguments.quick and case.neurons > 1 << 17:
            continue
        if arguments.neurons and case.neurons not in arguments.neurons:
            continue
        compiled = not arguments.no_compile and (case.steps, case.neurons) == (64, 1 << 17)
        print(f"T={case.steps} N={case.neurons} {case.dtype} ...", flush=True)
        results["cases"].append(measure(case, arguments.seconds, compiled))
        gc.collect()
        path = save("kernels", command, results, arguments.out)  # what is there outlives Ctrl-C
        path.with_suffix(".md").write_text(f"{head}\n\n{tables(results)}")
    print(f"\n{tables(results)}\n{path}")


if __name__ == "__main__":
    main()
