"""The CUDA kernels, compiled when they are first needed: NVRTC through CuPy, then a cache on disk.

The package carries the texts, ``sources/``, which are those of ``csrc/``. Each kernel is
compiled alone, in about a second, for the GPU at hand; the cache holds it under a hash of all that
it was made from.
"""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from functools import lru_cache
from importlib import resources

from snnkernels.backends.cache import cache_folder
from snnkernels.core.files import write_whole

OLDEST_CUPY = (13, 0)
# NVRTC takes generic lambdas inside device code for functions of the host unless it is told.
OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space")
_EXTRA = "pip install 'snnkernels[cuda-jit]'"


@lru_cache
def sources() -> dict[str, str]:
    """The texts that make the kernels, by name."""
    folder = resources.files("snnkernels") / "backends/cuda/sources"
    return {file.name: file.read_text() for file in sorted(folder.iterdir(), key=lambda f: f.name)}


def why_unavailable() -> str | None:
    """None where kernels can be compiled and launched, else the reason."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is not installed ({_EXTRA}): {error}"
    version = tuple(int(part) for part in cupy.__version__.split(".")[:2])
    if version < OLDEST_CUPY:
        return f"CuPy {cupy.__version__} is too old, {OLDEST_CUPY[0]} or newer is needed ({_EXTRA})"
    try:
        from cupy_backends.cuda.api import runtime
        from cupy_backends.cuda.libs import nvrtc

        toolkit, driver = nvrtc.getVersion(), runtime.driverGetVersion()
    except (ImportError, RuntimeError) as error:
        return f"CuPy finds no NVRTC ({_EXTRA}): {error}"
    if driver == 0:
        return "there is no NVIDIA driver"
    if driver // 1000 < toolkit[0]:
        return (
            f"the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, CuPy's NVRTC is "
            f"{toolkit[0]}.{toolkit[1]}: update the driver, or install the CuPy for CUDA "
            f"{driver // 1000} (cupy-cuda{driver // 1000}x)"
        )
    return None


def compile_kernel(kernel: str, architecture: str) -> tuple[str, bytes]:
    """Compile one kernel; needs neither a GPU nor a driver.

    Args:
        kernel: as a C++ expression, for example
            ``snn::cuda::neuron_fwd_kernel<float, snn::Reset::hard, 4, 8, false>``.
        architecture: such as "sm_90".

    Returns:
        Its mangled name and the machine code (cubin).

    Raises:
        RuntimeError: NVRTC refuses; the message is its log.
    """
    from cupy_backends.cuda.libs import nvrtc

    texts = sources()
    program = nvrtc.createProgram(
        '#include "iir_kernels.cuh"\n#include "ring_kernels.cuh"\n',
        "snnkernels.cu",
        [text.encode() for text in texts.values()],
        [name.encode() for name in texts],
    )
    try:
        nvrtc.addNameExpression(program, kernel)
        try:
            nvrtc.compileProgram(program, (*OPTIONS, f"--gpu-architecture={architecture}"))
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise RuntimeError(f"NVRTC cannot compile {kernel}: {error}\n{log}") from error
        return nvrtc.getLoweredName(program, kernel), nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)


def cached_kernel(kernel: str, architecture: str) -> tuple[str, bytes]:
    """`compile_kernel`, kept on disk. A cache that cannot be written is a warning, no error."""
    from cupy_backends.cuda.libs import nvrtc

    made_from = (*sources().values(), kernel, architecture, *OPTIONS, str(nvrtc.getVersion()))
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()
    path = cache_folder() / f"{key[:40]}.cubin"
    try:
        name, _, code = path.read_bytes().partition(b"\n")
        if code.startswith(b"\x7fELF"):
            return name.decode(), code
    except OSError:
        pass  # not there yet
    name, code = compile_kernel(kernel, architecture)
    try:
        write_whole(path, name.encode() + b"\n" + code)
    except OSError as error:
        warnings.warn(
            f"the cache of compiled CUDA kernels cannot be written ({error}): every process "
            "compiles its own. Set XDG_CACHE_HOME to a folder that can be written",
            stacklevel=2,
        )
    return name, code


@lru_cache
def _function(kernel: str, device: int) -> int:
    """The kernel, loaded on a device."""
    import torch
    from cupy_backends.cuda.api import driver

    major, minor = torch.cuda.get_device_capability(device)
    name, code = cached_kernel(kernel, f"sm_{major}{minor}")
    module = driver.moduleLoadData(code)  # kept for as long as the process runs
    return driver.moduleGetFunction(module, name)


def launch(kernel: str, blocks: int, threads: int, arguments: bytes, stream: int) -> None:
    """Launch a kernel on the current device.

    Raises:
        RuntimeError: NVRTC or the driver refuses; the message names the kernel.
    """
    import torch
    from cupy_backends.cuda.api import driver, runtime

    device = torch.cuda.current_device()
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
    try:
        runtime.setDevice(device)  # this thread may never have called CUDA before
        function = _function(kernel, device)
        driver.launchKernel(
            function, blocks, 1, 1, threads, 1, 1, 0, stream, ctypes.addressof(pointers), 0
        )
    except RuntimeError as error:  # CuPy's are of this kind, and say nothing of the kernel
        raise RuntimeError(f"launch of {kernel} on cuda:{device}: {error}") from error
