"""Memory of the process: what costs more than a kernel when it is not reused."""

from __future__ import annotations

import ctypes

# glibc's mallopt: parameters and their defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM, _DEFAULT_BLOCKS = 128 * 1024, 65536


def keep_freed_memory(keep: bool = True) -> bool:
    """Let this process keep the memory of large freed CPU tensors for the next ones.

    By default the C library gives a large block back to the system as soon as it is freed, and the
    next tensor of that size faults all its pages in again, which can take longer than the kernel
    that fills it. This changes the whole process (every CPU tensor of any library), so it is never
    done without being asked for; a training program calls it once at its start.

    Args:
        keep: False goes back to the C library's defaults. Default: True.

    Returns:
        True where it took effect; False where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    blocks, trim = (0, -1) if keep else (_DEFAULT_BLOCKS, _DEFAULT_TRIM)
    return bool(mallopt(_MMAP_MAX, blocks) and mallopt(_TRIM_THRESHOLD, trim))
