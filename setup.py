"""Builds `snnkernels._core`, and `_cuda` where there is nvcc; pyproject.toml says all the rest.

Flags for CMake go in the usual variable: `CMAKE_ARGS="-DSNN_WERROR=ON" pip install .`
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / sys.implementation.cache_tag  # as in the Makefile: rebuilds are quick
PARTS = {  # module: CMake target, CMake component, what is missing without it
    "_core": ("_core", "core", 'BACKEND "cpp"'),
    "_cuda": ("cuda_module", "cuda", "THE CUDA KERNELS COMPILED AHEAD OF TIME"),
}
BANNER = """
{line}
snnkernels: {part} IS MISSING from this installation, it was not built:
  {reason}
The package works with all else. Mend the cause and install again to get it.
{line}"""


def call(*command):
    """Runs a command, passes its output on and puts its first error into the exception."""
    command = [str(word) for word in command]
    process = subprocess.Popen(command, stdout=-1, stderr=-2, text=True, errors="replace")
    lines = [print(line, end="", flush=True) or line.strip() for line in process.stdout]
    if process.wait():
        first = next((i for i, line in enumerate(lines) if "rror:" in line or "Error" in line), -3)
        raise RuntimeError(" ".join(filter(None, lines[first:][:3])) or f"{command} failed")


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)  # an old module never outlives a failed build
        flags = ["-DSNN_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"]
        flags += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        flags += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        build, component, part = PARTS[ext.name.rpartition(".")[2]]
        prefix = target.parent.parent
        try:
            call(cmake or "cmake", "-S", ROOT, "-B", BUILD, *flags)
            call(cmake, "--build", BUILD, "--target", build, "--parallel", os.cpu_count())
            call(cmake, "--install", BUILD, "--component", component, "--prefix", prefix)
        except (OSError, RuntimeError) as error:
            print(
                BANNER.format(line="*" * 92, part=part, reason=error), file=sys.stderr, flush=True
            )

    def copy_extensions_to_source(self):
        for ext in self.extensions:  # an editable install: the same rule
            (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()


modules = [Extension(f"snnkernels.{name}", sources=[], optional=True) for name in PARTS]
setup(ext_modules=modules, cmdclass={"build_ext": CMakeBuild})
