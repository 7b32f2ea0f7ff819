"""Backend "cuda" on CPU tensors, its launches run by the simulator.

PTX comes from nvcc (`Nvcc`: ``csrc/cuda/aot.cu``, as it is built ahead of time) or from NVRTC
(`Nvrtc`: the sources and options of ``backends/cuda/jit.py``, asked for PTX).
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from unittest import mock

from cupy_backends.cuda.libs import nvrtc

from snnkernels.backends import load
from snnkernels.backends.cuda import jit
from snnkernels.core.files import write_whole
from tests.tools.fake_gpus import FakeGpus
from tests.tools.native import ROOT
from tests.tools.ptx.listing import entries
from tests.tools.ptx.machine import Loaded, Machine
from tests.tools.ptx.pointers import arguments, tensors_of_callers, uses

CACHE = ROOT / "build" / "ptx"
CSRC = ROOT / "csrc"
TYPES = ("float", "bf16", "f16")  # aot.cu is compiled once for each
_FLAGS = ("-ptx", "-std=c++17", "-O3", "-DNDEBUG", "--fmad=false", f"-I{CSRC}")
_ENUM = r"snn::(?:cuda::)?(Reset|Level)::(\w+)"


class Nvcc:
    """PTX of all kernels that are built ahead of time.

    Args:
        target: compute capability, such as 90.
    """

    name = "nvcc"

    def __init__(self, target: int):
        self.target = target

    @lru_cache  # noqa: B019  (one object for each process)
    def _texts(self) -> dict[str, str]:
        """By name, enumerators as numbers."""
        found = {}
        for file in self._compiled():
            found |= entries(file.read_text())
        filtered = subprocess.run(
            ["c++filt"], input="\n".join(found), capture_output=True, text=True, check=True
        )
        names = filtered.stdout.splitlines()
        plain = (n.removeprefix("void ").rpartition("(")[0] for n in names)
        return dict(zip(plain, found.values(), strict=True))

    def _compiled(self) -> list[Path]:
        texts = (
            p.read_bytes() for p in sorted(CSRC.rglob("*")) if p.suffix in (".h", ".cuh", ".cu")
        )
        key = hashlib.sha256(b"\0".join((*texts, repr(_FLAGS).encode()))).hexdigest()[:16]
        folder = CACHE / f"nvcc-{key}-sm_{self.target}"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{io}.ptx" for io in TYPES]
        for io, file in zip(TYPES, files, strict=True):
            if file.exists():
                continue
            part = file.with_suffix(".part")
            command = ["nvcc", *_FLAGS, f"-arch=sm_{self.target}", f"-DSNN_IO={io}"]
            command += ["-DSNN_REDUCTIONS"] * (io == TYPES[-1])
            subprocess.run([*command, CSRC / "cuda" / "aot.cu", "-o", part], check=True)
            part.rename(file)
        return files

    def text(self, kernel: str) -> str:
        """PTX of a kernel, by the name that the backend launches it by."""
        return self._texts()[re.sub(_ENUM, _as_number, kernel)]


def _as_number(match: re.Match) -> str:
    """``snn::Reset::soft`` as c++filt writes it: ``(snn::Reset)1``."""
    enum, enumerator = match.groups()
    scope = "snn::cuda::" if enum == "Level" else "snn::"
    return f"({scope}{enum}){_enumerators(enum).index(enumerator)}"


@lru_cache
def _enumerators(enum: str) -> list[str]:
    texts = (p.read_text() for p in CSRC.rglob("*") if p.suffix in (".h", ".cuh"))
    found = (re.search(rf"enum class {enum} : int {{([^}}]*)}}", text) for text in texts)
    body = next(m[1] for m in found if m)
    return [part.strip() for part in body.split(",") if part.strip()]


class Nvrtc:
    """PTX of one kernel after the other, as it is compiled at run time.

    Args:
        target: compute capability, such as 90.
    """

    name = "nvrtc"

    def __init__(self, target: int):
        self.target = target

    def text(self, kernel: str) -> str:
        """PTX of a kernel, kept on disk."""
        made_from = (*jit.sources().values(), kernel, *jit.OPTIONS, str(nvrtc.getVersion()))
        key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:24]
        file = CACHE / f"nvrtc-sm_{self.target}" / f"{key}.ptx"
        if not file.exists():
            with mock.patch.object(nvrtc, "getCUBIN", nvrtc.getPTX):
                _, ptx = jit.compile_kernel(kernel, f"compute_{self.target}")
            write_whole(file, ptx)
        (text,) = entries(file.read_text().rstrip("\0")).values()
        return text


class Launches:
    """Stands for the launch function of the backend.

    Args:
        machine: runs the kernels.
        compiler: `Nvcc` or `Nvrtc`.
    """

    def __init__(self, machine: Machine, compiler: Nvcc | Nvrtc):
        self.machine, self.compiler = machine, compiler
        self.loaded: dict[str, Loaded] = {}
        self._uses: dict[str, dict[int, int]] = {}

    def launch(self, kernel: str, blocks: int, threads: int, parameters: bytes, stream) -> None:
        """As ``launch`` of ``backends/cuda/jit.py``."""
        if kernel not in self.loaded:
            self.loaded[kernel] = Loaded(self.compiler.text(kernel))
            self._uses[kernel] = uses(self.loaded[kernel].kernel)
        touched = arguments(self._uses[kernel], parameters, tensors_of_callers("snnkernels"))
        label = re.sub(r"snn::(cuda::)?", "", kernel)
        self.machine.launch(
            self.loaded[kernel], (blocks, 1, 1), threads, parameters, touched, label
        )


def install(launches: Launches, gpus: FakeGpus) -> None:
    """Give backend "cuda" of this process these launches, and CPU tensors to run on."""
    cuda = load("cuda")
    cuda.why_unavailable = lambda *_: None
    cuda._way = lambda: ("simulated", launches, "")
    gpus.install(current=None)
