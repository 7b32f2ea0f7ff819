"""The Triton kernels compile ahead of time, spill nothing, load ahead and fuse no products.

All compilations run once, in a process of their own without TRITON_INTERPRET; they need no GPU.
``python -m tests.engine.test_triton_compile`` writes the file of instruction counts anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snnkernels.core.call import RESETS
from tests.tools.triton_compile import ALL, AXES, BACKWARD_AXES, BNTT_BUILDS, BUILDS, FORWARD_AXES

ROOT = Path(__file__).parents[2]
COUNTS = Path(__file__).parent / "data" / "triton_instructions.json"
DIVIDING = (3, 4, 5)  # surrogates with a quotient
COMMON = [name for name in ALL if "all" not in name]  # whose instructions are counted
NVIDIA = [name for name, build in ALL.items() if build.target != "gfx942"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run_module(name: str) -> dict:
    """What a module of tests/tools prints, run without TRITON_INTERPRET."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.tools.{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def compile_all() -> dict[str, dict]:
    """What each of `ALL` gave, by its name."""
    return run_module("triton_compile")


@pytest.fixture(scope="module")
def reports():
    return compile_all()


def test_cover():
    assert len(BUILDS) <= 70
    for kernel, axes in (("forward", FORWARD_AXES), ("backward", BACKWARD_AXES)):
        of_kernel = [build for build in BUILDS.values() if build.kernel == kernel]
        for name in (*AXES, *axes):
            assert {getattr(build, name) for build in of_kernel} >= set(axes[name])
        assert any(build.target == "gfx942" for build in of_kernel)


@pytest.mark.parametrize("name", ALL)
def test_no_spills(name, reports):
    assert reports[name]["spilled"] == 0, ALL[name]


@pytest.mark.parametrize("name", NVIDIA)
def test_registers(name, reports):
    from snnkernels.backends.triton.launch_table import MAX_REGISTERS

    assert 0 < reports[name]["registers"] <= MAX_REGISTERS == 128, ALL[name]


def reaches_spikes(build) -> bool:
    """Whether any gradient does: the arriving one, or that of a reset."""
    attached = RESETS[build.reset] != "none" and not build.detach
    return build.spikes != "absent" or attached


@pytest.mark.parametrize("name", [name for name in NVIDIA if name in BUILDS])
def test_operations_are_rounded_one_by_one(name, reports):
    """No fused products, no quotient 2 ulp off, bfloat16 in whole numbers."""
    build = BUILDS[name]
    divides = build.kernel == "backward" and build.surrogate in DIVIDING and reaches_spikes(build)
    assert reports[name]["instructions"] == (["rcp.approx.ftz.f32"] if divides else []), build


def test_operations_are_rounded_one_by_one_by_amd(reports):
    # Its exact quotient is an approximate reciprocal and what corrects it.
    for name in ("forward-gfx942", "filter-gfx942", "gfx942-back"):
        assert reports[name]["instructions"] == [], name
    assert reports["backward-gfx942"]["instructions"] == ["v_div_fixup_f32", "v_rcp_f32"]


@pytest.mark.parametrize("name", NVIDIA)
def test_loads_come_before_stores(name, reports):
    assert reports[name]["loads"] >= reports[name]["ahead"] > 1, ALL[name]


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_forward_reads_16_bytes_at_once(dtype, reports):
    report = reports[f"forward-{dtype}-{1 << 20}"]
    assert report["wide_loads"] == report["loads"] == report["ahead"]


@pytest.mark.parametrize("name", [name for name in NVIDIA if name in BNTT_BUILDS])
def test_bntt_reads_16_bytes_at_once(name, reports):
    """One value at a time only where the channels leave no choice."""
    wide = 0 if name.endswith("odd") else reports[name]["loads"]
    assert reports[name]["wide_loads"] == wide, ALL[name]


def test_instructions_do_not_grow(reports):
    import triton

    recorded = json.loads(COUNTS.read_text())
    if not triton.__version__.startswith(recorded["triton"]):
        pytest.skip(f"counts were taken with triton {recorded['triton']}, not {triton.__version__}")
    grown = {
        name: (report["per_step"], recorded["per_step"].get(name))
        for name, report in reports.items()
        if name in COMMON and report["per_step"] > 1.1 * recorded["per_step"].get(name, 0.0)
    }
    assert not grown, f"instructions per neuron and step, now and recorded: {grown}"


def test_a_new_size_never_compiles_again():
    """Calls that differ in sizes and strides: a compilation for each way to cut them, no more."""
    found = run_module("triton_sizes")
    assert len(found) == 2 * 8  # kernels, in two dtypes
    for name, (compilations, different) in found.items():
        most = 1 if name.startswith("bntt") else 3 * 3  # rows aligned, odd, narrow; rows of a table
        assert 1 <= compilations == different <= most, name


if __name__ == "__main__":
    import triton

    reports = compile_all()
    counts = {name: reports[name]["per_step"] for name in COMMON}
    recorded = {"triton": ".".join(triton.__version__.split(".")[:2]), "per_step": counts}
    COUNTS.parent.mkdir(exist_ok=True)
    COUNTS.write_text(json.dumps(recorded, indent=1) + "\n")
