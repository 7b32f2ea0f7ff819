"""Runs decoded kernels on CPU tensors that stand for a GPU's memory, and keeps what was found."""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tests.tools.ptx import library
from tests.tools.ptx.decoder import PARAMETER_BASE, Kernel, decode
from tests.tools.ptx.listing import entries

READ, WRITE = 1, 2  # simulator.h: Right
SHADOWED = 256 << 20  # bytes of a buffer up to which every byte is followed
MOST_SHARED = 227 * 1024  # bytes of shared memory of a block
MOST_BLOCKS = (2**31 - 1, 65535, 65535)  # along each axis of a grid
COUNTS = ("instructions", "global loads", "global stores", "shared accesses", "equal stores")


@dataclass
class Finding:
    """Something that a kernel must not do: what, and where."""

    kernel: str
    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what} {self.where}".rstrip()


@dataclass
class Argument:
    """A tensor that a kernel may touch."""

    name: str
    tensor: Tensor
    rights: int


class Loaded:
    """A kernel in the simulator.

    Attributes:
        kernel: decoded.
        key: a hash of its text.
        hits: how often each instruction ran.
    """

    def __init__(self, text: str, shared_bytes: int = 0):
        (entry,) = entries(text).values()
        self.key = hashlib.sha256(entry.encode()).hexdigest()[:12]
        self.kernel: Kernel = decode(entry, shared_bytes)
        self.hits = np.zeros(len(self.kernel.code), dtype=np.uint64)
        self._handle = self._original = self._make(self.kernel.code)

    def _make(self, code: np.ndarray) -> int:
        code = np.ascontiguousarray(code)
        make = library.load().simulator_new
        return make(code.ctypes.data, len(code), self.kernel.registers)

    @property
    def handle(self) -> int:
        """The simulator's object for it."""
        return self._handle

    def replace(self, code: np.ndarray) -> None:
        """Run other code from now on, until `restore`."""
        self.restore()
        self._handle = self._make(code)

    def restore(self) -> None:
        """Run its own code again."""
        if self._handle != self._original:
            library.load().simulator_free(self._handle)
            self._handle = self._original


@dataclass
class Machine:
    """Launches kernels one after the other.

    Attributes:
        seed: of the order in which threads run; grows with each launch.
        ulps: how far approximate instructions may lie from the value rounded to nearest.
        limit: instructions that a thread may run.
        last_blocks: run only so many blocks, the last ones; 0: all.
        may_fuse: sums and products without a rounding are no finding.
        findings: what was found.
        launches: how many of each kernel.
        counts: of what the simulator did.
    """

    seed: int = 0
    ulps: int = 0
    limit: int = 20_000_000
    last_blocks: int = 0
    may_fuse: bool = False
    findings: list[Finding] = field(default_factory=list)
    launches: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)

    def find(self, kernel: str, what: str, where: str = "") -> None:
        self.findings.append(Finding(kernel, what, where))

    def launch(
        self,
        loaded: Loaded,
        grid: tuple[int, int, int],
        threads: int,
        parameters: bytes,
        arguments: list[Argument],
        label: str,
    ) -> None:
        """Run a kernel.

        Args:
            loaded: the kernel.
            grid: blocks along each axis.
            threads: of a block.
            parameters: bytes of the kernel's parameters.
            arguments: all that it may touch.
            label: names the kernel in findings and counts.
        """
        if not self._fits(loaded.kernel, grid, threads, parameters, label):
            return
        simulator, handle = library.load(), loaded.handle
        simulator.simulator_clear(handle)
        for variable in loaded.kernel.shared.values():
            simulator.simulator_add_symbol(handle, variable.address, variable.bytes)
        buffers = list(_buffers(arguments))
        for buffer in buffers:
            buffer.add(handle)
        self.seed += 1
        blocks = grid[0] * grid[1] * grid[2]
        first = max(0, blocks - self.last_blocks) if self.last_blocks else 0
        run = library.Run(
            parameters,
            len(parameters),
            PARAMETER_BASE,
            self.limit,
            library.Grid((ctypes.c_uint32 * 3)(*grid), threads, first, blocks),
            self.seed,
            self.ulps,
        )
        simulator.simulator_run(handle, ctypes.byref(run))
        self._collect(loaded, arguments, label)
        if not first:
            for buffer in buffers:
                for address, count in buffer.unwritten():
                    where = _place(arguments, address)
                    self.find(label, f"{count} bytes of an output are not written", where)

    def _fits(self, kernel: Kernel, grid, threads: int, parameters: bytes, label: str) -> bool:
        """Whether it can run at all; what is wrong with the launch is found."""
        before = len(self.findings)
        allowed = threads == kernel.threads if kernel.exact_threads else threads <= kernel.threads
        if kernel.threads and not allowed:
            self.find(label, f"{threads} threads; it was compiled for {kernel.threads}")
        if kernel.unrounded and not self.may_fuse:
            self.find(label, "sums or products that may be fused", kernel.unrounded[0])
        shared = sum(variable.bytes for variable in kernel.shared.values())
        if shared > MOST_SHARED:
            self.find(label, f"{shared} bytes of shared memory")
        runs = len(self.findings) == before
        if kernel.parameter_bytes != len(parameters):
            wanted = kernel.parameter_bytes
            self.find(label, f"{len(parameters)} bytes of parameters; it takes {wanted}")
            runs = False
        if not all(0 < n <= most for n, most in zip(grid, MOST_BLOCKS, strict=True)):
            self.find(label, f"a grid of {grid}")
            runs = False
        return runs

    def _collect(self, loaded: Loaded, arguments: list[Argument], label: str) -> None:
        simulator, kernel = library.load(), loaded.kernel
        numbers, text = np.zeros(5, dtype=np.int64), ctypes.c_char_p()
        statements = dict(zip(kernel.code["line"].tolist(), kernel.text, strict=True))
        k = 0
        while simulator.simulator_finding(
            loaded.handle, k, numbers.ctypes.data, ctypes.byref(text)
        ):
            line, block, thread, address, size = numbers.tolist()
            source = max((n for n in kernel.places if n <= line), default=None)
            where = [f"`{statements.get(line, '')}`", kernel.places.get(source, "")]
            where += [f"block {block} thread {thread}, {size} at {address & (1 << 64) - 1:#x}"]
            where += [_place(arguments, address)]
            self.find(label, text.value.decode(), " ".join(filter(None, where)))
            k += 1
        counts = np.zeros(len(COUNTS), dtype=np.uint64)
        simulator.simulator_counts(loaded.handle, counts.ctypes.data)
        self.counts.update(dict(zip(COUNTS, counts.tolist(), strict=True)))
        hits = np.zeros_like(loaded.hits)
        simulator.simulator_hits(loaded.handle, hits.ctypes.data)
        loaded.hits = np.maximum(loaded.hits, hits)
        self.launches[label] += 1


