"""Time the neuron op and its kernels: against the loops and libraries that people use, and memory.

    python -m bench kernels            # all cases of tests/tools/cases.py
    python -m bench kernels --quick    # those up to 131 k neurons

Per case, op against op: forward and backward as a user calls it, with allocations and autograd on
both sides, beside the loop over ``x.unbind(0)``, the loop over ``x[t]`` (its backward pass is
quadratic in T), ``torch.compile`` of the loop, and the installed peers. Then the kernels alone on
buffers that were written before, beside a copy (read one, write one) and a triad (read two, write
one) of the same size by the same stores. All of one case run in turns; figures are medians, ratios
are medians of ratios of a round, and the op runs twice a round: what its two runs lie apart is the
noise. A backend of ours that does not equal the reference is not timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import peers  # noqa: E402
from common import machine, markdown, save, too_noisy  # noqa: E402

import snnkernels  # noqa: E402
from snnkernels import _core  # noqa: E402
from snnkernels.backends import cpp  # noqa: E402
from snnkernels.cli._memory import peak_mib  # noqa: E402
from snnkernels.cli._timing import interleave  # noqa: E402
from snnkernels.core import reference  # noqa: E402
from snnkernels.core.call import RESETS, Arriving, Call, Coefficient, Gradients  # noqa: E402
from snnkernels.core.state import State  # noqa: E402
from snnkernels.core.strides import common_layout  # noqa: E402
from snnkernels.ops._neuron import empty_outputs  # noqa: E402
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
    numbers = inputs.decay, inputs.v_threshold, case.neuron.v_reset
    decay, theta, v_reset = map(torch.tensor, numbers)
    for t in range(x.shape[0]):
        h = decay * v + x[t].float()
        s = reference.Fire.apply(h, theta, None, case.neuron.surrogate)
        v = reference.HardReset.apply(h, s, v_reset)
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
    p, q = case.neuron.surrogate.constants()
    call = Call(
        decay=Coefficient(number=inputs.decay),
        v_threshold=Coefficient(number=inputs.v_threshold),
        reset=RESETS.index(case.neuron.reset),
        surrogate=case.neuron.surrogate.code,
        checkpoint_every=cpp.CHECKPOINT_EVERY,
        v_reset=case.neuron.v_reset,
        surrogate_p=p,
        surrogate_q=q,
    )
    outputs, gradients = empty_outputs(x, call), Gradients(x=torch.zeros_like(x))
    for written in (outputs.s, outputs.v, outputs.checkpoints):
        written.zero_()
    s, dx = outputs.s, gradients.x
    kept = (case.steps - 1) // cpp.CHECKPOINT_EVERY
    words = x.numel() * x.element_size() // 4

    def forward() -> None:
        cpp.neuron_forward(common_layout(s, x), call, x, outputs)

    def backward() -> None:
        layout = common_layout(dx, x, ds, None)
        cpp.neuron_backward(layout, call, x, outputs.checkpoints, Arriving(s=ds), gradients)

    def copy() -> None:
        _core.stream(s.data_ptr(), x.data_ptr(), 0, words, torch.get_num_threads())

    def triad() -> None:
        _core.stream(dx.data_ptr(), x.data_ptr(), ds.data_ptr(), words, torch.get_num_threads())

    functions = {"forward": forward, "backward": backward, "copy": copy, "triad": triad}
    times = interleave(functions, seconds, twice="forward")
    e, extra = x.element_size(), 4 * kept / case.steps
    moved = {"forward": 2 * e + extra, "backward": 3 * e + extra, "copy": 2 * e, "triad": 3 * e}
    return {
        "forward_ms": 1e3 * times.median("forward"),
        "backward_ms": 1e3 * times.median("backward"),
        **{f"{k}_gb_s": v * x.numel() / times.median(k) / 1e9 for k, v in moved.items()},
        "forward_of_copy": moved["forward"] / moved["copy"] * times.ratio("copy", "forward"),
        "backward_of_triad": moved["backward"] / moved["triad"] * times.ratio("triad", "backward"),
        "noise": times.noise,
    }


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
    both = interleave(
        {name: (lambda r=run: both_ways(r, x, ds)) for name, run in runs.items()},
        seconds,
        rounds=3,
        twice="cpp",
    )
    forward = interleave(
        {name: (lambda r=run: r(x)) for name, run in runs.items()}, seconds / 3, rounds=3
    )
    return [
        {
            "who": name,
            "forward_ms": 1e3 * forward.median(name),
            "both_ms": 1e3 * both.median(name),
            "times_ours": both.ratio(name, "cpp"),
            "times_ours_quartiles": both.spread(name, "cpp"),
            "noise": both.noise,
            "peak_mb": peak_mib(lambda r=run: both_ways(r, x, ds)),
            "saved_bytes_per_neuron_step": saved_bytes(run, x),
            "differing_spikes": differing[name],
        }
        for name, run in runs.items()
    ]


def time_kept(case: BenchCase, inputs: Inputs, seconds: float) -> dict:
    """The op and the loop once more, in a process that keeps freed memory."""
    snnkernels.keep_freed_memory(True)
    try:
        times = interleave(
            {
                backend: lambda b=backend: both_ways(
                    lambda x: lif(x, case, inputs, b)[0], inputs.x, inputs.ds
                )
                for backend in ("cpp", "torch")
            },
            seconds,
            rounds=3,
        )
    finally:
        snnkernels.keep_freed_memory(False)
    return {"both_ms": 1e3 * times.median("cpp"), "loop_over_op": times.ratio("torch", "cpp")}


def time_calls() -> dict:
    """One call at [4, 64], where Python is all there is: microseconds."""
    x = torch.randn(4, 64)
    leaf = x.clone().requires_grad_()
    many = 500

    def repeat(function) -> None:
        for _ in range(many):
            function()

    times = interleave(
        {
            "without gradient": lambda: repeat(lambda: snnkernels.lif(x)),
            "forward with gradient": lambda: repeat(lambda: snnkernels.lif(leaf)),
        },
        seconds=2.0,
    )
    return {name: 1e6 * times.median(name) / many for name in times.seconds}


def measure(case: BenchCase, seconds: float, compiled: bool) -> dict:
    check(case)
    inputs = case.inputs()
    return {
        "steps": case.steps,
        "neurons": case.neurons,
        "dtype": str(case.dtype).removeprefix("torch."),
        "op": time_op(case, inputs, seconds, compiled),
        "kernels": time_kernels(case, inputs, seconds),
        "memory_kept": time_kept(case, inputs, seconds / 2),
    }


def tables(results: dict) -> str:
    """The results as Markdown: op against op, in short and in full, then the kernels alone."""
    short: dict[str, dict] = {}
    full, kernels = [], []
    for row in results["cases"]:
        k, head = row["kernels"], {key: row[key] for key in ("dtype", "steps", "neurons")}
        case = f"{row['dtype']}, T={row['steps']}, {row['neurons']:,} neurons"
        for run in row["op"]:
            ours = run["who"] == "cpp"
            name = "snnkernels, ms" if ours else f"{run['who']}, times as long"
            short.setdefault(name, {})[case] = run["both_ms" if ours else "times_ours"]
            loop = run["who"] == "unbind loop"
            full.append(
                head
                | {
                    "who": run["who"],
                    "forward ms": run["forward_ms"],
                    "forward + backward ms": run["both_ms"],
                    "times as long as ours": run["times_ours"],
                    "noise": run.get("noise"),
                    "memory kept, times as long": row["memory_kept"]["loop_over_op"]
                    if loop
                    else None,
                    "peak MB": run["peak_mb"],
                    "kept B per neuron-step": run["saved_bytes_per_neuron_step"],
                    "differing spikes": run["differing_spikes"],
                }
            )
        kernels.append(
            head
            | {
                "forward ms": k["forward_ms"],
                "of copy": k["forward_of_copy"],
                "backward ms": k["backward_ms"],
                "of triad": k["backward_of_triad"],
                "copy GB/s": k["copy_gb_s"],
                "noise": k.get("noise"),
            }
        )
    cases = list(dict.fromkeys(case for cells in short.values() for case in cells))
    pivot = [
        {"forward and backward": name} | {case: cells.get(case) for case in cases}
        for name, cells in short.items()
    ]
    calls = ", ".join(f"{name} {value:.0f} us" for name, value in results["calls_us"].items())
    return (
        "Op against op, allocations and autograd on both sides:\n\n"
        + markdown(pivot)
        + "\n\nThe same in full:\n\n"
        + markdown(full)
        + "\n\nThe kernels alone, on buffers written before, against a copy (triad) of as many "
        + "bytes:\n\n"
        + markdown(kernels)
        + f"\n\nOne call at [4, 64]: {calls}.\n"
    )


def page(command: str, about: dict, results: dict) -> str:
    """The tables under what they were measured with."""
    head = f"`{command}` on {about['cpu']}, {about['threads']} threads, commit {about['commit']}"
    return f"{head}\n\n{tables(results)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only cases up to 131 k neurons")
    parser.add_argument("--neurons", type=int, nargs="+", help="only cases of these sizes")
    parser.add_argument("--seconds", type=float, default=6.0, help="per group of runs")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=None, help="folder for JSON and table")
    parser.add_argument("--tables-of", type=Path, help="only write the tables of this JSON again")
    arguments = parser.parse_args()
    if arguments.tables_of:
        found = json.loads(arguments.tables_of.read_text())
        text = page(found["command"], found["machine"], found["results"])
        arguments.tables_of.with_suffix(".md").write_text(text)
        return 0
    missing = peers.installed(0.5)[1]
    for name, reason in missing.items():
        print(f"left out: {name} ({reason})", flush=True)
    results = {"calls_us": time_calls(), "missing": missing, "cases": []}
    command = " ".join(["python -m bench kernels", *sys.argv[1:]])
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
        path.with_suffix(".md").write_text(page(command, machine(), results))
    print(f"\n{tables(results)}\n{path}")
    names = (f"{c['dtype']}, T={c['steps']}, {c['neurons']} neurons" for c in results["cases"])
    noise = (case["op"][0]["noise"] for case in results["cases"])
    return too_noisy(dict(zip(names, noise, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
