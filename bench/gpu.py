"""All that a GPU is for, in one command that ends inside ten minutes: ``make gpu OUT=dir``.

    python bench/gpu.py --out dir             # on a GPU
    python bench/gpu.py --out dir --rehearse  # the same steps at small sizes, where there is none

In this order, as long as time lasts, and each step saved when it is done: the tests marked gpu;
compute-sanitizer over small calls; the copy ceiling; forward and backward of every backend over
neurons and steps; the loops and libraries that people use; filters; a training step of S-ResNet38
(bench/models.py, with a JSON of its own); the convolution rates of cuDNN. Kernels are timed alone,
on given buffers, from a CUDA graph that goes through several sets of them, so that neither launches
nor the cache count. A backend that does not equal eager PyTorch is not timed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import gpu_kernels  # noqa: E402
from common import machine, markdown, save  # noqa: E402
from gpu_run import Run  # noqa: E402

import snnkernels  # noqa: E402
from snnkernels import synapses  # noqa: E402
from snnkernels.backends import load  # noqa: E402

SANITIZED = ((40, 4097), (70, 4096), (4, 70_000), (20, 8192))


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
                decay = torch.tensor(0.9, device=run.device, requires_grad=neurons == 4097)
                (x,) = run.tensors(1, steps, neurons, dtype)
                s, _ = snnkernels.lif(x.requires_grad_(), decay=decay, backend=backend)
                s.float().square().sum().backward()
                more = {"synapse": synapses.dual_exponential(8.0, 2.0), "regulariser": (0.1, 0.0)}
                s, _, penalty = snnkernels.lif(x, reset="soft", backend=backend, **more)
                (s.float().square().sum() + penalty).backward()
                snnkernels.iir(x, [0.5, 0.2], [1.0, 0.1], backend=backend)[0].sum().backward()
    if run.device == "cuda":
        torch.cuda.synchronize()


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
        rows = gpu_kernels.copy_ceiling(run)
        ceiling.append(max(row["gb_s"] for row in rows))
        return rows

    steps = {
        "tests": lambda: run_tests(run, arguments.out),
        "sanitizer": lambda: run_sanitizer(run, arguments.out),
        "copy": ceilings,
        "sweep": lambda: gpu_kernels.sweep(run, ceiling[0]),
        "baselines": lambda: gpu_kernels.baselines(run),
        "filters": lambda: gpu_kernels.filters(run),
        "models": lambda: run_models(run, arguments.out),
        "convolutions": lambda: gpu_kernels.convolutions(run),
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
        for step in ("copy", "sweep", "baselines", "filters", "convolutions")
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
