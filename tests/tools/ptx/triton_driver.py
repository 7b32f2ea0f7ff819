"""Triton's own way to a launch, up to the driver, which is this file.

``JITFunction.run``, its specialisation of arguments, the compiler and ptxas are the real ones. The
driver says that there is a GPU and hands launches to the simulator; CPU tensors stand for its
memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

from snnkernels.backends import load
from tests.tools.fake_gpus import FakeGpus
from tests.tools.ptx.machine import MOST_SHARED, Argument, Loaded, Machine
from tests.tools.ptx.pointers import uses

_NUMBERS = {
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H",
    "u32": "I", "u64": "Q", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip
_DTYPES = {
    "*fp32": torch.float32,
    "*bf16": torch.bfloat16,
    "*fp16": torch.float16,
    "*fp64": torch.float64,
    "*i32": torch.int32,
    "*i64": torch.int64,
}
_SCRATCH = 2  # parameters behind the kernel's own: global and profile scratch, which none needs


class Driver:
    """What Triton asks of its active driver.

    Args:
        machine: runs the kernels.
        target: compute capability, such as 90.
        gpus: answer for torch.cuda.
    """

    def __init__(self, machine: Machine, target: int, gpus: FakeGpus):
        self.machine, self.target, self.gpus = machine, target, gpus
        self.loaded: dict[int, Loaded] = {}
        self.names: dict[int, str] = {}
        self.streams: list[tuple[int | None, int]] = []  # device and stream of each launch
        self._uses: dict[int, dict[int, int]] = {}
        self._ptx = ""
        self.utils = SimpleNamespace(load_binary=self._load, get_device_properties=_properties)
        self.launcher_cls = self._launcher

    def _launcher(self, src, metadata):
        """Made once for each compiled kernel; called for each launch."""
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError("scratch memory")

        def launch(gx, gy, gz, stream, function, packed, about, enter, leave, *values):
            self.streams.append((self.gpus.current, stream))
            self._launch(src, metadata, (gx, gy, gz), function, values)

        return launch

    def get_current_device(self):
        return self.gpus.current or 0

    def get_current_stream(self, device):
        return self.gpus.streams[device]

    def set_current_device(self, device):
        self.gpus.current = device

    def get_current_target(self):
        return GPUTarget("cuda", self.target, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cuda

    def is_active(self):
        return True

    def install(self) -> Driver:
        """Make it Triton's driver, and let backend "triton" of this process run on CPU tensors."""
        triton.runtime.driver.set_active(self)
        original, driver = CompiledKernel._init_handles, self

        def init_handles(kernel):
            driver._ptx = kernel.asm["ptx"]  # of the binary that `_load` is about to get
            return original(kernel)

        CompiledKernel._init_handles = init_handles
        self.gpus.capability = divmod(self.target, 10)
        load("triton").why_unavailable = lambda *_: None
        self.gpus.install(current=None)
        return self

    def _load(self, name, binary, shared, device):
        if binary[:4] != b"\x7fELF":
            raise ValueError(f"{name} is no machine code")
        handle = len(self.loaded) + 1
        self.loaded[handle] = Loaded(self._ptx, shared)
        self._uses[handle] = uses(self.loaded[handle].kernel)
        self.names[handle] = name
        return handle, handle, 0, 0, 1024  # module, function, registers, spills, most threads

    def _launch(self, src, metadata, grid, function, values) -> None:
        loaded, name = self.loaded[function], self.names[function]
        kernel = loaded.kernel
        data, arguments = b"", []
        flat = list(_flat(src.signature.items(), values))
        if len(flat) + _SCRATCH != len(kernel.parameters):
            raise ValueError(f"{name}: {len(flat)} arguments for {kernel.parameters}")
        for parameter, (argument, kind, value) in zip(kernel.parameters, flat, strict=False):
            data = data.ljust(parameter.offset, b"\0")
            if isinstance(value, Tensor):
                rights = self._uses[function].get(parameter.offset, 0)
                arguments.append(Argument(argument, value, rights))
                data += struct.pack("<Q", value.data_ptr())
                alignment = parameter.pointer_alignment or 1
                if value.data_ptr() % alignment:
                    self.machine.find(name, f"{argument} is not aligned to {alignment} bytes")
                if value.dtype != _DTYPES[kind]:
                    self.machine.find(name, f"{argument} has {value.dtype}, compiled for {kind}")
            else:
                with np.errstate(over="ignore"):  # to infinity, as C has it
                    number = np.float32(value) if kind in ("fp32", "f32") else value
                data += struct.pack("<" + _NUMBERS[kind], number)
        self._check_divisibility(src, name, values)
        threads = 32 * metadata.num_warps
        data = data.ljust(kernel.parameter_bytes, b"\0")
        self.machine.launch(loaded, grid, threads, data, arguments, name)

    def _check_divisibility(self, src, name: str, values) -> None:
        """What the compiler was told of an argument must hold for it."""
        for path, attributes in src.attrs.items():
            value = values
            for place in path:
                value = value[place]
            value = value.data_ptr() if isinstance(value, Tensor) else value
            for what, number in attributes:
                if what == "tt.divisibility" and value % number:
                    self.machine.find(name, f"argument {path} is not divisible by {number}")


def _flat(kinds, values) -> Iterator[tuple[str, str, object]]:
    """Name, type and value of what is handed over; tuples are taken apart, constants left out."""
    for (name, kind), value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            names = getattr(value, "_fields", range(len(kind)))
            yield from _flat([(f"{name}.{n}", k) for n, k in zip(names, kind, strict=True)], value)
        elif kind != "constexpr":
            yield name, kind, value


def _properties(device) -> dict[str, int]:
    return {"max_shared_mem": MOST_SHARED, "multiprocessor_count": 132, "warpSize": 32}
