"""Which backend takes less time on a GPU, as `python -m snnkernels tune` measured it there."""

from __future__ import annotations

import torch

from snnkernels.backends.gpu import gpu_key
from snnkernels.backends.measured import Measured

COMPARED = ("triton", "cuda")


def _parse(by_size: dict) -> dict[int, list[tuple[int, str]]]:
    found = {int(size): [(int(n), name) for n, name in rows] for size, rows in by_size.items()}
    for rows in found.values():
        starts = [start for start, _ in rows]
        if not starts or starts[-1] != 0 or starts != sorted(set(starts), reverse=True):
            raise ValueError(f"rows begin at {starts} neurons: not from many down to 0")
        for _, name in rows:
            if name not in COMPARED:
                raise ValueError(f"{name!r} is no backend to be faster")
    if set(found) != {2, 4}:
        raise ValueError(f"element sizes are {sorted(found)}, not [2, 4]")
    return found


# By bytes of an element of x: from how many neurons on, which one; most neurons first.
MEASURED = Measured(
    "faster_backend.json", 1, _parse, '"auto" takes the backend that snnkernels prefers'
)


def faster_on_gpu(x: torch.Tensor) -> str | None:
    """The backend that takes less time for a plain neuron of x's size and dtype on its GPU.

    None where nobody has measured: on other devices, and while torch.compile traces.
    """
    if x.device.type != "cuda" or x.dtype == torch.float64 or torch.compiler.is_compiling():
        return None
    by_size = MEASURED.get(gpu_key(x.device.index))
    if by_size is None:
        return None
    neurons = x[:1].numel()
    return next(name for start, name in by_size[x.element_size()] if neurons >= start)
