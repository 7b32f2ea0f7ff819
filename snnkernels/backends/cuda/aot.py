"""The CUDA kernels that were compiled when the package was built: ``snnkernels._cuda``."""

from __future__ import annotations

try:
    from snnkernels import _cuda
except ImportError as error:  # built without nvcc
    _cuda, _missing = None, str(error)


def why_unavailable() -> str | None:
    """None where these kernels can be launched, else the reason."""
    if _cuda is None:
        return f"the package was built without nvcc ({_missing})"
    try:
        driver, runtime = _cuda.driver_version(), _cuda.runtime_version()
    except RuntimeError as error:
        return f"the driver does not answer ({error})"
    if driver == 0:
        return "there is no NVIDIA driver"
    if driver // 1000 < runtime // 1000:
        return (
            f"the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}, "
            f"the kernels were built with CUDA {runtime // 1000}.{runtime % 1000 // 10}: "
            "update the driver, or build with an older nvcc"
        )
    return None


def launch(kernel: str, blocks: int, threads: int, arguments: bytes, stream: int) -> None:
    """Launch a kernel of ``_cuda.kernel_names()`` on the current device."""
    _cuda.launch(kernel, blocks, threads, arguments, stream)
