"""Memory on the CPU: fresh memory costs more than a kernel, so it is used again."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from snnkernels import _core
except ImportError:  # installed without a C++ compiler
    _core = None

# Parameters of glibc's mallopt: number, value that keeps freed memory, the variable of the
# environment that sets it when a process starts, and its value without that.
_MALLOPT = (
    (-4, 0, "MALLOC_MMAP_MAX_", 65536),
    (-1, -1, "MALLOC_TRIM_THRESHOLD_", 128 * 1024),
)
_kept = False  # whether the values that keep freed memory are set

REUSED_FROM = 1 << 20  # bytes of an output that lies in memory of earlier ones


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.empty_like`, for an output of an op; see `empty_strided`."""
    if not _reuses(x, x.numel(), dtype or x.dtype):
        return torch.empty_like(x, dtype=dtype)
    return empty_strided(x.shape, dense_strides(x), dtype or x.dtype, x)


def dense_strides(x: Tensor) -> tuple[int, ...]:
    """The strides of `torch.empty_like(x)`, without its memory."""
    return x.stride() if x.is_contiguous() else torch.empty_like(x, device="meta").stride()


def empty_strided(
    size: Sequence[int], strides: Sequence[int], dtype: torch.dtype, like: Tensor
) -> Tensor:
    """`torch.empty_strided` on the device of ``like``, for a dense output of an op.

    A large one on the CPU lies in memory that earlier outputs have left. Idle memory is kept for
    that up to as much as outputs have taken at one time; `release_freed_memory` gives it back.
    """
    count = math.prod(size)
    if not _reuses(like, count, dtype):
        return torch.empty_strided(size, strides, dtype=dtype, device=like.device)
    flat = torch.frombuffer(_core.Block(count * dtype.itemsize), dtype=dtype)
    # A tensor of its own, no view: views that an autograd function returns cannot be changed.
    return flat.new_empty(0).set_(flat.untyped_storage(), 0, size, strides)


def _reuses(like: Tensor, count: int, dtype: torch.dtype) -> bool:
    return (
        type(like) is Tensor  # not what stands for one while PyTorch traces, whose sizes are open
        and count * dtype.itemsize >= REUSED_FROM
        and like.device.type == "cpu"
        and _core is not None
    )


def keep_freed_memory(keep: bool = True) -> bool:
    """Let this process keep the memory of large freed CPU tensors for the next ones.

    By default the C library gives a large block back to the system as soon as it is freed, and the
    next tensor of that size faults all its pages in again, which can take longer than the kernel
    that fills it. The outputs of snnkernels' own ops use memory of earlier ones again in any case.
    This function does so for the whole process (every CPU tensor of any library), so it is never
    done without being asked for; a training program calls it once at its start.

    Args:
        keep: False undoes an earlier True: malloc has the settings again that the process started
            with (``MALLOC_MMAP_MAX_`` and ``MALLOC_TRIM_THRESHOLD_``, or glibc's defaults), and
            what was kept is given back, see `release_freed_memory`. Without an earlier True the
            settings are left alone: a program may have made its own. Default: True.

    Returns:
        True where it took effect; False where the C library is not glibc.
    """
    global _kept
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    done = mallopt is not None
    if done and (keep or _kept):
        for number, keeping, variable, default in _MALLOPT:
            value = keeping if keep else int(os.environ.get(variable) or default)
            done &= bool(mallopt(number, value))
        _kept = keep
    if not keep:
        release_freed_memory()  # last: memory is given back by the settings that hold then
    return done


def release_freed_memory() -> int:
    """Give memory that is kept for later tensors, but used by none now, back to the system.

    That is what earlier CPU outputs of the ops have left, and with glibc the free pages of
    malloc (``malloc_trim``). Nothing that is in use is touched; the next large outputs fault their
    pages in again.

    Returns:
        Bytes of earlier outputs that were given back.
    """
    released = _core.release_blocks() if _core is not None else 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return released
