"""All that a GPU is for, in one command that ends inside ten minutes: ``make gpu OUT=dir``.

    python bench/gpu.py --out dir             # on a GPU
    python bench/gpu.py --out dir --rehearse  # the same steps at small sizes, where there is none

In this order, as long as time lasts, and each step saved when it is done: the tests marked gpu;
compute-sanitizer over small calls; the copy ceiling; forward and backward of every backend over
neurons and steps; the loops and libraries that people use; a training step of S-ResNet38
(bench/models.py, with a JSON of its own); the convolution rates of cuDNN. Kernels are timed alone,
on given buffers, from a CUDA graph that goes through several sets of them, so that neither launches
nor the cache count. A backend that does not equal eager PyTorch is not timed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import peers  # noqa: E402
from common import machine, markdown, save  # noqa: E402

import snnkernels  # noqa: E402
from snnkernels.backends import load, why_unavailable  # noqa: E402
from snnkernels.layout import common_layout, empty_rows  # noqa: E402
from snnkernels.ops import Numbers, Options  # noqa: E402
from tests.compare import assert_same  # noqa: E402

DECAY = 0.9
STEPS = (4, 8, 16, 64, 256, 1024, 4096)
NEURONS = tuple(1 << k for k in (12, 14, 16, 18, 20, 22))
MOST = 1 << 28  # neuron-steps of one measurement
# Where the loops and libraries are measured: their time, not ours, sets the limit.
BASELINES = ((16, 1 << 20), (50, 1 << 20), (250, 1 << 16), (1000, 1 << 14))
COMPILED = ((16, 1 << 20),)  # torch.compile unrolls the loop: many steps take minutes to compile
SETS_BYTES = 256 << 20  # what the sets of buffers of one graph cover, beyond every cache
SANITIZED = ((40, 4097), (70, 4096), (4, 70_000), (20, 8192))


class Run:
    """The device, the sizes and the time that is left."""

    def __init__(self, seconds: float, rehearse: bool):
        self.end = time.monotonic() + seconds
        self.device = "cpu" if rehearse else "cuda"
        self.rehearse = rehearse
        names = ("cpp",) if rehearse else ("cuda", "triton")
        self.left_out: list[str] = []
        self.backends = []
        for name in names:
            reason = why_unavailable(name, self.device)
            if reason:
                self.leave_out(f"backend {name}: {reason}")
            else:
                self.backends.append(name)

    def leave_out(self, what: str) -> None:
        print(f"LEFT OUT: {what}", flush=True)
        self.left_out.append(what)

    def remaining(self) -> float:
        return self.end - time.monotonic()

    def sizes(self, pairs) -> list[tuple[int, int]]:
        """At small sizes where this is a rehearsal."""
        if not self.rehearse:
            return [(t, n) for t, n in pairs if t * n <= MOST]
        return sorted({(min(t, 20), min(n, 512)) for t, n in pairs})

    def milliseconds(self, calls: list[Callable[[], object]], seconds: float = 0.05) -> float:
        """One call's time: the median over repetitions of the mean over ``calls``."""
        if self.rehearse:
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) * 1e3 / len(calls)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        return self.timed(graph.replay, seconds) / len(calls)

    def timed(self, call: Callable[[], object], seconds: float = 0.1, least: int = 5) -> float:
        """Median milliseconds of a call, launches included."""
        if self.rehearse:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        call()
        torch.cuda.synchronize()
        found, end = [], time.monotonic() + seconds
        while len(found) < least or time.monotonic() < end:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[0].record()
            call()
            marks[1].record()
            torch.cuda.synchronize()
            found.append(marks[0].elapsed_time(marks[1]))
        return statistics.median(found)

    def tensors(self, sets: int, steps: int, neurons: int, dtype) -> list[Tensor]:
        return [
            (torch.randn(steps, neurons, device=self.device) + 0.2).to(dtype) for _ in range(sets)
        ]


