"""How much memory a function takes at its peak."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import snnkernels


def peak_mib(function: Callable[[], object]) -> float | None:
    """Growth of the process's resident memory while a function runs, in MiB.

    Memory that lies idle is given back first: used again it would not count. Leaves
    `snnkernels.keep_freed_memory` off.

    Args:
        function: runs once in any case; what it returns is dropped afterwards.

    Returns:
        MiB, or None where the system does not tell: it takes Linux.
    """
    gc.collect()
    snnkernels.keep_freed_memory(False)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status_kib("VmRSS")
    except OSError:
        before = None
    kept = function()
    grown = None if before is None else (_status_kib("VmHWM") - before) / 1024
    del kept
    return grown


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(key)
