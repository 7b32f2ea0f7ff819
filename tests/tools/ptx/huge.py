"""Strides and sizes beyond 2^31 elements. Sparse files are the memory; the last blocks run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import snnkernels
from snnkernels.core import output_memory
from tests.tools.ptx.machine import Machine

STEPS = 18  # so that there is a checkpoint
LAST_BLOCKS = 3
_BIG = 1 << 27  # elements from which a tensor is a sparse file
_STRIDE = (1 << 31) + 32


def _sparse(elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory before they are written."""
    with tempfile.TemporaryFile() as file:
        raw = np.memmap(file, dtype=np.uint8, mode="w+", shape=(elements * dtype.itemsize,))
    return torch.from_numpy(raw).view(dtype)


@contextmanager
def sparse_outputs() -> Iterator[None]:
    """Large tensors that the package makes are sparse too."""
    empty_strided, empty_like = torch.empty_strided, torch.empty_like

    def strided(size, stride, *, dtype=torch.float32, **more):
        extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if not all(size) or extent < _BIG:
            return empty_strided(size, stride, dtype=dtype, **more)
        return _sparse(extent, dtype).as_strided(tuple(size), tuple(stride))

    def like(x, dtype=None, **more):
        if more or x.numel() < _BIG:
            return empty_like(x, dtype=dtype, **more)
        return strided(x.shape, empty_like(x, device="meta").stride(), dtype=dtype or x.dtype)

    with ExitStack() as replaced:
        replaced.enter_context(mock.patch.object(output_memory, "_core", None))
        replaced.enter_context(mock.patch.object(torch, "empty_strided", strided))
        replaced.enter_context(mock.patch.object(torch, "empty_like", like))
        yield


def _compare(
    backend: str, x: Tensor, part: tuple, ds: Tensor | None = None, **options
) -> list[str]:
    """Run the backend on x and the reference on ``x[part]``: names of what differs there."""
    leaf, small = x.detach().requires_grad_(), x[part].clone().requires_grad_()
    s, state = snnkernels.lif(leaf, backend=backend, **options)
    want, want_state = snnkernels.lif(small, backend="torch", **options)
    pairs = [("s", s[part], want), ("v", state.v[part[1:]], want_state.v)]
    if ds is not None:
        (dx,), (want_dx,) = (
            torch.autograd.grad(out, of, g)
            for out, of, g in ((s, leaf, ds), (want, small, ds[part]))
        )
        pairs.append(("dx", dx[part], want_dx))
    return [name for name, got, expected in pairs if not torch.equal(got, expected)]


def _far_steps(backend: str) -> list[str]:
    x = _sparse(3 * _STRIDE, torch.float32).as_strided((3, 256), (_STRIDE, 1))
    x.copy_(torch.randn(3, 256))
    return _compare(backend, x, (slice(None),) * 2, torch.randn(3, 256))


def _far_samples(backend: str) -> list[str]:
    x = _sparse(3 * _STRIDE, torch.bfloat16).as_strided((5, 3, 131), (131, _STRIDE, 1))
    x.copy_(torch.randn(5, 3, 131))
    return _compare(backend, x, (slice(None),) * 3, torch.randn(5, 3, 131).to(x.dtype))


def _many_neurons(backend: str) -> list[str]:
    neurons = (1 << 31) + 77
    x, ds = (_sparse(STEPS * neurons, torch.bfloat16).view(STEPS, neurons) for _ in range(2))
    part = slice(None), slice(neurons - 64, neurons)
    x[part], ds[part] = torch.randn(2, STEPS, 64).to(x.dtype)
    return _compare(backend, x, part, ds)


def _many_samples(backend: str) -> list[str]:
    shape = STEPS, (1 << 14) + 3, 64, 2048
    x = _sparse(STEPS * shape[1] * 64 * 2048, torch.bfloat16).view(shape)
    x[:, -1, -1, -64:] = torch.randn(STEPS, 64).to(x.dtype)
    part = slice(None), slice(shape[1] - 1, shape[1]), slice(None), slice(None)
    return _compare(backend, x, part, decay=torch.rand(64))


def _outer_channels(backend: str) -> list[str]:
    """A channel of 2^21 neurons, all channels more than 2^31."""
    samples, channels = (1 << 21) + 1, 1024
    x = _sparse(2 * samples * channels, torch.bfloat16).view(2, channels, samples).transpose(1, 2)
    x[:, -64:, -1] = torch.randn(2, 64).to(x.dtype)
    last = slice(samples - 64, samples)
    decay = torch.rand(channels)
    s, state = snnkernels.lif(x, backend=backend, decay=decay)
    want, want_state = snnkernels.lif(x[:, last].clone(), backend="torch", decay=decay)
    pairs = [("s", s[:, last, -1], want[..., -1]), ("v", state.v[last, -1], want_state.v[:, -1])]
    return [name for name, got, expected in pairs if not torch.equal(got, expected)]


# And how many blocks run, the last ones; 0: all.
CASES: dict[str, tuple[Callable[[str], list[str]], int]] = {
    "steps 2^31 elements apart": (_far_steps, 0),
    "samples 2^31 elements apart": (_far_samples, 0),
    "more than 2^31 neurons": (_many_neurons, LAST_BLOCKS),
    "more than 2^31 neurons in samples": (_many_samples, LAST_BLOCKS),
    "more than 2^31 neurons, channels outermost": (_outer_channels, LAST_BLOCKS),
}


def check(name: str, backend: str, machine: Machine) -> list[str]:
    """Run one of `CASES`; gives lines that say what is wrong."""
    torch.manual_seed(0)
    run, machine.last_blocks = CASES[name]
    try:
        with sparse_outputs():
            wrong = [f"{part} differs" for part in run(backend)]
    finally:
        machine.last_blocks = 0
    wrong += [f"found: {finding}" for finding in machine.findings]
    machine.findings.clear()
    return wrong
