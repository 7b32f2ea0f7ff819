"""What can be proved of the CUDA kernels without a GPU: they compile, and to which instructions.

After a change that is meant, ``SNN_RECORD=1 pytest tests/engine/test_cuda_compile.py`` writes the
new instruction counts to ``tests/engine/data/cuda_instructions.json``.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from snnkernels.backends.cuda import aot as cuda_aot
from snnkernels.backends.cuda import jit as cuda_jit
from tests.tools import sass

MISSING = sass.missing_tools()
needs_nvcc = pytest.mark.skipif(
    bool(MISSING), reason=f"NOT TESTED: the CUDA kernels do not compile without {MISSING}"
)
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
RECORD = Path(__file__).parent / "data" / "cuda_instructions.json"
MOST_REGISTERS, GROWTH = 128, 1.1

FORWARD = "snn::cuda::neuron_fwd_kernel<{}, snn::Reset::hard, {}, {}, snn::cuda::Level::{}>"
BACKWARD = "snn::cuda::neuron_bwd_kernel<{}, snn::Reset::{}, {}, {}, {}, snn::cuda::Level::{}>"
BF16, F16 = "snn::cuda::bf16", "snn::cuda::f16"
# kernel: loads before the first store, bytes of one load, neuron-steps of one turn of its loop
KERNELS = {
    FORWARD.format("float", 4, 8, "plain"): (8, 16, 32),
    FORWARD.format(BF16, 8, 4, "plain"): (4, 16, 32),
    FORWARD.format(F16, 8, 4, "plain"): (4, 16, 32),
    FORWARD.format(BF16, 2, 16, "plain"): (16, 4, 32),
    FORWARD.format("float", 2, 16, "plain").replace("hard", "soft"): (16, 8, 32),
    FORWARD.format("float", 1, 16, "plain").replace("hard", "none"): (16, 4, 16),
    FORWARD.format(BF16, 4, 8, "plain").replace("hard", "soft"): (8, 8, 32),
    FORWARD.format(BF16, 1, 16, "plain"): (16, 2, 16),
    FORWARD.format(BF16, 8, 4, "rare"): (4, 16, 32),
    FORWARD.format("float", 4, 8, "rare").replace("hard", "soft"): (8, 16, 32),
    FORWARD.format("float", 1, 16, "rare"): (16, 4, 16),
    FORWARD.format(BF16, 1, 16, "rare"): (16, 2, 16),
    BACKWARD.format("float", "hard", "false", 4, 4, "plain"): (8, 16, 16),
    BACKWARD.format(BF16, "soft", "false", 4, 4, "plain"): (8, 8, 16),
    BACKWARD.format("float", "soft", "false", 2, 8, "plain"): (16, 8, 16),
    BACKWARD.format(BF16, "hard", "false", 4, 8, "plain"): (16, 8, 32),
    BACKWARD.format("float", "none", "false", 1, 16, "plain"): (32, 4, 16),
    BACKWARD.format("float", "hard", "false", 2, 16, "plain"): (32, 8, 32),
    BACKWARD.format("float", "soft", "true", 2, 16, "plain"): (32, 8, 32),
    BACKWARD.format(BF16, "hard", "true", 2, 16, "plain"): (32, 4, 32),
    BACKWARD.format(BF16, "soft", "true", 1, 16, "plain"): (32, 2, 16),
    BACKWARD.format(BF16, "hard", "false", 1, 16, "rare"): (32, 2, 16),
    BACKWARD.format("float", "hard", "true", 1, 16, "rare"): (32, 4, 16),
    FORWARD.format("float", 2, 8, "general").replace("hard", "trace"): (8, 8, 16),
    FORWARD.format("float", 1, 8, "general"): (8, 4, 8),
    FORWARD.format(BF16, 2, 8, "general").replace("hard", "soft"): (8, 4, 16),
    FORWARD.format(BF16, 1, 8, "general"): (8, 2, 8),
    BACKWARD.format(BF16, "trace", "false", 1, 8, "general"): (16, 2, 8),
    BACKWARD.format("float", "hard", "false", 1, 8, "general"): (16, 4, 8),
    "snn::cuda::neuron_fwd_ring_kernel<float, snn::Reset::hard, 1, 16>": (0, 0, 16),
    f"snn::cuda::neuron_fwd_ring_kernel<{BF16}, snn::Reset::soft, 2, 16>": (0, 0, 32),
    "snn::cuda::neuron_bwd_ring_kernel<float, snn::Reset::soft, true, 1, 7>": (0, 0, 16),
    f"snn::cuda::neuron_bwd_ring_kernel<{BF16}, snn::Reset::hard, false, 2, 7>": (0, 0, 32),
}
for _io, _size in (("float", 4), (BF16, 2)):
    for _order, _vec in itertools.product((2, 4), (1, 2)):
        _filter = f"<{_io}, {_order}, {_vec}"
        _steps = 16 // _vec
        KERNELS[f"snn::cuda::iir_fwd_kernel{_filter}, {_steps}>"] = (_steps, _vec * _size, 16)
        for _learn in ("false", "true")[: 3 - _vec]:
            _name = f"snn::cuda::iir_bwd_kernel{_filter}, 8, {_learn}>"
            KERNELS[_name] = (8, _vec * _size, 8 * _vec)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def compiled(request, tmp_path_factory):
    """The architecture and its kernels."""
    folder = tmp_path_factory.mktemp("cuda")
    return request.param, sass.compile_kernels(list(KERNELS), request.param, folder)


def _shape(kernel: str) -> str:
    """Without the reset; a half as the other."""
    return re.sub(r"snn::Reset::\w+(, (true|false))?, ", "", kernel.replace(F16, BF16))


@pytest.mark.skipif(cuda_aot._cuda is None, reason="NOT TESTED: the module _cuda was not built")
def test_kernels_of_every_shape_are_looked_at():
    built = {_shape(name) for name in cuda_aot._cuda.kernel_names() if "reduce" not in name}
    assert built == {_shape(name) for name in KERNELS}


@needs_nvcc
def test_no_spills(compiled):
    _, kernels = compiled
    assert set(KERNELS) <= set(kernels)
    for name, kernel in kernels.items():
        assert kernel.stack == 0, f"{name} spills {kernel.stack} bytes"
        assert kernel.registers <= MOST_REGISTERS, f"{name} takes {kernel.registers} registers"


@needs_nvcc
def test_loads_are_wide_and_come_before_the_first_store(compiled):
    _, kernels = compiled
    widths = {16: ".128", 8: ".64", 4: "", 2: ".U16"}
    for name, (loads, size, _) in KERNELS.items():
        kernel = kernels[name]
        if not loads:  # a ring: loads go to shared memory, 16 bytes at a time
            copies = [line for line in kernel.code if line.startswith("LDGSTS")]
            assert copies and all(".128" in line for line in copies), name
            continue
        ahead = kernel.loads_before_first_store()
        wide = [line for line in ahead if re.match(rf"LDG\.E{widths[size]}(?!\.\d|\.U)", line)]
        assert len(wide) >= loads, f"{name}: {len(wide)} loads of {size} bytes before a store"
        if size == 16:
            assert any(line.startswith("STG.E.128") for line in kernel.code), name


@needs_nvcc
def test_products_and_sums_are_rounded_by_themselves(compiled):
    # exp is made of fused operations; nothing else may hold one.
    _, kernels = compiled
    for name, kernel in kernels.items():
        for block in kernel.blocks:
            fused = [line for line in block if line.startswith("FFMA")]
            assert not fused or any("MUFU.EX2" in line for line in block), f"{name}: {fused[0]}"
        if "_fwd_" in name:
            assert not any(line.startswith("FFMA") for line in kernel.code), name
        assert any(line.startswith("FMUL") for line in kernel.code), name


@needs_nvcc
def test_instructions_do_not_grow(compiled):
    """Instructions in the longest loop per neuron-step, all surrogates of a backward counted."""
    arch, kernels = compiled
    counts = {name: round(kernels[name].loop / n, 2) for name, (_, _, n) in KERNELS.items()}
    assert all(counts.values()), f"a kernel without a loop: {counts}"
    recorded = sass.load_json(RECORD)
    if os.environ.get("SNN_RECORD"):
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(recorded | {arch: counts}, indent=2) + "\n")
        return
    for name, count in counts.items():
        before = recorded[arch][name]
        assert count <= before * GROWTH, f"{arch} {name}: {count} instructions, were {before}"


@pytest.mark.skipif(
    cuda_aot._cuda is None or "cuobjdump" in MISSING,
    reason="NOT TESTED: the module _cuda was not built, or there is no cuobjdump",
)
def test_no_kernel_of_the_module_spills():
    found = sass.resources(Path(cuda_aot._cuda.__file__))
    names = set(cuda_aot._cuda.kernel_names())
    architectures = {arch for arch, _ in found}
    assert {(arch, name) for arch in architectures for name in names} == set(found)
    for (arch, name), (registers, stack) in found.items():
        assert stack == 0 and registers <= MOST_REGISTERS, f"{arch} {name}: {registers}, {stack}"


@pytest.mark.skipif(
    find_spec("cupy") is None, reason="NOT TESTED: CuPy is not installed (optional)"
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nvrtc_compiles_the_same_text(arch):
    every = (*KERNELS, "snn::cuda::reduce_channels_kernel<256>")
    for kernel in every[ARCHITECTURES.index(arch) :: len(ARCHITECTURES)]:
        name, code = cuda_jit.compile_kernel(kernel, arch)
        assert name and code.startswith(b"\x7fELF")


def test_the_package_carries_the_sources():
    csrc = Path(__file__).resolve().parents[2] / "csrc"
    carried = cuda_jit.sources()
    texts = {file.name: file.read_text() for file in [csrc / "neuron.h", *csrc.glob("cuda/*")]}
    assert carried == {name: texts[name] for name in carried}
    included = re.findall(r'#include "(.*)"', "".join(carried.values()))
    assert set(carried) == {*included, "iir_kernels.cuh", "ring_kernels.cuh"}
