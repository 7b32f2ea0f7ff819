"""Compiles the Triton kernels ahead of time, without a GPU, and says what came out, as JSON.

``python -m tests.triton_compile`` runs in a process of its own: compiling needs triton imported
without TRITON_INTERPRET. It prints one `Report` for each build of `ALL`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.tools.cases import pairwise

TRACE = 3  # the reset
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
OF_X = ("x", "s", "f", "ds", "df", "dx")  # pointers of its dtype
NEURONS = (1 << 20, 1 << 17, 1 << 15, 1 << 12)  # one of each class of launches

# Instructions that the numeric contract has something to say about: fused products and sums,
# quotients, and conversions to bfloat16.
WATCHED = (
    r"\bfma\.r[nzmp][\w.]*|\bdiv\.[a-z.]*f32|\brcp\.[\w.]+|\bcvt\.r[nzmp][\w.]*bf16[\w.]*"
    r"|\bv_div_fixup_f32|\bv_rcp_f32|\bv_cvt_\w*bf16\w*"
)

# What is fixed when a kernel is compiled. Options of the backward kernel come last.
AXES = {
    "target": (80, 90, 100),
    "dtype": tuple(POINTERS),
    "neurons": NEURONS,
    "reset": (0, 1, 2),
    "refractory": (False, True),
    "start": (False, True),
    "coefficients": ("number", "scalar", "channel"),
    "recorded": (False, True),
    "x_inner": (1, 0),
    "rows": ("aligned", "odd", "narrow"),
}
FORWARD_AXES = AXES | {"keep": (True, False)}
BACKWARD_AXES = AXES | {
    "neurons": NEURONS[::3],  # the others are cut as the last
    "surrogate": (1, 2, 4, 5),  # the others are in builds by name
    "detach": (False, True),
    "carried": (False, True),
    "spikes": ("read", "broadcast", "absent"),
    "wanted": ("x", "all", "parameters"),
}


@dataclass(frozen=True)
class Build:
    """One compilation: a kernel and everything that is fixed in it."""

    kernel: str
    target: int | str = 90
    dtype: str = "float32"
    neurons: int = 1 << 20
    reset: int = 0
    refractory: bool = False
    start: bool = False
    coefficients: str = "number"
    recorded: bool = False
    x_inner: int = 1
    rows: str = "aligned"
    synapse: tuple[int, int] | None = None
    gain: bool = False
    regularised: bool = False
    keep: bool = True
    surrogate: int = 0
    detach: bool = False
    carried: bool = False
    spikes: str = "read"
    wanted: str = "x"

    @property
    def held(self) -> dict[str, bool]:
        """As the backend says it to `rows_held`."""
        found = {"recorded": self.recorded, "synapse": self.synapse is not None}
        if self.kernel == "backward":
            found |= {
                "learns": self.learns,
                "factors": self.traced or self.gain,
                "other": self.traced or self.refractory or self.regularised,
            }
        return found

    @property
    def learns(self) -> bool:
        return self.wanted != "x" and self.coefficients != "number"

    @property
    def traced(self) -> bool:
        return self.reset == TRACE

    @property
    def absent(self) -> set[str]:
        """Names of the pointers that are None."""
        if self.kernel.startswith("iir"):
            return self._absent_of_filter
        names = set()
        coefficients = {"decay", "v_threshold", "gain", "trace_decay"}
        starts = {"v0", "wait0", "trace0", "synapse0"}
        ends = {"dv_out", "dtrace_out", "dsynapse_out"}
        if not self.start:
            names |= starts
        if not self.refractory:
            names |= {"wait0", "wait_out"}
        if not self.traced:
            names |= {"trace0", "trace_out", "dtrace_out", "trace_decay", "dtrace_decay", "dtrace0"}
        if self.synapse is None:
            names |= {"alpha", "beta", "synapse0", "synapse_out", "dsynapse_out", "dcoefficients"}
            names.add("dsynapse0")
        if not self.gain:
            names |= {"gain", "dgain"}
        if not self.regularised:
            names |= {"penalty_out", "dpenalty"}
        if self.coefficients == "number":
            names |= coefficients
        if not self.recorded:
            names |= {"h", "dh"}
        if not self.carried:
            names |= ends
        if self.spikes == "absent":
            names.add("ds")
        if self.wanted == "parameters":
            names.add("dx")
            if self.learns:
                names |= {"dv0", "dtrace0", "dsynapse0"}
        if not self.learns:
            names |= {f"d{name}" for name in coefficients} | {"dcoefficients"}
        if self.wanted == "x":
            names |= {"dtrace0", "dsynapse0"}
        return names

    @property
    def _absent_of_filter(self) -> set[str]:
        names = set() if self.start else {"state0"}
        if not self.carried:
            names.add("dstate")
        if self.wanted != "all":
            names |= {"dx"} if self.wanted == "parameters" else {"dstate0", "dcoefficients"}
        if self.kernel == "iir_backward" and not self.learns:
            names |= {"x", "state0", "checkpoints"}
        return names


# What all options of the general neuron need, and of the filter at its highest order.
LOADED = {
    "refractory": True,
    "start": True,
    "coefficients": "channel",
    "recorded": True,
    "carried": True,
    "wanted": "all",
    "gain": True,
    "regularised": True,
}
FACTORS = {"reset": TRACE, "gain": True, "coefficients": "scalar"}
OTHERS = {
    "synapse": Build("forward", synapse=(2, 2)),
    "factors": Build("forward", **FACTORS, rows="odd", target=100, dtype="float16"),
    "all": Build(
        "forward", 80, "bfloat16", 1 << 12, TRACE, synapse=(2, 2), rows="narrow", **LOADED
    ),
    "synapse-back": Build("backward", synapse=(2, 1)),
    "synapse-learns": Build(
        "backward", 100, "bfloat16", synapse=(2, 2), coefficients="scalar", wanted="all"
    ),
    "trace-back": Build("backward", reset=TRACE),
    "regularised-back": Build("backward", 80, regularised=True),
    "factors-back": Build("backward", 100, wanted="all", rows="odd", **FACTORS),
    "factors-all-back": Build("backward", 90, "bfloat16", 1 << 15, TRACE, rows="odd", **LOADED),
    "all-back": Build("backward", 80, "float32", 1 << 17, TRACE, synapse=(2, 2), **LOADED),
    "gfx942-back": Build("backward", "gfx942", "bfloat16", reset=TRACE, synapse=(2, 1), gain=True),
    "filter": Build("iir_forward", synapse=(2, 1)),
    "filter-all": Build("iir_forward", 80, synapse=(8, 8), rows="narrow", **LOADED),
    "filter-back": Build("iir_backward", synapse=(2, 1)),
    "filter-back-bfloat16": Build("iir_backward", 100, "bfloat16", 1 << 15, synapse=(4, 1)),
    "filter-learns": Build("iir_backward", synapse=(2, 1), wanted="all", coefficients="scalar"),
    "filter-all-back": Build("iir_backward", 80, synapse=(8, 8), rows="narrow", **LOADED),
    "filter-gfx942": Build("iir_forward", "gfx942", "bfloat16", synapse=(2, 1)),
}


def _builds() -> dict[str, Build]:
    found = {}
    for kernel, axes in (("forward", FORWARD_AXES), ("backward", BACKWARD_AXES)):
        for k, row in enumerate(pairwise(axes)):
            found[f"{kernel}-{k}"] = Build(kernel, **row)
        found[f"{kernel}-gfx942"] = Build(kernel, "gfx942", "bfloat16", surrogate=3)
        # The layers that most of the time goes into, on the GPU that the table was written for.
        for dtype in ("float32", "bfloat16"):
            for neurons in NEURONS[::2]:
                found[f"{kernel}-{dtype}-{neurons}"] = Build(kernel, dtype=dtype, neurons=neurons)
    found["backward-atan-bfloat16"] = Build("backward", dtype="bfloat16", surrogate=3)
    return found | OTHERS


BUILDS = _builds()


@dataclass(frozen=True)
class BnttBuild:
    """One compilation of a kernel of BNTT."""

    kernel: str
    target: int | str = 90
    dtype: str = "float32"
    channels: int = 64
    keeps_output: bool = False


BNTT_BUILDS = {
    **{
        f"bntt-{kernel}": BnttBuild(kernel) for kernel in ("moments", "fwd", "gradient_sums", "bwd")
    },
    "bntt-moments-bfloat16": BnttBuild("moments", dtype="bfloat16"),
    "bntt-bwd-bfloat16": BnttBuild("bwd", dtype="bfloat16"),
    "bntt-fwd-16": BnttBuild("fwd", 80, "float16", 16),
    "bntt-bwd-16": BnttBuild("bwd", 100, "bfloat16", 16),
    "bntt-moments-odd": BnttBuild("moments", 100, "float16", 131),
    "bntt-bwd-odd": BnttBuild("bwd", 80, channels=3, keeps_output=True),
    "bntt-moments-gfx942": BnttBuild("moments", "gfx942"),
    "bntt-bwd-gfx942": BnttBuild("bwd", "gfx942", "bfloat16"),
}
ALL = BUILDS | BNTT_BUILDS


@dataclass
class Report:
    """What a compilation gave.

    Attributes:
        spilled: bytes of local memory a thread uses, or registers spilled on an AMD GPU.
        instructions: those of `WATCHED` that occur in the PTX, or in AMD's assembly.
        loads: reads of global memory in the steady loop, before its first write.
        wide_loads: those of 16 bytes.
        ahead: steps that are to be loaded before the first write.
        per_step: instructions of the steady loop for each neuron and step.
        registers: of a thread.
    """

    spilled: int
    instructions: list[str]
    loads: int = 0
    wide_loads: int = 0
    ahead: int = 0
    per_step: float = 0.0
    registers: int = 0


def _compile(build: Build):
    import torch

    from snnkernels.backends.triton.iir import held as iir_held
    from snnkernels.backends.triton.iir_kernels import iir_bwd_kernel, iir_fwd_kernel
    from snnkernels.backends.triton.launch_table import (
        CHECKPOINT_EVERY,
        compiler_options,
        launches_for,
        rows_held,
    )
    from snnkernels.backends.triton.neuron_bwd import neuron_bwd_kernel
    from snnkernels.backends.triton.neuron_fwd import neuron_fwd_kernel

    kernel = {
        "forward": neuron_fwd_kernel,
        "backward": neuron_bwd_kernel,
        "iir_forward": iir_fwd_kernel,
        "iir_backward": iir_bwd_kernel,
    }[build.kernel]
    forward = build.kernel.endswith("forward")
    dtype = getattr(torch, build.dtype)
    target = build.target if isinstance(build.target, str) else f"sm_{build.target}"
    row = launches_for(target, build.neurons, dtype)
    launch = row.forward if forward else row.backward
    held = rows_held(**build.held)
    if build.kernel.startswith("iir"):
        held = iir_held(*build.synapse, build.learns and not forward)
    launch = launch.fitting(aligned=build.rows == "aligned", held=held)
    nvidia = not isinstance(build.target, str)
    per_channel = build.coefficients == "channel"
    options = {
        "CHARGE": 0,
        "COMPARE": 0,
        "SPIKES": 0,
        "WHEN": 0,
        "RESET": build.reset,
        "DETACH": build.detach,
        "SURROGATE": build.surrogate,
        "RECIPROCAL": nvidia,
        "REFRACTORY": build.refractory,
        "GAIN": build.gain,
        "P": build.synapse[0] if build.synapse else 0,
        "Q": build.synapse[1] if build.synapse else 0,
        "DECAY_PER_CHANNEL": per_channel,
        "THRESHOLD_PER_CHANNEL": per_channel,
        "GAIN_PER_CHANNEL": per_channel,
        "TRACE_PER_CHANNEL": per_channel,
        "FILTER_PER_CHANNEL": per_channel,
        "K": CHECKPOINT_EVERY if build.keep else 0,
        "X_INNER": build.x_inner,
        "DS_INNER": int(build.spikes == "read"),
        "DH_INNER": 1,
        "DF_INNER": int(build.spikes == "read"),
        "ALIGN": 16 // dtype.itemsize if build.rows == "aligned" else 1,
        "WIDE": build.rows != "narrow",
        "BLOCK": launch.block,
        "U": launch.ahead,
    }
    pointers = {name: POINTERS[build.dtype] for name in OF_X}
    how = compiler_options(launch, nvidia and not forward)
    return _binary(build.target, kernel, options, build.absent, pointers, how), launch


def _binary(target: int | str, kernel, options: dict, absent, pointers: dict, how: dict):
    """Compile a kernel.

    Args:
        target: a number for NVIDIA, else a name.
        kernel: the jit function.
        options: its compile-time arguments by name.
        absent: names of pointers that are None.
        pointers: types of those that are not to float32.
        how: what the compiler is told.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in options:
            signature[name], constants[(place,)] = "constexpr", options[name]
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        elif name in absent:
            signature[name], constants[(place,)] = "constexpr", None
        else:
            signature[name] = pointers.get(name, POINTERS["float32"])
            attributes[(place,)] = [["tt.divisibility", 16]]
    nvidia = not isinstance(target, str)
    return triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda" if nvidia else "hip", target, 32 if nvidia else 64),
        options=how,
    )


