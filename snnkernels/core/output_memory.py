"""Memory on the CPU: fresh memory costs more than a kernel, so it is used again."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    from snnkernels import _core
except ImportError:  # installed without a C++ compiler
    _core = None

# glibc's mallopt: parameters and their defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM, _DEFAULT_BLOCKS = 128 * 1024, 65536

REUSED_FROM = 1 << 20  # bytes of an output that lies in memory of earlier ones


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.empty_like`, for an output of an op; see `empty_strided`."""
    if not _reuses(x, x.numel(), dtype or x.dtype):
        return torch.empty_like(x, dtype=dtype)
    strides = torch.empty_like(x, device="meta").stride()
    return empty_strided(x.shape, strides, dtype or x.dtype, x)


def empty_strided(
    size: Sequence[int], strides: Sequence[int], dtype: torch.dtype, like: Tensor
) -> Tensor:
    """`torch.empty_strided` on the device of ``like``, for a dense output of an op.

    A large one on the CPU lies in memory that earlier outputs have left. Idle memory is kept for
    that up to as much as outputs have taken at one time; `keep_freed_memory(False)` gives it back.
    """
    count = math.prod(size)
    if not _reuses(like, count, dtype):
        return torch.empty_strided(size, strides, dtype=dtype, device=like.device)
    flat = torch.frombuffer(_core.Block(count * dtype.itemsize), dtype=dtype)
    # A tensor of its own, no view: views that an autograd function returns cannot be changed.
    return flat.new_empty(0).set_(flat.untyped_storage(), 0, size, strides)


def _reuses(like: Tensor, count: int, dtype: torch.dtype) -> bool:
    return (
        count * dtype.itemsize >= REUSED_FROM
        and like.device.type == "cpu"
        and type(like) is Tensor  # not what stands for one while PyTorch traces
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
        keep: False goes back to the C library's defaults, and gives back what earlier outputs of
            the ops have left. Default: True.

    Returns:
        True where it took effect; False where the C library is not glibc.
    """
    if not keep and _core is not None:
        _core.release_blocks()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    blocks, trim = (0, -1) if keep else (_DEFAULT_BLOCKS, _DEFAULT_TRIM)
    return bool(mallopt(_MMAP_MAX, blocks) and mallopt(_TRIM_THRESHOLD, trim))
