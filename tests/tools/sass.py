"""Compile CUDA kernels without a GPU and read their machine code."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++17", "--fmad=false", "-cubin", f"-I{ROOT / 'csrc'}")
ENUMS = {
    "snn::Reset": ("hard", "soft", "none", "trace"),
    "snn::cuda::Level": ("plain", "rare", "general"),
}


class Kernel(NamedTuple):
    """One kernel's machine code.

    Attributes:
        registers: per thread.
        stack: bytes of local memory per thread; more than 0 means spilled registers.
        blocks: its instructions, without operands of control, cut at labels and branches.
        loop: instructions from the first to the last of its longest loop.
    """

    registers: int
    stack: int
    blocks: list[list[str]]
    loop: int

    @property
    def code(self) -> list[str]:
        return [line for block in self.blocks for line in block]

    def loads_before_first_store(self) -> list[str]:
        stores = [k for k, line in enumerate(self.code) if line.startswith("STG")]
        return [line for line in self.code[: stores[0]] if line.startswith("LDG")]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, or in Triton's wheel."""
    found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
    triton = importlib.util.find_spec("triton")
    if found or triton is None:
        return found
    return shutil.which(str(Path(triton.origin).parent / "backends/nvidia/bin" / name))


def missing_tools() -> list[str]:
    return [name for name in ("nvcc", "cuobjdump", "nvdisasm", "c++filt") if not tool(name)]


def _run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _demangled(names: list[str]) -> dict[str, str]:
    """By mangled name, the expression that NVRTC knows the kernel by."""
    plain = _run(tool("c++filt"), *names).splitlines()
    expressions = {}
    for name, text in zip(names, plain, strict=True):
        text = re.sub(r"\((snn::[\w:]+)\)(\d)", lambda m: f"{m[1]}::{ENUMS[m[1]][int(m[2])]}", text)
        expressions[name] = re.sub(r"^void |\(snn::cuda::\w+\)$", "", text)
    return expressions


def resources(binary: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and stack bytes of all kernels in a cubin or a library, by (arch, kernel)."""
    arch, name, found = "", "", {}  # a cubin names no architecture
    for line in _run(tool("cuobjdump"), "-res-usage", binary).splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r" Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found[arch, name] = int(match[1]), int(match[2]) + int(match[3])
    plain = _demangled(sorted({name for _, name in found}))
    return {(arch, plain[name]): numbers for (arch, name), numbers in found.items()}


def _parse(text: str) -> dict[str, tuple[list[list[str]], int]]:
    """Blocks and longest loop of every function in nvdisasm's listing."""
    functions: dict[str, tuple[list[list[str]], int]] = {}
    for section in re.split(r"\n\.text\.", text)[1:]:
        name, _, body = section.partition(":")
        blocks, labels, position, loop = [[]], {}, 0, 0
        for line in body.splitlines():
            if line.startswith("//-----"):
                break
            if match := re.match(r"(\.L_x_\d+):", line):
                labels[match[1]] = position
                blocks.append([])
            elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?) ?;", line):
                blocks[-1].append(match[1])
                position += 1
                target = re.search(r"BRA.*`\((\.L_x_\d+)\)", match[1])
                if target:
                    blocks.append([])
                    if target[1] in labels and labels[target[1]] < position - 1:
                        loop = max(loop, position - labels[target[1]])
        functions[name] = [block for block in blocks if block], loop
    return functions


def compile_kernels(kernels: list[str], arch: str, folder: Path) -> dict[str, Kernel]:
    """Compile kernels, given as C++ expressions, for an architecture such as "sm_90"."""
    source, cubin = folder / f"{arch}.cu", folder / f"{arch}.cubin"
    lines = ['#include "cuda/iir_kernels.cuh"', '#include "cuda/ring_kernels.cuh"']
    lines += [
        f"template __global__ void {k}(const __grid_constant__ snn::cuda::Call);" for k in kernels
    ]
    source.write_text("\n".join(lines) + "\n")
    _run(tool("nvcc"), *FLAGS, f"-arch={arch}", "-o", cubin, source)
    used = resources(cubin)
    parsed = _parse(_run(tool("nvdisasm"), "-c", cubin))
    plain = _demangled(list(parsed))
    return {
        plain[name]: Kernel(*used["", plain[name]], blocks, loop)
        for name, (blocks, loop) in parsed.items()
    }


def load_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}
