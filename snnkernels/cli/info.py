"""The command ``info``."""

from __future__ import annotations

import argparse
import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch

import snnkernels
from snnkernels.backends import BACKENDS, available_backends, cuda, why_unavailable

HELP = """Say what of snnkernels works on this machine, and why the rest does not."""
MAPS = Path("/proc/self/maps")
OPENMP = re.compile(r"/lib(?:gomp|iomp5|omp)\b[^/]*\.so[^/]*$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Leave the parser as it is: the report has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    print(report())
    return 0


def report() -> str:
    """Versions, processors and backends, one a line."""
    rows = [
        ("snnkernels", f"{snnkernels.__version__} ({Path(snnkernels.__file__).parent})"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("triton", _version("triton")),
        ("CPU", f"{_cpu_name()}, {_cpus()} cores to run on"),
        ("  instructions", _instructions()),
        ("  threads", f"{torch.get_num_threads()} (torch.set_num_threads, OMP_NUM_THREADS)"),
        ("  OpenMP", _openmp()),
        *_gpus(),
        (
            "CUDA kernels",
            f"by way of: {cuda.way()}" if cuda.way() else f"none to be had ({cuda.why_no_way()})",
        ),
    ]
    for device in ("cpu", "cuda"):
        usable = available_backends(device)
        for i, name in enumerate((*usable, *(b for b in BACKENDS if b not in usable))):
            reason = why_unavailable(name, device)
            if reason is None and device == "cuda" and not torch.cuda.is_available():
                reason = "there is no GPU that torch can use"
            state = f"no: {reason}" if reason else "yes" + (", the default" if i == 0 else "")
            rows.append((f"backends on {device}" if i == 0 else "", f"{name:8}{state}"))
    return "\n".join(f"{name:18}{value}" for name, value in rows)


def openmp_runtimes(maps: str) -> list[str]:
    """The OpenMP libraries in a process, from the text of its ``/proc/PID/maps``.

    Returns:
        Their paths, sorted, each once.
    """
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/" in line}
    return sorted(path for path in paths if OPENMP.search(path))


def _openmp() -> str:
    if not MAPS.exists():
        return "not known: this system has no /proc/self/maps"
    found = openmp_runtimes(MAPS.read_text())
    if len(found) == 1:
        return f"one runtime ({found[0]})"
    if not found:
        return "no runtime loaded: everything runs on one thread"
    preload = next((path for path in found if "/torch/" in path), found[0])
    return (
        f"WARNING: {len(found)} runtimes ({', '.join(found)}). Their threads compete for the same "
        f"cores; start Python with LD_PRELOAD={preload} so that all share one"
    )


def _instructions() -> str:
    try:
        from snnkernels import _core
    except ImportError:
        return "not known: the C++ core was not built"
    best, *others = _core.available_isas().split()
    return f"{best} in use" + (f"; {', '.join(others)} would run as well" if others else "")


def _gpus() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        built = "torch sees none" if torch.version.cuda else "this build of torch has no CUDA"
        return [("GPU", f"none ({built})")]
    rows = []
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        memory = gpu.total_memory / 2**30
        rows.append((f"GPU {i}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {memory:.0f} GiB"))
    return rows


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()
