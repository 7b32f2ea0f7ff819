"""The compiled GPU kernels in the simulator of PTX: a short sample, and calls it must not miss.

``make ptx`` runs the long sample.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.tools.native import ROOT
from tests.tools.ptx.campaign import table
from tests.tools.ptx.listing import Unknown
from tests.tools.ptx.machine import READ, WRITE, Argument, Loaded, Machine
from tests.tools.ptx.pointers import uses

# What is needed to compile for a GPU, and the calls of the short sample.
COMPILERS = {
    "nvrtc": ("cupy", ["--cases", "60"]),
    "triton": ("triton", ["--cases", "4", "--repeats", "5"]),
}
ERRORS = {"nvrtc": "1", "triton": "0"}  # --ulps


def _process(compiler: str, *arguments: str) -> subprocess.Popen:
    """Compiling for a GPU needs triton imported without its interpreter: another process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.tools.ptx", compiler, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def results():
    """Output of each compiler's two processes; the compilers work side by side."""
    found = {}
    here = [name for name, (module, _) in COMPILERS.items() if find_spec(module)]
    for how in ("fixed", "sample"):
        started = {}
        for name in here:
            more = ["--fixed"] if how == "fixed" else COMPILERS[name][1] + ["--ulps", ERRORS[name]]
            started[name] = _process(name, *more)
        for name, process in started.items():
            out, err = process.communicate()
            found[name, how] = process.returncode, out, err
    return found


@pytest.fixture(params=COMPILERS)
def compiler(request):
    module = COMPILERS[request.param][0]
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return request.param


def test_a_sample_equals_the_reference(compiler, results):
    status, out, err = results[compiler, "sample"]
    assert status == 0, out[-4000:] + err[-4000:]
    assert "wrong: 0" in out


def test_no_call_does_what_it_must_not(compiler, results):
    _, out, err = results[compiler, "fixed"]
    lines = dict(map(json.loads, out.splitlines()))
    assert len(lines) > 10, err[-4000:]
    wrong = {name: what for name, what in lines.items() if what}
    assert not wrong, json.dumps(wrong, indent=1)


def test_the_docs_have_the_counts_of_the_record():
    record = json.loads((ROOT / "docs" / "gpu-proof.json").read_text())
    assert table(record) in (ROOT / "docs" / "gpu-proof.md").read_text()


# --- the simulator itself: each fault in a few lines of PTX is found, and nothing else ------------