def run_tests(run: Run, out: Path) -> dict:
    """``pytest -m gpu``."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "--tb=short"]
    if run.rehearse:
        run.leave_out("pytest -m gpu: all of them skip, there is no CUDA device")
        command += ["tests/test_gpu.py"]
    return _logged(command, out / "pytest.txt", min(180, run.remaining() / 3))


def run_sanitizer(run: Run, out: Path) -> dict:
    """memcheck and racecheck over small calls of every backend."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    found = {}
    for check in ("memcheck", "racecheck"):
        command = [sys.executable, __file__, "--sanitized", *(["--rehearse"] * run.rehearse)]
        if tool is None or run.rehearse:
            run.leave_out(
                f"{check}: {'no compute-sanitizer' if tool is None else 'no CUDA device'}"
            )
        else:
            command = [tool, "--tool", check, "--error-exitcode", "9", *command]
        found[check] = _logged(command, out / f"{check}.txt", min(90, run.remaining() / 4))
    return found


def run_models(run: Run, out: Path) -> dict:
    """The training step of S-ResNet38 at the paper's batch of 21, against the loops over time."""
    size = ["--device", "cuda", "--batch", "21", "--seconds", "10"]
    if run.rehearse:
        size = ["--batch", "2", "--seconds", "0", "--options", '{"steps": 2, "filters": 2}']
    command = [sys.executable, "bench/models.py", *size, "--out", str(out.resolve())]
    return _logged(command, out / "models.txt", min(120, run.remaining() / 2))


def _logged(command: list[str], log: Path, seconds: float) -> dict:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        text, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        text, code = (error.stdout or b"").decode(errors="replace"), "out of time"
    log.write_text(text)
    lines = text.strip().splitlines()
    print(f"{' '.join(command[-4:])}: exit {code}; {lines[-1] if lines else ''}", flush=True)
    return {"exit": code, "last_lines": lines[-5:]}


def sanitized_calls(run: Run) -> None:
    """Calls that lead to every kind of kernel, few enough for a tool that slows them a lot."""
    for backend in run.backends:
        for steps, neurons in SANITIZED:
            for dtype in (torch.float32, torch.bfloat16):
                decay = torch.tensor(DECAY, device=run.device, requires_grad=neurons == 4097)
                (x,) = run.tensors(1, steps, neurons, dtype)
                s, _ = snnkernels.lif(x.requires_grad_(), decay=decay, backend=backend)
                s.float().square().sum().backward()
    if run.device == "cuda":
        torch.cuda.synchronize()


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--seconds", type=float, default=470, help="stop starting work after this")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--sanitized", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.rehearse:
        print("There is no CUDA device: this is a rehearsal, its figures say nothing.")
        arguments.rehearse = True
    run = Run(arguments.seconds, arguments.rehearse)
    if arguments.sanitized:
        sanitized_calls(run)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "gpu-rehearsal" if run.rehearse else "gpu"
    results: dict[str, object] = {"left_out": run.left_out, "rehearsal": run.rehearse}
    cuda = None if run.rehearse else load("cuda").way()
    results["cuda_kernels"] = cuda
    ceiling: list[float] = []

    def ceilings() -> list[dict]:
        rows = copy_ceiling(run)
        ceiling.append(max(row["gb_s"] for row in rows))
        return rows

    steps = {
        "tests": lambda: run_tests(run, arguments.out),
        "sanitizer": lambda: run_sanitizer(run, arguments.out),
        "copy": ceilings,
        "sweep": lambda: sweep(run, ceiling[0]),
        "baselines": lambda: baselines(run),
        "models": lambda: run_models(run, arguments.out),
        "convolutions": lambda: convolutions(run),
    }
    for step, work in steps.items():
        start = time.monotonic()
        try:
            results[step] = work()
        except Exception as error:  # one step's failure must not cost the others
            run.leave_out(f"{step}: {error!r}")
        path = save(name, "python bench/gpu.py", results, arguments.out)
        print(f"--- {step}: {time.monotonic() - start:.0f} s", flush=True)
    tables = [
        f"### {step}\n\n{markdown(results[step])}"
        for step in ("copy", "sweep", "baselines", "convolutions")
        if results.get(step)
    ]
    about = "\n".join(f"- {key}: {value}" for key, value in machine().items())
    left = "\n".join(f"- {what}" for what in run.left_out) or "- nothing"
    text = f"{about}\n\nLeft out:\n{left}\n\n" + "\n\n".join(tables) + "\n"
    path.with_suffix(".md").write_text(text)
    print(text)
    bad = [s for s in (results.get("tests"), *(results.get("sanitizer") or {}).values()) if s]
    return int(any(found["exit"] != 0 for found in bad))


if __name__ == "__main__":
    sys.exit(main())
