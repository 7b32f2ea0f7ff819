"""What is asked of a GPU by its number."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch


def capability(index: int | None) -> tuple[int, int]:
    """The compute capability of an NVIDIA GPU; with None that of the best one there is."""
    if index is not None:
        return torch.cuda.get_device_capability(index)
    return max(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))


@lru_cache
def gpu_key(index: int) -> str:
    """What measurements on a GPU hold for: its name and the version of Triton."""
    try:
        compiler = f"triton {version('triton')}"
    except PackageNotFoundError:  # it has another name in builds for AMD, which torch pins
        compiler = f"torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(index)}, {compiler}"
