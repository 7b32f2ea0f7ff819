"""The way from a call to the driver, against doubles of torch.cuda and of the driver.

A double shows which device, stream, module and function a launch gets, in which order the driver is
asked, and what a call asks of PyTorch meanwhile. It cannot show that the driver takes the launch,
that a stream of PyTorch orders it, that a graph replays it, or how long anything takes:
``tests/gpu/test_gpu.py`` has these.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
from importlib.util import find_spec

import pytest
import torch

import snnkernels
from snnkernels.backends import cuda
from snnkernels.backends.cuda import aot, jit
from snnkernels.ops import iir as iir_ops
from snnkernels.ops import lif as lif_ops
from tests.tools.fake_gpus import FakeGpus, Memory
from tests.tools.native import ROOT

STREAMS = {0: 0x100, 1: 0x111}


class DriverError(RuntimeError):
    """As CuPy raises it."""


class Driver:
    """The driver as CuPy shows it: remembers what it is asked, and refuses what makes no sense.

    Attributes:
        calls: names of its functions, in order.
        launches: kernel, device and stream of each.
        fails: name of the function that fails.
    """

    CUDADriverError = DriverError

    def __init__(self):
        self.device, self.calls, self.launches, self.fails = None, [], [], None
        self.modules: list[tuple[int, str]] = []  # device and kernel

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.fails == name:
            raise DriverError(f"CUDA_ERROR_OF_{name}")

    def setDevice(self, device):
        self._called("setDevice")
        self.device = device

    def moduleLoadData(self, code):
        self._called("moduleLoadData")
        self.modules.append((self.device, code.removeprefix(b"\x7fELF").decode()))
        return len(self.modules) - 1

    def moduleGetFunction(self, module, name):
        self._called("moduleGetFunction")
        assert name == "mangled"
        return module

    def launchKernel(self, function, *rest):
        self._called("launchKernel")
        device, kernel = self.modules[function]
        assert device == self.device, "the function belongs to another device"
        self.launches.append((kernel, device, rest[7]))


class Machine:
    """Two GPUs, their memory and their driver."""

    def __init__(self, monkeypatch):
        self.gpus, self.driver = FakeGpus(count=2), Driver()
        self.gpus.install(monkeypatch.setattr)
        self.gpus.streams.update(STREAMS)
        self.memory = Memory(self.gpus, monkeypatch.setattr)

    def x(self, device: int = 0, steps: int = 20, neurons: int = 64):
        return self.memory.put(torch.randn(steps, neurons), device).requires_grad_()


@pytest.fixture(params=("ahead of time", "run time"))
def machine(request, monkeypatch, tmp_path):
    found = Machine(monkeypatch)
    module = jit if request.param == "run time" else aot
    for ops in (lif_ops, iir_ops):
        monkeypatch.setattr(ops, "choose", lambda name, *_: name)
    monkeypatch.setattr(cuda, "_way", lambda: (request.param, module, ""))
    if module is jit:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0))
        api = types.SimpleNamespace(driver=found.driver, runtime=found.driver)
        for name, fake in (("api", api), ("libs", types.SimpleNamespace(nvrtc=nvrtc))):
            monkeypatch.setitem(sys.modules, f"cupy_backends.cuda.{name}", fake)
        compiled = lambda kernel, architecture: ("mangled", b"\x7fELF" + kernel.encode())  # noqa: E731
        monkeypatch.setattr(jit, "compile_kernel", compiled)
        jit._function.cache_clear()
    else:

        def launch(kernel, blocks, threads, arguments, stream):
            found.driver._called("launchKernel")
            found.driver.launches.append((kernel, found.gpus.current, stream))

        monkeypatch.setattr(aot, "_cuda", types.SimpleNamespace(launch=launch))
    yield found
    jit._function.cache_clear()


def general(x):
    lags = torch.ones(2, device=x.device)  # numbers would have to come from the host
    options = {"trace_decay": 0.6, "gain": 0.7, "synapse": (lags * 0.4, lags)}
    return snnkernels.lif(x, reset="trace", backend="cuda", **options)[0]


def filtered(x):
    lags = torch.ones(2, device=x.device)
    return snnkernels.iir(x, lags * 0.4, lags, sequential=True, backend="cuda")[0]


CALLS = {
    "plain": lambda x: snnkernels.lif(x, backend="cuda")[0],
    "learnt": lambda x: snnkernels.lif(
        x, decay=torch.full((), 0.9, device=x.device).requires_grad_(), backend="cuda"
    )[0],
    "general": general,
    "filter": filtered,
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def forward_and_backward(call, x) -> None:
    out = call(x)
    torch.autograd.grad(out, x, torch.ones_like(out))


@calls
def test_device_and_stream(machine, call):
    """Those of x, whatever the current device; that one is the current one afterwards."""
    for device in (0, 1, 0):
        machine.driver.launches.clear()
        forward_and_backward(call, machine.x(device))
        assert len(machine.driver.launches) >= 2
        assert {launch[1:] for launch in machine.driver.launches} == {(device, STREAMS[device])}
        assert machine.gpus.current == 0
    machine.gpus.current, machine.gpus.streams[1] = 1, 0x222  # another stream is the current one
    machine.driver.launches.clear()
    forward_and_backward(call, machine.x(1))
    assert {launch[1:] for launch in machine.driver.launches} == {(1, 0x222)}


@calls
def test_modules_are_loaded_once_on_each_device(machine, call):
    for device in (0, 1):
        for _ in range(2):
            forward_and_backward(call, machine.x(device))
    loaded = machine.driver.modules
    assert len(loaded) == len(set(loaded))
    if loaded:
        assert {d for d, _ in loaded} == {0, 1}
        assert {k for d, k in loaded if d == 0} == {k for d, k in loaded if d == 1}


@calls
def test_a_call_that_was_made_before_can_be_captured(machine, call):
    """The driver is asked for launches alone, nothing waits, no values come from the host."""
    forward_and_backward(call, machine.x())
    machine.driver.calls.clear(), machine.gpus.waits.clear()
    x, g = machine.x(), machine.memory.put(torch.ones(20, 64))
    before = machine.memory.made
    torch.autograd.grad(call(x), x, g)
    assert set(machine.driver.calls) <= {"setDevice", "launchKernel"}
    assert machine.driver.calls.count("launchKernel") >= 2
    assert machine.gpus.waits == []
    assert machine.memory.made > before  # by PyTorch's allocator, which a capture may use


def test_the_double_notices_what_a_capture_forbids(machine):
    x = machine.x()
    x.sum().item()
    torch.tensor([1.0], device=x.device)
    torch.cuda.synchronize()
    assert machine.gpus.waits == ["item", "copy from the host", "synchronize"]


@pytest.mark.parametrize(
    ("machine", "function"),
    [
        ("run time", "moduleLoadData"),
        ("run time", "moduleGetFunction"),
        ("run time", "launchKernel"),
        ("ahead of time", "launchKernel"),
    ],
    indirect=["machine"],
)
def test_an_error_of_the_driver_names_the_kernel(machine, function):
    machine.driver.fails = function
    with pytest.raises(RuntimeError, match=f"CUDA_ERROR_OF_{function}") as caught:
        CALLS["plain"](machine.x(1))
    if cuda._way()[1] is jit:  # the other one's name is put in by python/cuda_bindings.cpp
        assert "snn::cuda::neuron_fwd_kernel<float" in str(caught.value)
    assert machine.gpus.current == 0, "the error left another device behind"


def test_a_driver_that_cannot_say_its_version_is_a_reason(monkeypatch):
    def fails():
        raise RuntimeError("driver version: unknown error")

    monkeypatch.setattr(aot, "_cuda", types.SimpleNamespace(driver_version=fails))
    assert "driver version: unknown error" in aot.why_unavailable()


TRITON = """
import torch
from tests.tools.fake_gpus import FakeGpus, Memory
from tests.tools.ptx.machine import Machine
from tests.tools.ptx.triton_driver import Driver
import snnkernels
from snnkernels.ops import lif
gpus = FakeGpus(count=2)
driver = Driver(Machine(), 90, gpus).install()
gpus.current = 0
gpus.streams.update({0: 0x100, 1: 0x111})
memory = Memory(gpus, setattr)
lif.choose = lambda name, *_: name
for device in (1, 0, 1):
    loaded, before = len(driver.loaded), len(driver.streams)
    x = memory.put(torch.randn(20, 64), device)
    snnkernels.lif(x, backend="triton")
    assert driver.streams[before:] == [(device, (0x100, 0x111)[device])], driver.streams
    assert gpus.current == 0 and gpus.waits == [], gpus.waits
    print(device, len(driver.loaded) - loaded)
assert not driver.machine.findings, driver.machine.findings
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_on_two_devices():
    """Each launch gets the device and the stream of x; a kernel is loaded once on each device."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", TRITON], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:3] == ["1 1", "0 1", "1 0"]
