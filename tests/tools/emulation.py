"""The CUDA kernels on the CPU: ``backends/cuda.py`` with launches that an emulation takes."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from pathlib import Path

import pytest

from snnkernels import backends
from snnkernels.backends import cuda
from snnkernels.ops import iir as filter_ops
from snnkernels.ops import lif as ops
from tests.tools.native import build
from tests.tools.targets import Target

ON_HOST = Target("cuda")  # on CPU tensors, within the fixture `emulator`


class Emulator:
    """Runs launches on the CPU and remembers which kernels it ran."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library))
        self.library.kernel_names.restype = ctypes.c_char_p
        self.library.launch.argtypes = [
            ctypes.c_char_p,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_char_p,
            ctypes.c_size_t,
        ]
        self.launched: list[str] = []

    def kernel_names(self) -> list[str]:
        return self.library.kernel_names().decode().split("\n")[:-1]

    def launch(self, kernel, blocks, threads, arguments, stream) -> None:
        self.launched.append(kernel)
        status = self.library.launch(kernel.encode(), blocks, threads, arguments, len(arguments))
        assert status == 0, f"{('', 'there is no kernel', 'wrong arguments for')[status]} {kernel}"


@pytest.fixture(scope="session")
def emulator_library() -> Path:
    return build("cuda_on_host")


@pytest.fixture
def emulator(emulator_library, monkeypatch):
    """``backend="cuda"`` works on CPU tensors; ``multiprocessors`` sets the size of the GPU."""
    machine = Emulator(emulator_library)
    machine.multiprocessors = 132

    def choose(name, *rest):  # where "cuda" may run is not the matter
        return name if name == "cuda" else backends.choose(name, *rest)

    monkeypatch.setattr(ops, "choose", choose)
    monkeypatch.setattr(filter_ops, "choose", choose)
    monkeypatch.setattr(
        cuda,
        "_target",
        lambda x: cuda.Target(machine.launch, machine.multiprocessors, 0, nullcontext()),
    )
    return machine
