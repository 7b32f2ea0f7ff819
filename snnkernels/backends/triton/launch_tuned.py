"""The launches that `python -m snnkernels tune` measured on this machine.

They come before those of ``launch_table.py``.
"""

from __future__ import annotations

import torch

from snnkernels.backends.gpu import gpu_key
from snnkernels.backends.measured import Measured
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, Launch, Row, row_for

MOST = Launch(block=8192, warps=32, ahead=64)

Rows = dict[int, tuple[Row, ...]]  # by bytes of an element of x, most neurons first


def _row(entry: dict) -> Row:
    row = Row(entry["neurons"], Launch(*entry["forward"]), Launch(*entry["backward"]))
    for launch in (row.forward, row.backward):
        for number, most in zip(launch, MOST, strict=True):
            if type(number) is not int or not 0 < number <= most or number & (number - 1):
                raise ValueError(f"{launch} is no launch")
    if row.backward.ahead != CHECKPOINT_EVERY:
        raise ValueError(f"a backward kernel loads {CHECKPOINT_EVERY} steps ahead: {row.backward}")
    if type(row.neurons) is not int:
        raise ValueError(f"neurons is {row.neurons!r}")
    return row


def _parse(by_size: dict) -> Rows:
    rows = {int(size): tuple(map(_row, by_neurons)) for size, by_neurons in by_size.items()}
    for by_neurons in rows.values():
        starts = [row.neurons for row in by_neurons]
        if not starts or starts[-1] != 0 or starts != sorted(set(starts), reverse=True):
            raise ValueError(f"rows begin at {starts} neurons: not from many down to 0")
    if set(rows) != {2, 4}:
        raise ValueError(f"element sizes are {sorted(rows)}, not [2, 4]")
    return rows


MEASURED = Measured(
    "triton_launches.json",
    3,
    _parse,
    "the Triton kernels run with the launches that snnkernels brings",
)


def store(gpu: str, rows: Rows) -> None:
    """Store the launches for a `gpu_key`.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    by_size = {
        str(size): [
            row._asdict() | {"forward": list(row.forward), "backward": list(row.backward)}
            for row in by_neurons
        ]
        for size, by_neurons in rows.items()
    }
    MEASURED.store(gpu, by_size)


def stored_row(index: int, neurons: int, dtype: torch.dtype) -> Row | None:
    """The row stored for a call on GPU number ``index``, or None."""
    rows = MEASURED.get(gpu_key(index))
    return row_for(rows[dtype.itemsize], neurons) if rows else None
