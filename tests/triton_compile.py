"""Compiles the Triton kernels ahead of time, without a GPU, and says what came out, as JSON.

``python -m tests.triton_compile`` runs in a process of its own: compiling needs triton imported
without TRITON_INTERPRET. It prints one `Report` for each `Build` of `BUILDS`.
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

from tests.cases import pairwise

POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}
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
    "surrogate": tuple(range(6)),
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
    keep: bool = True
    surrogate: int = 0
    detach: bool = False
    carried: bool = False
    spikes: str = "read"
    wanted: str = "x"

    @property
    def rare(self) -> bool:
        """As the backend says it to `Launch.fitting`."""
        if self.kernel == "forward":
            return self.recorded
        sums = self.wanted != "x" and self.coefficients != "number"
        return self.recorded or self.refractory or sums

    @property
    def absent(self) -> set[str]:
        """Names of the pointers that are None."""
        names = set()
        if not self.start:
            names |= {"v0", "wait0"}
        if not self.refractory:
            names |= {"wait0", "wait_out"}
        if self.coefficients == "number":
            names |= {"decay", "v_threshold"}
        if not self.recorded:
            names |= {"h", "dh"}
        if not self.carried:
            names.add("dv_out")
        if self.spikes == "absent":
            names.add("ds")
        if self.wanted == "parameters":
            names |= {"dx", "dv0"}
        elif self.wanted == "x" or self.coefficients == "number":
            names |= {"ddecay", "dv_threshold"}
        return names


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
    return found


BUILDS = _builds()


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
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from snnkernels.backends.triton import kernels
    from snnkernels.backends.triton.launches import (
        CHECKPOINT_EVERY,
        compiler_options,
        launches_for,
    )

    forward = build.kernel == "forward"
    kernel = kernels.neuron_fwd_kernel if forward else kernels.neuron_bwd_kernel
    dtype = getattr(torch, build.dtype)
    target = build.target if isinstance(build.target, str) else f"sm_{build.target}"
    row = launches_for(target, build.neurons, dtype)
    launch = row.forward if forward else row.backward
    launch = launch.fitting(aligned=build.rows == "aligned", rare=build.rare)
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
        "DECAY_PER_CHANNEL": per_channel,
        "THRESHOLD_PER_CHANNEL": per_channel,
        "K": CHECKPOINT_EVERY if build.keep else 0,
        "X_INNER": build.x_inner,
        "DS_INNER": int(build.spikes == "read"),
        "DH_INNER": 1,
        "ALIGN": 16 // dtype.itemsize if build.rows == "aligned" else 1,
        "WIDE": build.rows != "narrow",
        "BLOCK": launch.block,
        "U": launch.ahead,
    }
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in options:
            signature[name], constants[(place,)] = "constexpr", options[name]
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        elif name in build.absent:
            signature[name], constants[(place,)] = "constexpr", None
        else:
            signature[name] = POINTERS[build.dtype if name in ("x", "s", "ds", "dx") else "float32"]
            attributes[(place,)] = [["tt.divisibility", 16]]
    device = GPUTarget("cuda", build.target, 32) if nvidia else GPUTarget("hip", build.target, 64)
    binary = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=device,
        options=compiler_options(launch, nvidia and not forward),
    )
    return binary, launch


def _steady_loop(sass: str) -> list[str]:
    """The instructions of the last loop but the tail: the one that runs for most steps.

    A loop is what lies between the target of a backward jump and the jump. Of those that touch
    global memory in both directions, the forward kernel's comes before that of what is left over,
    the backward kernel's after it (that one runs once and is no loop).
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
    return loops[0]


def _watched(text: str) -> list[str]:
    """What `WATCHED` finds, each once."""
    return sorted(set(re.findall(WATCHED, text)))


def report(build: Build) -> Report:
    """Compile and look at what came out."""
    binary, launch = _compile(build)
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
    loop = _steady_loop(sass.stdout)
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
    return name, asdict(report(BUILDS[name]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:  # compiled afresh, whatever was compiled before
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            names = sys.argv[1:] or list(BUILDS)
            print(json.dumps(dict(pool.map(_named, names))))