THREADS = 64
KERNEL = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 .ptr .align 1 k_param_0, .param .u64 .ptr .align 1 k_param_1)
.reqntid {threads}
{{
  .reg .pred %p<9>; .reg .b32 %r<19>; .reg .f32 %f<9>; .reg .b64 %rd<19>;
  .shared .align 16 .b8 memory[256];
  ld.param.u64 %rd1, [k_param_0]; cvta.to.global.u64 %rd1, %rd1;
  ld.param.u64 %rd2, [k_param_1]; cvta.to.global.u64 %rd2, %rd2;
  mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;  // x[i], y[i]
  mov.u32 %r2, memory; shl.b32 %r3, %r1, 2; add.s32 %r4, %r2, %r3;  // memory[i]
  xor.b32 %r5, %r3, 252; add.s32 %r6, %r2, %r5;  // memory[63 - i]
  {body}
  ret;
}}
"""
COPY = "ld.global.f32 %f1, [%rd4]; st.global.f32 [%rd5], %f1;"
EXCHANGE = "ld.global.f32 %f1, [%rd4]; st.shared.f32 [%r4], %f1; {} ld.shared.f32 %f2, [%r6];"
EXCHANGE += " st.global.f32 [%rd5], %f2;"
ASYNC = "shl.b32 %r7, %r1, 4; setp.lt.u32 %p1, %r1, 16; add.s32 %r8, %r2, %r7;"
ASYNC += " mul.wide.u32 %rd6, %r7, 1; add.s64 %rd7, %rd1, %rd6;"
ASYNC += " @%p1 cp.async.cg.shared.global [%r8], [%rd7], 16; cp.async.commit_group; {}"
ASYNC += " bar.sync 0; ld.shared.f32 %f2, [%r4]; st.global.f32 [%rd5], %f2;"


def run(body: str, threads: int = THREADS) -> tuple[Machine, torch.Tensor, torch.Tensor]:
    """Run a kernel from x to y, 64 numbers each."""
    machine, x, y = Machine(limit=1000), torch.randn(THREADS), torch.full((THREADS,), 7.0)
    loaded = Loaded(KERNEL.format(body=body, threads=threads))
    arguments = [Argument("x", x, READ), Argument("y", y, READ | WRITE)]
    parameters = x.data_ptr().to_bytes(8, "little") + y.data_ptr().to_bytes(8, "little")
    machine.launch(loaded, (1, 1, 1), threads, parameters, arguments, "k")
    return machine, x, y


@pytest.mark.parametrize(
    ("body", "reverse"),
    [
        (COPY, False),
        (EXCHANGE.format("bar.sync 0;"), True),
        (ASYNC.format("cp.async.wait_group 0;"), False),
    ],
)
def test_a_right_kernel(body, reverse):
    machine, x, y = run(body)
    assert machine.findings == []
    assert torch.equal(y, x.flip(0) if reverse else x)


FAULTS = {
    "load outside": (COPY.replace("[%rd4]", "[%rd4+4]"), "load outside of every buffer"),
    "store outside": (COPY.replace("[%rd5]", "[%rd5+4]"), "store outside of every buffer"),
    "misaligned": (COPY.replace("[%rd4]", "[%rd4+2]"), "misaligned global load"),
    "no output": (COPY.replace("[%rd5]", "[%rd4]"), "store to bytes that are no output"),
    "not written": (f"setp.lt.u32 %p1, %r1, 63; @!%p1 bra L; {COPY} L:", "4 bytes of an output"),
    "undefined": ("st.global.f32 [%rd5], %f1;", "store of undefined bits"),
    "undefined address": (
        "add.s64 %rd5, %rd5, %rd9; " + COPY,
        "the address of a store is undefined",
    ),
    "undefined branch": (f"@%p1 bra L; L: {COPY}", "the guard of an instruction is undefined"),
    "two writers": (COPY.replace("[%rd5]", "[%rd2]"), "race: two threads store"),
    "no barrier": (EXCHANGE.format(""), "race: shared"),
    "barrier of some": (
        EXCHANGE.format("setp.lt.u32 %p1, %r1, 32; @%p1 bra L; bar.sync 0; L:"),
        "a barrier that threads which have ended do not reach",
    ),
    "a copy that nobody waits for": (ASYNC.format(""), "asynchronous copy is not complete"),
    "a copy that is waited for too late": (
        ASYNC.format("cp.async.wait_group 1;"),
        "asynchronous copy is not complete",
    ),
    "what may be fused": (
        "ld.global.f32 %f1, [%rd4]; add.f32 %f1, %f1, %f1; st.global.f32 [%rd5], %f1;",
        "sums or products that may be fused",
    ),
    "an endless loop": (f"L: bra L; {COPY}", "an endless loop"),
    "shared memory": (
        "ld.shared.f32 %f1, [%r4+256]; " + COPY,
        "load outside of shared memory",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    body, what = FAULTS[name]
    machine, *_ = run(body)
    assert any(what in str(finding) for finding in machine.findings), machine.findings


def test_another_number_of_threads_is_found():
    machine = Machine()
    loaded = Loaded(KERNEL.format(body=COPY, threads=THREADS))
    machine.launch(loaded, (1, 1, 1), 32, bytes(16), [], "k")
    assert "32 threads; it was compiled for 64" in str(machine.findings[0])
    machine.launch(loaded, (1, 1, 1), THREADS, bytes(8), [], "k")
    assert "8 bytes of parameters; it takes 16" in str(machine.findings[-1])


@pytest.mark.parametrize(
    "line", ["atom.global.add.f32 %f1, [%rd4], %f1;", "add.rn.ftz.what.f32 %f1, %f1, %f1;", "add"]
)
def test_what_is_not_modelled_is_refused(line):
    with pytest.raises(Unknown):
        Loaded(KERNEL.format(body=line, threads=THREADS))


def test_the_code_says_what_it_reads_and_writes():
    assert uses(Loaded(KERNEL.format(body=COPY, threads=THREADS)).kernel) == {0: READ, 8: WRITE}


@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        ("add.rn.f32", torch.add),
        ("mul.rn.f32", torch.mul),
        ("div.rn.f32", torch.div),
        ("min.f32", torch.fmin),
        ("max.NaN.f32", torch.maximum),
    ],
)
def test_arithmetic(operation, reference):
    machine, x, y = run(
        "ld.global.f32 %f1, [%rd4]; xor.b64 %rd8, %rd3, 252; add.s64 %rd9, %rd1, %rd8;"
        f" ld.global.f32 %f2, [%rd9]; {operation} %f3, %f1, %f2; st.global.f32 [%rd5], %f3;"
    )
    assert machine.findings == []
    assert torch.equal(y, reference(x, x.flip(0)))
