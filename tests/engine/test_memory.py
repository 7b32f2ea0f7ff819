"""Memory of earlier outputs, used again."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

import snnkernels
from snnkernels.core import output_memory as memory

_core = pytest.importorskip("snnkernels._core", reason="the C++ core was not built")
SHAPE = (16, 40_000)  # 2.4 MiB in float32


@pytest.fixture(autouse=True)
def nothing_idle():
    gc.collect()
    _core.release_blocks()


def test_the_next_output_lies_where_the_last_one_did():
    x = torch.ones(SHAPE)
    s, _ = snnkernels.lif(x, backend="cpp")
    place = s.data_ptr()
    other, _ = snnkernels.lif(x, backend="cpp")
    assert other.data_ptr() != place  # s is in use
    alias = s.detach()[3:]
    del s
    third, _ = snnkernels.lif(x, backend="cpp")
    assert third.data_ptr() != place  # and so is a part of it
    del alias
    fourth, _ = snnkernels.lif(x, backend="cpp")
    assert fourth.data_ptr() == place


def test_idle_memory_is_bounded_and_given_back():
    like = torch.empty(0)
    size = memory.REUSED_FROM

    def outputs(*sizes):
        return [memory.empty_strided((n,), (1,), torch.uint8, like) for n in sizes]

    del outputs(size, 2 * size)[:]
    assert _core.release_blocks() == 3 * size
    del outputs(2 * size)[:]
    del outputs(3 * size)[:]  # makes room for itself: nothing has ever needed 5
    assert _core.release_blocks() == 3 * size
    assert _core.release_blocks() == 0
    del outputs(size)[:]
    assert snnkernels.release_freed_memory() == size
    del outputs(size)[:]
    snnkernels.keep_freed_memory(False)
    assert snnkernels.release_freed_memory() == 0


@pytest.fixture
def libc(monkeypatch):
    """What the C library is told, in order; ``release`` stands for the idle outputs."""
    told = []

    class Library:
        def __init__(self, name):
            pass

        def mallopt(self, number, value):
            told.append((number, value))
            return 1

        def malloc_trim(self, pad):
            told.append("trim")

    monkeypatch.setattr(memory.ctypes, "CDLL", Library)
    core = type("Core", (), {"release_blocks": staticmethod(lambda: told.append("release") or 0)})
    monkeypatch.setattr(memory, "_core", core)
    return told


def test_settings_that_were_never_changed_are_left_alone(libc):
    assert snnkernels.keep_freed_memory(False)
    assert libc == ["release", "trim"]


@pytest.mark.parametrize(
    ("environment", "before"),
    [
        ({}, [(-4, 65536), (-1, 128 << 10)]),
        ({"MALLOC_MMAP_MAX_": "7", "MALLOC_TRIM_THRESHOLD_": "9000"}, [(-4, 7), (-1, 9000)]),
    ],
    ids=["defaults", "environment"],
)
def test_settings_come_back_before_memory_is_given_back(libc, monkeypatch, environment, before):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert snnkernels.keep_freed_memory(True)
    assert libc == [(-4, 0), (-1, -1)]
    libc.clear()
    assert snnkernels.keep_freed_memory(False)
    assert libc == [*before, "release", "trim"]
    libc.clear()
    assert snnkernels.keep_freed_memory(False)  # once is enough
    assert libc == ["release", "trim"]


def test_kept_memory_leaves_the_process():
    code = """
import snnkernels, torch

def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) >> 10

snnkernels.keep_freed_memory()
x = torch.ones(64, 1 << 19)  # 128 MiB
s, _ = snnkernels.lif(x, backend="cpp")
before = resident()
del x, s
kept = resident()
snnkernels.keep_freed_memory(False)
print(before - kept, before - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost, given_back = map(int, done.stdout.split())
    assert lost < 32 and given_back > 224  # MiB


def test_too_large_a_block_is_a_memory_error():
    like = torch.empty(0)
    with pytest.raises(MemoryError):
        memory.empty_strided((1 << 58,), (1,), torch.uint8, like)
    for size in (1 << 20, 2 << 20):  # the failure is no measure of what may lie idle
        memory.empty_strided((size,), (1,), torch.uint8, like)
    assert _core.release_blocks() == 2 << 20


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_outputs_are_tensors_like_any_other(layout):
    x = torch.randn(16, 8, 16, 16, 16)
    if layout == "channels_last":
        x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    x.requires_grad_()
    s, state = snnkernels.lif(x, backend="cpp")
    want, _ = snnkernels.lif(x, backend="torch")
    assert s.stride() == x.stride() and not s._is_view()
    s.mul_(2.0).sum().backward()  # of a view that a function returned this would be an error
    assert torch.equal(s, 2 * want) and x.grad.isfinite().all()
    with torch.inference_mode():
        assert torch.equal(snnkernels.lif(x, backend="cpp")[0], want)
    compiled = torch.compile(lambda x: snnkernels.lif(x, backend="cpp")[0], backend="aot_eager")
    assert torch.equal(compiled(x), want)


def test_small_outputs_are_pytorchs():
    x = torch.ones(4, 100)
    snnkernels.lif(x, backend="cpp")
    assert _core.release_blocks() == 0