def _compile_bntt(build: BnttBuild):
    import torch

    from snnkernels.backends.triton import bntt
    from snnkernels.backends.triton.launch_table import Launch

    kernel = getattr(bntt, f"bntt_{build.kernel}_kernel")
    align = 16 // getattr(torch, build.dtype).itemsize
    align = align if build.channels % align == 0 else 1
    plan = bntt.cut(50, 1 << 14, build.channels, align)
    options = {"ALIGN": align, "ROWS": plan.rows, "COLUMNS": plan.columns, "AHEAD": bntt.AHEAD}
    pointers = dict.fromkeys(("x", "out", "dout", "kept", "dx"), POINTERS[build.dtype])
    absent = ("mean",) if build.keeps_output else ()
    how = bntt.compiler_options(64 if isinstance(build.target, str) else 32)
    binary = _binary(build.target, kernel, options, absent, pointers | {"sums": "*fp64"}, how)
    return binary, Launch(plan.rows * plan.columns, how["num_warps"], bntt.AHEAD)


def _loops(sass: str) -> list[list[str]]:
    """The instructions of each loop that reads global memory.

    A loop is what lies between the target of a backward jump and the jump. The first one is that of
    most steps: the forward kernel's comes before that of what is left over, the backward kernel's
    after it (that one runs once and is no loop). BNTT walks over its rows in the last one.
    """
    lines = [
        (int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+([^;/][^;]*);", sass)
    ]
    loops = []
    for address, text in lines:
        jump = re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            body = [t for a, t in lines if int(jump[1], 16) <= a <= address]
            if any("LDG" in t for t in body):
                loops.append(body)
    return loops


def _watched(text: str) -> list[str]:
    """What `WATCHED` finds, each once."""
    return sorted(set(re.findall(WATCHED, text)))


def report(build: Build | BnttBuild) -> Report:
    """Compile and look at what came out."""
    of_bntt = isinstance(build, BnttBuild)
    binary, launch = _compile_bntt(build) if of_bntt else _compile(build)
    if isinstance(build.target, str):
        text = binary.asm["amdgcn"]
        spilled = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
        return Report(spilled, _watched(text))
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        sass, usage = (
            subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True)
            for what in ("-sass", "-res-usage")
        )
    usage = usage.stdout + usage.stderr
    loop = _loops(sass.stdout)[-1 if of_bntt else 0]
    first_store = next((k for k, t in enumerate(loop) if "STG" in t), len(loop))
    loads = [t for t in loop[:first_store] if "LDG" in t]
    per_thread = max(1, launch.block // (32 * launch.warps))
    return Report(
        spilled=int(re.search(r"STACK:(\d+)", usage)[1]),
        instructions=_watched(binary.asm["ptx"]),
        loads=len(loads),
        wide_loads=sum(".128" in t for t in loads),
        ahead=launch.ahead,
        per_step=round(len(loop) / (per_thread * launch.ahead), 2),
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
    )


def _named(name: str) -> tuple[str, dict]:
    return name, asdict(report(ALL[name]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:  # compiled afresh, whatever was compiled before
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            names = sys.argv[1:] or list(ALL)
            print(json.dumps(dict(pool.map(_named, names))))
