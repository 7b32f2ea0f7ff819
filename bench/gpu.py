"""All that a GPU is for, in one command that ends inside ten minutes: ``make gpu OUT=dir``.

    python bench/gpu.py --out dir             # on a GPU
    python bench/gpu.py --out dir --rehearse  # the same steps at small sizes, where there is none

In this order, as long as time lasts: whether every backend gives the bits of eager PyTorch;
compute-sanitizer over small calls; ours against the loop at one size: so much is there after two
minutes. Then the copy ceiling; forward and backward of every backend over neurons and steps; the
tests marked gpu; the loops and libraries that people use; filters; a training step of S-ResNet38
(bench/models.py, with a JSON of its own); the convolution rates of cuDNN. Each is a process of its
own with a limit of time, so that none can take another along, and each row is written as soon as it
is there. Kernels are timed alone, on given buffers, from a CUDA graph that goes through several
sets of them, so that neither launches nor the cache count. A backend that does not equal eager
PyTorch is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import gpu_kernels  # noqa: E402
from common import machine, markdown, save  # noqa: E402
from gpu_run import LEFT_OUT, Job, Run, allotted  # noqa: E402

import snnkernels  # noqa: E402
from snnkernels.nn import synapses  # noqa: E402

# Steps and neurons; and those where the general kernels run too. Triton takes seconds to compile
# each kernel, and takes the first size alone.
SANITIZED = ((40, 4097), (70, 4096), (4, 70_000), (20, 8192))
GENERAL_AT = (4097, 70_000)
ROW = "ROW "  # before each row that a step prints

# What is done, and the seconds set aside for it; what one leaves is there for the next.
STEPS = {
    "bits": 30,
    "sanitizer": 45,
    "headline": 20,
    "copy": 20,
    "sweep cuda": 50,
    "sweep triton": 85,
    "tests": 110,
    "baselines": 60,
    "filters": 25,
    "models": 50,
    "convolutions": 25,
}
TOOLS = ("memcheck", "racecheck")  # of compute-sanitizer


class Results:
    """What is known so far, on disk at any time."""

    def __init__(self, run: Run, out: Path):
        self.out, self._name = out, "gpu-rehearsal" if run.rehearse else "gpu"
        self.found: dict[str, object] = {"left_out": run.left_out, "rehearsal": run.rehearse}

    def save(self) -> str:
        """Write JSON and tables; gives the tables."""
        path = save(self._name, "python bench/gpu.py", self.found, self.out)
        tables = [
            f"### {step}\n\n{markdown(self.found[step])}"
            for step in STEPS
            if isinstance(self.found.get(step), list) and self.found[step]
        ]
        about = "\n".join(f"- {key}: {value}" for key, value in machine().items())
        left = "\n".join(f"- {what}" for what in self.found["left_out"]) or "- nothing"
        text = f"{about}\n\nLeft out:\n{left}\n\n" + "\n\n".join(tables) + "\n"
        path.with_suffix(".md").write_text(text)
        return text


def sanitize(run: Run, out: Path, seconds: float) -> dict[str, dict]:
    """compute-sanitizer's memcheck and racecheck over small calls, side by side."""
    command = [sys.executable, __file__, "--sanitized", *(["--rehearse"] * run.rehearse)]
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    jobs = {}
    for name in TOOLS:
        prefix = []
        if tool is None or run.rehearse:
            run.leave_out(f"{name}: {'no compute-sanitizer' if tool is None else 'no CUDA device'}")
        else:  # what PyTorch asks of the driver in vain is no mistake; ptxas has no kernels
            prefix = [tool, "--tool", name, "--error-exitcode", "9", "--report-api-errors", "no"]
            prefix += ["--target-processes", "application-only"]
        # Without the cache each tensor is an allocation: what is written behind it shows.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        jobs[name] = Job(prefix + command, seconds, out / f"{name}.txt", ROOT, more)
    return {name: _end(name, job) for name, job in jobs.items()}


def run_tests(run: Run, out: Path, seconds: float) -> dict:
    """``pytest -m gpu``."""
    return _end("tests", Job(_pytest(run), seconds, out / "pytest.txt", ROOT))


def _pytest(run: Run) -> list[str]:
    """What is only there for a GPU first; one test file that cannot be read stops no other."""
    tests = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/**/test_*.py"))]
    tests.sort(key=lambda path: path != "tests/gpu/test_gpu.py")
    if run.rehearse:
        run.leave_out("pytest -m gpu: all of them skip, there is no CUDA device")
        tests = tests[:1]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rs", "--tb=short"]
    command += ["--continue-on-collection-errors"]
    if find_spec("xdist"):  # Triton compiles for seconds in each test
        command += ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 4)))]
    return command + tests


