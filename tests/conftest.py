"""What a run covers, said in its header, and the fixtures that the tests share."""

from __future__ import annotations

import pytest
import torch

from tests.tools.targets import PLACES, TARGETS  # before anything that may import triton  # isort: skip

from snnkernels.backends import BACKENDS, why_unavailable
from snnkernels.backends.cpp import _core
from snnkernels.ops import _time_chunks
from tests.tools.calls import OPS
from tests.tools.steps import ISAS

DEVICES = ("cpu", "cuda")


def pytest_report_header() -> list[str]:
    """Say which backends this run covers, and why it leaves others out."""
    lines = [f"kernels under test: {', '.join(map(str, TARGETS))}"]
    for device in DEVICES:
        for name in BACKENDS:
            reason = why_unavailable(name, device)
            if device == "cuda" and not torch.cuda.is_available():
                reason = "no CUDA device"
            if reason:
                lines.append(f"NOT tested: backend {name} on {device}: {reason}")
    return lines


@pytest.fixture(autouse=True)
def _seed_and_threads():
    """One thread: the bits are the same, and small work on a busy machine is faster so."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    """Tests with `target` or `place` run on all of them; last, so that they vary fastest."""
    for name, values in (("target", TARGETS), ("place", PLACES)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [t.param() for t in values], indirect=True)


@pytest.fixture
def target(request):
    """A backend with kernels on a device; on the CPU, with one instruction set."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=[("torch", None), *(("cpp", isa) for isa in ISAS)], ids=str)
def backend(request):
    """A backend of fused neurons; on the CPU, with one instruction set."""
    name, isa = request.param
    if isa is not None:
        _core.use_isa(isa)
    yield name
    if isa is not None:
        _core.use_isa(None)


@pytest.fixture
def place(request):
    """A backend, "torch" too, on a device."""
    return request.param


@pytest.fixture
def short(monkeypatch):
    """The filter cuts short calls up too, into chunks of at least 8 steps."""
    widest = dict.fromkeys(DEVICES, 500)
    for name, value in (("LEAST_STEPS", 1), ("MOST_NEURONS", widest), ("SHORTEST", 8)):
        monkeypatch.setattr(_time_chunks, name, value)


@pytest.fixture(params=(*OPS, "iir in chunks of time"))
def op(request):
    """Every way to call a public op; see `tests.tools.calls`."""
    if request.param not in OPS:
        request.getfixturevalue("short")
    return OPS[request.param.removesuffix(" in chunks of time")]


@pytest.fixture
def nan_filled(monkeypatch):
    """Fresh tensors are full of NaN: an element that no kernel writes shows."""

    def filling(make):
        def filled(*arguments, **keywords):
            tensor = make(*arguments, **keywords)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return filled

    for name in ("empty", "empty_like", "empty_strided", "frombuffer"):
        monkeypatch.setattr(torch, name, filling(getattr(torch, name)))
