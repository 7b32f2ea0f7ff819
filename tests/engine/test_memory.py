"""Memory of earlier outputs, used again."""

from __future__ import annotations

import gc

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
    snnkernels.keep_freed_memory(False)
    assert _core.release_blocks() == 0


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
