"""Backend "cuda" where something is missing: one sentence that names it."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from snnkernels.backends import cuda
from snnkernels.backends.cuda import aot as cuda_aot
from snnkernels.backends.cuda import jit as cuda_jit


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch says that there is a GPU; its compute capability can be set."""
    machine = types.SimpleNamespace(capability=(9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: machine.capability)
    cuda._way.cache_clear()
    yield machine
    cuda._way.cache_clear()


def fake_cupy(monkeypatch, version="14.2.0", toolkit=(13, 5), driver=13000):
    """A CuPy that only answers questions about versions."""
    runtime = types.SimpleNamespace(driverGetVersion=lambda: driver)
    nvrtc = types.SimpleNamespace(getVersion=lambda: toolkit)
    names = {
        "cupy": types.SimpleNamespace(__version__=version),
        "cupy_backends.cuda.api": types.SimpleNamespace(runtime=runtime),
        "cupy_backends.cuda.libs": types.SimpleNamespace(nvrtc=nvrtc),
    }
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, name, module)
    return nvrtc


class Module:
    """What ``snnkernels._cuda`` says of versions."""

    def __init__(self, driver: int):
        self.driver_version, self.runtime_version = lambda: driver, lambda: 13000


def test_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU" in cuda.why_unavailable("cuda")
    assert "CUDA tensors only" in cuda.why_unavailable("cpu")


def test_an_old_gpu(gpu):
    gpu.capability = (7, 5)
    reason = cuda.why_unavailable("cuda")
    assert "7.5" in reason and "8.0" in reason and "torch" in reason


def test_neither_way(gpu, monkeypatch):
    monkeypatch.setattr(cuda_aot, "_cuda", None)
    monkeypatch.setattr(cuda_aot, "_missing", "No module named 'snnkernels._cuda'", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    reason = cuda.why_unavailable("cuda")
    assert "without nvcc" in reason and "snnkernels[cuda-jit]" in reason
    assert cuda.way() is None


@pytest.mark.parametrize(
    ("driver", "found"), [(0, "no NVIDIA driver"), (12080, "CUDA 12.8"), (13010, None)]
)
def test_the_driver_of_the_built_module(monkeypatch, driver, found):
    monkeypatch.setattr(cuda_aot, "_cuda", Module(driver))
    reason = cuda_aot.why_unavailable()
    assert reason is None if found is None else found in reason


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"version": "12.3.0"}, "CuPy 12.3.0 is too old"),
        ({"driver": 0}, "no NVIDIA driver"),
        ({"driver": 12040}, "cupy-cuda12x"),
        ({}, None),
    ],
)
def test_cupy_and_its_driver(monkeypatch, versions, found):
    fake_cupy(monkeypatch, **versions)
    reason = cuda_jit.why_unavailable()
    assert reason is None if found is None else found in reason


def test_the_built_module_comes_first(gpu, monkeypatch):
    fake_cupy(monkeypatch)
    monkeypatch.setattr(cuda_aot, "_cuda", Module(13000))
    assert cuda.why_unavailable("cuda") is None and cuda.way() == "ahead of time"
    cuda._way.cache_clear()
    monkeypatch.setattr(cuda_aot, "_cuda", Module(12000))
    assert cuda.why_unavailable("cuda") is None and cuda.way() == "run time"


@pytest.fixture
def compiler(monkeypatch):
    """Counts compilations instead of making any."""
    fake_cupy(monkeypatch)
    asked = []

    def compile_kernel(kernel, architecture):
        asked.append((kernel, architecture))
        return "mangled", b"\x7fELF" + kernel.encode()

    monkeypatch.setattr(cuda_jit, "compile_kernel", compile_kernel)
    return asked


def test_kernels_are_compiled_once(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cuda_jit.cached_kernel("a", "sm_90")
    assert cuda_jit.cached_kernel("a", "sm_90") == first == ("mangled", b"\x7fELFa")
    assert len(compiler) == 1
    cuda_jit.cached_kernel("a", "sm_80"), cuda_jit.cached_kernel("b", "sm_90")
    changed = cuda_jit.sources() | {"neuron.h": "another text"}
    monkeypatch.setattr(cuda_jit, "sources", lambda: changed)
    cuda_jit.cached_kernel("a", "sm_90")
    assert len(compiler) == 4
    for file in (tmp_path / "snnkernels").iterdir():  # a file that was cut off is made again
        file.write_bytes(b"mangled\n")
    assert cuda_jit.cached_kernel("a", "sm_90") == first
    assert len(compiler) == 5


def test_a_cache_that_cannot_be_written(compiler, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME"):
        assert cuda_jit.cached_kernel("a", "sm_90") == ("mangled", b"\x7fELFa")
