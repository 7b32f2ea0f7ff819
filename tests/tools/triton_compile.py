"""Compiles the Triton kernels ahead of time, without a GPU, and says what came out, as JSON.

``python -m tests.tools.triton_compile`` runs in a process of its own: compiling needs triton
imported without TRITON_INTERPRET. It prints one `Report` for each build of `ALL`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.tools.cases import pairwise

TRACE = 3  # the reset
DTYPES = ("float32", "bfloat16", "float16")
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
    "dtype": DTYPES,
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
    def limit(self):
        """As the backend asks for it."""
        from snnkernels.backends.triton.launch_table import (
            backward_limit,
            filter_limit,
            forward_limit,
        )

        synapse = self.synapse is not None
        if self.kernel.startswith("iir"):
            backward = self.kernel.endswith("backward")
            learns = self.learns and backward
            return filter_limit(*self.synapse, backward=backward, learns=learns)
        if self.kernel == "forward":
            return forward_limit(recorded=self.recorded, synapse=synapse)
        return backward_limit(
            learns=self.learns,
            recorded=self.recorded,
            synapse=synapse,
            factors=self.traced or self.gain,
            other=self.traced or self.refractory or self.regularised,
        )

    @property
    def learns(self) -> bool:
        return self.wanted != "x" and self.coefficients != "number"

    @property
    def traced(self) -> bool:
        return self.reset == TRACE


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
    "odd": Build("forward", dtype="bfloat16", neurons=1 << 16, rows="odd"),
    "recorded": Build("forward", dtype="bfloat16", neurons=1 << 16, recorded=True),
    "recorded-narrow": Build(
        "forward", dtype="bfloat16", neurons=1 << 17, recorded=True, rows="narrow"
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


@dataclass
class Pointer:
    """Stands for a tensor: its dtype, and an address that 16 divides."""

    dtype: object

    def data_ptr(self) -> int:
        return 256


SIZE = 1 << 20  # of everything; a kernel is the same for all sizes


def _compile(build: Build):
    import torch

    from snnkernels.backends.triton import iir_kernels, neuron_bwd, neuron_fwd
    from snnkernels.backends.triton.equations import Neuron, Policy
    from snnkernels.backends.triton.filter import Order, Taps
    from snnkernels.backends.triton.launch_table import (
        CHECKPOINT_EVERY,
        compiler_options,
        launches_for,
    )
    from snnkernels.backends.triton.rows import NUMBER, PER_CHANNEL, VALUE, Tile
    from snnkernels.core.call import Arriving, Call, Outputs
    from snnkernels.core.state import State

    if build.spikes == "absent":  # then another sequence arrives
        build = replace(build, recorded=True)
    dtype = getattr(torch, build.dtype)
    row, kept = Pointer(torch.float32), Pointer(dtype)
    forward, of_filter = build.kernel.endswith("forward"), build.kernel.startswith("iir")
    target = build.target if isinstance(build.target, str) else f"sm_{build.target}"
    launch = launches_for(target, build.neurons, dtype)
    launch = launch.forward if forward else launch.backward
    launch = launch.within(build.limit, build.rows == "aligned")
    nvidia = not isinstance(build.target, str)

    kinds = {"number": NUMBER, "scalar": VALUE, "channel": PER_CHANNEL}
    kind = kinds[build.coefficients].value
    taps_kind = max(kind, VALUE.value)
    tile = Tile(
        block=launch.block,
        ahead=launch.ahead,
        every=CHECKPOINT_EVERY if build.keep or not forward else 0,
        align=16 // dtype.itemsize if build.rows == "aligned" else 1,
        wide=build.rows != "narrow",
        inner=(build.x_inner,),
    )
    broadcast = int(build.spikes == "read")

    def given(condition: bool, pointer=row):
        return pointer if condition else None

    def learned(condition: bool = True):
        return given(condition and build.learns)

    coefficient = 0.5 if build.coefficients == "number" else row
    arguments = {
        "x": kept,
        "taps": Taps(row, row) if build.synapse else Taps(None, None),
        "ORDER": Order(*build.synapse, taps_kind) if build.synapse else Order(),
    }
    if forward:
        refractory, traced = build.refractory, build.traced
        arguments["out"] = Outputs(
            kept,
            row,
            given(refractory),
            row,
            given(build.recorded),
            given(build.synapse is not None),
            given(traced),
            given(build.regularised),
        )
    if of_filter:
        arguments |= {"start": given(build.start)}
        if forward:
            kernel = iir_kernels.iir_fwd_kernel
        else:
            kernel = iir_kernels.iir_bwd_kernel
            tile = tile._replace(inner=(broadcast, build.x_inner))
            arguments |= {
                "df": kept,
                "x": given(build.learns, kept),
                "start": given(build.start and build.learns),
                "checkpoints": given(build.learns),
                "dstate": given(build.carried),
                "dx": given(build.wanted != "parameters", kept),
                "dstart": given(build.wanted == "all"),
                "dtaps": given(build.wanted == "all"),
            }
    else:
        start, refractory, traced = build.start, build.refractory, build.traced
        arguments |= {
            "start": State(
                given(start),
                given(start and refractory),
                given(start and build.synapse is not None),
                given(start and traced),
            ),
            "neuron": Neuron(
                coefficient,
                coefficient,
                coefficient if build.gain else 1.0,
                coefficient if traced else 0.0,
                2.0,
                Call().numbers,
            ),
            "POLICY": Policy(
                reset=build.reset,
                refractory=refractory,
                gain=build.gain,
                regularise=build.regularised,
                rows=1 + refractory + traced,
                kinds=(kind, kind, kind if build.gain else 0, kind if traced else 0),
            ),
        }
        if forward:
            kernel = neuron_fwd.neuron_fwd_kernel
        else:
            kernel = neuron_bwd.neuron_bwd_kernel
            tile = tile._replace(inner=(build.x_inner, broadcast, 1))
            arguments |= {
                "checkpoints": row,
                "arriving": Arriving(
                    given(build.spikes != "absent", kept),
                    given(build.carried),
                    given(build.recorded),
                    given(build.carried and build.synapse is not None),
                    given(build.carried and traced),
                    given(build.regularised),
                ),
                "wanted": neuron_bwd.Wanted(
                    given(build.wanted != "parameters", kept),
                    given(build.wanted != "parameters" or not build.learns),
                    given(build.wanted == "all" and traced),
                    given(build.wanted == "all" and build.synapse is not None),
                    learned(),
                    learned(),
                    learned(build.gain),
                    learned(traced),
                    learned(build.synapse is not None),
                ),
                "POLICY": arguments["POLICY"]._replace(
                    detach=build.detach, surrogate=build.surrogate, reciprocal=nvidia
                ),
            }
    how = compiler_options(launch, nvidia and not forward)
    return _binary(build.target, kernel, arguments | {"TILE": tile}, how), launch


def _binary(target: int | str, kernel, arguments: dict, how: dict):
    """Compile a kernel as a launch with these arguments would.

    Args:
        target: a number for NVIDIA, else a name.
        kernel: the jit function.
        arguments: those that are not sizes or strides.
        how: what the compiler is told.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    nvidia = not isinstance(target, str)
    target = GPUTarget("cuda" if nvidia else "hip", target, 32 if nvidia else 64)
    backend = make_backend(target)
    sizes = {p.name: SIZE for p in kernel.params if p.name not in arguments}
    bound = create_function_from_signature(kernel.signature, kernel.params, backend)(
        **arguments, **sizes, **how
    )
    options, signature, constants, attributes = kernel._pack_args(backend, dict(how), *bound)
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def _compile_bntt(build: BnttBuild):
    import torch

    from snnkernels.backends.triton import bntt
    from snnkernels.backends.triton.launch_table import Launch

    kernel = getattr(bntt, f"bntt_{build.kernel}_kernel")
    align = 16 // getattr(torch, build.dtype).itemsize
    align = align if build.channels % align == 0 else 1
    plan = bntt.cut(50, 1 << 14, build.channels, align)
    kept, row, sums = (
        Pointer(getattr(torch, name)) for name in (build.dtype, "float32", "float64")
    )
    arguments = dict.fromkeys(("x", "out", "dout", "kept", "dx"), kept)
    arguments |= dict.fromkeys(("weight", "rstd", "mean_out", "rstd_out", "dweight"), row)
    arguments |= {"mean": None if build.keeps_output else row, "sums": sums, "eps": 1e-5}
    arguments |= {"ALIGN": align, "ROWS": plan.rows, "COLUMNS": plan.columns, "AHEAD": bntt.AHEAD}
    names = {parameter.name for parameter in kernel.params}
    arguments = {name: value for name, value in arguments.items() if name in names}
    how = bntt.compiler_options(64 if isinstance(build.target, str) else 32)
    binary = _binary(build.target, kernel, arguments, how)
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
