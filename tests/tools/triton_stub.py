"""A GPU that is not there: Triton binds and specialises a launch, but compiles and runs nothing.

For processes without TRITON_INTERPRET. The tensors lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from snnkernels import backends
from snnkernels.backends.triton import launch


class _Driver:
    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class _Compiled:
    """A kernel whose launch does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *arguments) -> None: ...

    def run(self, *arguments) -> None: ...


@contextmanager
def no_gpu() -> Iterator[list[tuple[str, dict]]]:
    """Within it, backend "triton" takes CPU tensors, and its launches do nothing.

    Yields:
        A list that gets, for each kernel that would be compiled, its name and its compile-time
        arguments by place.
    """
    compiled = []

    def compile_nothing(self, key, signature, device, constants, *rest):
        compiled.append((self.__name__, constants))
        kernel = self.device_caches[device][0][key] = _Compiled()
        return kernel

    with (
        mock.patch.object(triton.runtime.driver, "_active", _Driver()),
        mock.patch.object(JITFunction, "_do_compile", compile_nothing),
        mock.patch.object(launch, "gpu_class", lambda index: "sm_90"),
        mock.patch.object(launch, "stored_row", lambda *call: None),
        mock.patch.object(backends, "why_unavailable", lambda name, *device: None),
    ):
        yield compiled