@dataclass
class _Buffer:
    """A run of memory that arguments share."""

    base: int
    size: int
    whole: int = 0  # rights of every byte, where single bytes are not followed
    rights: np.ndarray | None = None
    defined: np.ndarray | None = None

    def add(self, handle: int) -> None:
        pointers = [None if a is None else a.ctypes.data for a in (self.rights, self.defined)]
        library.load().simulator_add_buffer(handle, self.base, self.size, *pointers, self.whole)

    def unwritten(self) -> Iterator[tuple[int, int]]:
        """Address of the first byte of an output that has no value, and how many there are."""
        if self.rights is not None:
            missing = np.flatnonzero((self.rights & WRITE != 0) & (self.defined == 0))
            if len(missing):
                yield self.base + int(missing[0]), len(missing)


def _buffers(arguments: list[Argument]) -> Iterator[_Buffer]:
    """Runs of memory that do not overlap; only the elements of the very tensors have rights."""
    spans = sorted((*extent(a.tensor), k) for k, a in enumerate(arguments) if a.tensor.numel())
    groups: list[tuple[int, int, list[Argument]]] = []
    for begin, end, k in spans:
        if groups and begin < groups[-1][1]:
            first, last, members = groups[-1]
            groups[-1] = (first, max(last, end), [*members, arguments[k]])
        else:
            groups.append((begin, end, [arguments[k]]))
    for begin, end, members in groups:
        size = end - begin
        if size > SHADOWED:
            whole = 0
            for argument in members:
                whole |= argument.rights
            yield _Buffer(begin, size, whole)
            continue
        rights, defined = np.zeros((2, size), dtype=np.uint8)
        for argument in members:
            mask = _bytes_of(argument.tensor)
            at = argument.tensor.data_ptr() - begin
            rights[at : at + len(mask)][mask] |= argument.rights
            if not argument.rights & WRITE:
                defined[at : at + len(mask)][mask] = 1
        yield _Buffer(begin, size, 0, rights, defined)


def extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the byte behind its last."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _bytes_of(tensor: Tensor) -> np.ndarray:
    begin, end = extent(tensor)
    mask = torch.zeros(end - begin, dtype=torch.uint8)
    size = tensor.element_size()
    strides = (*(s * size for s in tensor.stride()), 1)
    mask.as_strided((*tensor.shape, size), strides).fill_(1)
    return mask.numpy().astype(bool)


def _place(arguments: list[Argument], address: int) -> str:
    """Where an address lies among the arguments."""
    if address < 4096 or not arguments:
        return ""
    for argument in arguments:
        begin, end = extent(argument.tensor)
        if begin <= address < end:
            about = f"{list(argument.tensor.shape)} of {argument.tensor.dtype}"
            return f"in {argument.name} {about} at byte {address - begin}"
    near = min(arguments, key=lambda a: min(abs(address - e) for e in extent(a.tensor)))
    begin, end = extent(near.tensor)
    if address >= end:
        return f"{address - end} bytes behind the end of {near.name}"
    return f"{begin - address} bytes before {near.name}"
