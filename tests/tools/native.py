"""Libraries that tests run on the CPU: built by CMake's targets of their names, once."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "test_tools"


@lru_cache
def build(target: str) -> Path:
    """Build ``lib<target>.so`` (nothing where it is up to date), one process at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(target)


def _build(target: str) -> Path:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    flags = ["-DSNN_PYTHON=OFF", "-DSNN_CUDA=OFF", "-DSNN_TEST_TOOLS=ON"]
    flags += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    for command in (
        [cmake, "-S", ROOT, "-B", BUILD, *flags],
        [cmake, "--build", BUILD, "--target", target],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / f"lib{target}.so"
