"""What `python -m snnkernels tune` measured on this machine, by name of the GPU.

The rows are one JSON file in the user's cache folder and come before those of ``launch_table.py``.
"""

from __future__ import annotations

import json
import warnings
from functools import lru_cache
from pathlib import Path

import torch

from snnkernels.backends.cache import cache_folder
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, Launch, Row, row_for
from snnkernels.core.files import write_whole

FORMAT = 2  # of the file
MOST = Launch(block=8192, warps=32, ahead=64)

Rows = dict[int, tuple[Row, ...]]  # by bytes of an element of x, most neurons first


def path() -> Path:
    """The file."""
    return cache_folder() / "triton_launches.json"


def read() -> dict[str, Rows]:
    """The launches by name of the GPU; none where there is no file.

    Raises:
        ValueError: the file cannot be used; the sentence says why and what is used instead.
    """
    try:
        text = path().read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(_unusable(f"cannot be read ({error})")) from error
    try:
        content = json.loads(text)
        version = content["format"]
        if version == FORMAT:
            return {gpu: _rows(by_size) for gpu, by_size in content["gpus"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(_unusable(f"is damaged ({error!r})")) from error
    raise ValueError(_unusable(f"has format {version!r}, this version reads {FORMAT}"))


def store(gpu: str, rows: Rows) -> None:
    """Add the launches for a GPU, or replace them; those of other GPUs stay.

    A file that cannot be used is replaced.

    Raises:
        OSError: the file cannot be written; what was there before still is.
    """
    try:
        known = read()
    except ValueError:
        known = {}
    gpus = {
        name: {
            str(size): [
                row._asdict() | {"forward": list(row.forward), "backward": list(row.backward)}
                for row in by_neurons
            ]
            for size, by_neurons in by_size.items()
        }
        for name, by_size in (known | {gpu: rows}).items()
    }
    text = json.dumps({"format": FORMAT, "gpus": gpus}, indent=1)
    write_whole(path(), f"{text}\n".encode())
    stored_rows.cache_clear()


def forget() -> bool:
    """Delete the file; False where there is none.

    Raises:
        OSError: it cannot be deleted.
    """
    stored_rows.cache_clear()
    there = path().exists()
    path().unlink(missing_ok=True)
    return there


@lru_cache
def stored_rows(index: int) -> Rows:
    """The launches stored for GPU number ``index``, read once; a file without use is a warning."""
    try:
        return read().get(torch.cuda.get_device_name(index), {})
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return {}


def stored_row(index: int, neurons: int, dtype: torch.dtype) -> Row | None:
    """The row stored for a call on GPU number ``index``, or None."""
    rows = stored_rows(index)
    return row_for(rows[dtype.itemsize], neurons) if rows else None


def _unusable(why: str) -> str:
    return (
        f"{path()} {why}: the Triton kernels run with the launches that snnkernels brings. "
        "'python -m snnkernels tune' writes the file anew, with --forget it deletes it"
    )


def _rows(by_size: dict) -> Rows:
    rows = {int(size): tuple(map(_row, by_neurons)) for size, by_neurons in by_size.items()}
    for by_neurons in rows.values():
        starts = [row.neurons for row in by_neurons]
        if not starts or starts[-1] != 0 or starts != sorted(set(starts), reverse=True):
            raise ValueError(f"rows begin at {starts} neurons: not from many down to 0")
    if set(rows) != {2, 4}:
        raise ValueError(f"element sizes are {sorted(rows)}, not [2, 4]")
    return rows


def _row(entry: dict) -> Row:
    launches = Launch(*entry["forward"]), Launch(*entry["backward"])
    row = Row(entry["neurons"], *launches, entry["faster"])
    for launch in (row.forward, row.backward):
        for number, most in zip(launch, MOST, strict=True):
            if type(number) is not int or not 0 < number <= most or number & (number - 1):
                raise ValueError(f"{launch} is no launch")
    if row.backward.ahead != CHECKPOINT_EVERY:
        raise ValueError(f"a backward kernel loads {CHECKPOINT_EVERY} steps ahead: {row.backward}")
    if row.faster not in ("triton", "cuda"):
        raise ValueError(f"{row.faster!r} is no backend to be faster")
    if type(row.neurons) is not int:
        raise ValueError(f"neurons is {row.neurons!r}")
    return row