def run_models(run: Run, out: Path, seconds: float) -> dict:
    """The training step of S-ResNet38 at the paper's batch of 21, against the loops over time."""
    size = ["--device", "cuda", "--batch", "21", "--seconds", "10"]
    if run.rehearse:
        size = ["--batch", "2", "--seconds", "0", "--options", '{"steps": 2}']
    command = [sys.executable, "bench/models.py", *size, "--out", str(out.resolve())]
    return _end("models", Job(command, seconds, out / "models.txt", ROOT))


def _end(name: str, job: Job) -> dict:
    code = job.wait()
    lines = job.log.read_text(errors="replace").strip().splitlines()
    print(f"{name}: exit {code}; {lines[-1] if lines else ''}", flush=True)
    return {"exit": code, "last_lines": lines[-5:]}


def measure(run: Run, step: str, seconds: float, results: Results) -> None:
    """One of STEPS in a process of its own; its rows are kept as they come."""
    ceiling = max((row["gb_s"] for row in results.found.get("copy", ())), default=0.0)
    command = [sys.executable, __file__, "--step", step, "--ceiling", str(ceiling)]
    # It stops by itself before it is stopped.
    command += ["--seconds", str(seconds - 10), *(["--rehearse"] * run.rehearse)]
    rows = results.found[step] = []
    job, last = Job(command, seconds, cwd=ROOT), ""
    for line in job.lines():
        if line.startswith(ROW):
            rows.append(json.loads(line[len(ROW) :]))
            results.save()
        elif line.startswith(LEFT_OUT):
            run.leave_out(line[len(LEFT_OUT) :])
        else:
            print(line, flush=True)
            last = line or last
    code = job.wait()
    if code != 0:
        run.leave_out(f"{step}, after {len(rows)} rows: exit {code}; {last}")


def rows_of(run: Run, step: str, ceiling: float) -> Iterator[dict]:
    """The rows of one of STEPS."""
    what, _, backend = step.partition(" ")
    if what != "sweep":
        return getattr(gpu_kernels, what)(run)
    if run.rehearse and backend == "cuda":
        backend = "cpp"
    return gpu_kernels.sweep(run, backend, ceiling) if backend in run.backends else iter(())


def sanitized_calls(run: Run) -> None:
    """Calls that lead to every kind of kernel, few enough for a tool that slows them a lot."""
    for backend in run.backends:
        compiles = backend == "triton"
        dtypes = (torch.float32, torch.bfloat16)
        for steps, neurons in SANITIZED[:1] if compiles else SANITIZED:
            for dtype in dtypes[:1] if compiles else dtypes:
                decay = torch.tensor(0.9, device=run.device, requires_grad=neurons == 4097)
                (x,) = run.tensors(1, steps, neurons, dtype)
                s, _ = snnkernels.lif(x.requires_grad_(), decay=decay, backend=backend)
                s.float().square().sum().backward()
                if neurons not in GENERAL_AT:
                    continue
                more = {"synapse": synapses.dual_exponential(8.0, 2.0), "regulariser": (0.1, 0.0)}
                s, _, penalty = snnkernels.lif(x, reset="soft", backend=backend, **more)
                (s.float().square().sum() + penalty).backward()
                snnkernels.iir(x, [0.5, 0.2], [1.0, 0.1], backend=backend)[0].sum().backward()
    if run.device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--seconds", type=float, default=540, help="until all is over")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--sanitized", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--ceiling", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.rehearse:
        print("There is no CUDA device: this is a rehearsal, its figures say nothing.")
        arguments.rehearse = True
    run = Run(arguments.seconds, arguments.rehearse)
    if arguments.sanitized:
        sanitized_calls(run)
        return 0
    if arguments.step:
        for row in rows_of(run, arguments.step, arguments.ceiling):
            print(ROW + json.dumps(row), flush=True)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(run, arguments.out)
    results.save()
    with_a_log = {"sanitizer": sanitize, "tests": run_tests, "models": run_models}
    ahead = dict(STEPS)
    for step in STEPS:
        start, seconds = time.monotonic(), allotted(run.remaining() - 10, *ahead.values())
        del ahead[step]
        if seconds < 15:
            run.leave_out(f"{step}: out of time")
        elif step in with_a_log:
            results.found[step] = with_a_log[step](run, arguments.out, seconds)
        else:
            measure(run, step, seconds, results)
        print(f"--- {step}: {time.monotonic() - start:.0f} s", flush=True)
        text = results.save()
    print(text)
    return int(not passed(results.found))


def passed(found: dict) -> bool:
    """Whether what must be right is: bits, tests, and what the sanitizer ended with."""
    sanitizer = found.get("sanitizer", {})
    ends = [*sanitizer.values(), found.get("tests", {"exit": "out of time"})]
    bits = found.get("bits", [])
    return bool(bits) and all(row["equal"] for row in bits) and all(e["exit"] == 0 for e in ends)


if __name__ == "__main__":
    sys.exit(main())
