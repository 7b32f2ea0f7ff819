"""Kernels that write what a function of the Triton backend returns."""

import triton
import triton.language as tl

from snnkernels.backends.triton.rows import wrapped


@triton.jit
def wrapped_kernel(out, first: tl.int64, size: tl.int64, BLOCK: tl.constexpr):
    """Write both results of `wrapped` for BLOCK lanes, int64 `[2, BLOCK]`."""
    lane = tl.arange(0, BLOCK)
    turns, left = wrapped(first, lane, size)
    tl.store(out + lane, turns.to(tl.int64))
    tl.store(out + BLOCK + lane, left)
