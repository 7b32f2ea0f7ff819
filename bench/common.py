"""What every benchmark shares: the machine's description, JSON and tables."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from functools import lru_cache
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"

NOISE_LIMIT = 0.1  # how far two runs of the same function may lie apart


def _find(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return match.group(1).strip() if match else None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def available_bytes() -> int:
    """Memory that is free, or can be made so."""
    kib = _find("/proc/meminfo", r"MemAvailable:\s*(\d+) kB")
    if kib is not None:
        return 1024 * int(kib)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@lru_cache
def machine() -> dict:
    """The machine and the software that a result belongs to.

    SNN_COMMIT names the commit of a tree without a repository.
    """
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    about = {
        "cpu": _find("/proc/cpuinfo", r"model name\s*:\s*(.*)") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "huge_pages": _find("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": _output("git", "-C", str(RESULTS.parent), "rev-parse", "--short=12", "HEAD")
        or os.environ.get("SNN_COMMIT"),
        "date": time.strftime("%Y-%m-%d"),
    }
    if torch.cuda.is_available():
        about |= {
            "gpu": torch.cuda.get_device_properties(0).name,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }
    return about


def markdown(rows: list[dict]) -> str:
    """Rows as a Markdown table; a key that a row lacks is a dash."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(keys), " | ".join("---" for _ in keys)]
    lines += [" | ".join(_show(row.get(key)) for key in keys) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)


def save(name: str, command: str, results: object, out: Path | None = None) -> Path:
    """Write ``<name>-<machine>.json`` with the machine and the command beside the results."""
    about = machine()
    slug = re.sub(r"[^a-z0-9]+", "-", (about.get("gpu") or about["cpu"] or "cpu").lower())
    path = (out or RESULTS) / f"{name}-{slug.strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": about, "command": command, "results": results}, indent=1) + "\n"
    )
    return path


def too_noisy(noise: dict[str, float | None]) -> int:
    """Say which cases are noise; the exit status of a suite: 3 where there are any, else 0."""
    wide = {case: n for case, n in noise.items() if n is not None and n > NOISE_LIMIT}
    for case, n in wide.items():
        print(f"too noisy: {case}: the same function twice, {n:.0%} apart")
    return 3 if wide else 0
