"""How the kernels are cut into programs: a table by class of GPU, number of neurons and dtype."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

CHECKPOINT_EVERY = 16  # steps; the backward kernel holds as many in registers, or a part of them
MAX_REGISTERS = 128  # of a thread: with more, a multiprocessor of NVIDIA's holds under 16 warps


class Launch(NamedTuple):
    """How one kernel is cut into programs.

    Attributes:
        block: neurons of a program, a power of two.
        warps: of a program.
        ahead: steps loaded before the first of them is stored, a power of two. In the table the
            backward kernel loads CHECKPOINT_EVERY; `fitting` makes it fewer.
    """

    block: int
    warps: int
    ahead: int = CHECKPOINT_EVERY

    def fitting(self, *, aligned: bool, held: int = 0) -> Launch:
        """So that a call fits MAX_REGISTERS: fewer neurons a thread, fewer steps ahead.

        Args:
            aligned: rows allow wide accesses. Else each neuron has its own loads and addresses.
            held: what a step holds. 0: as a plain call; 1: also what is recorded, summed or waited
                for; 2: also a synapse or what several gradients need; 3: nearly all there is.
        """
        most = CHECKPOINT_EVERY >> max(held - 1, 0)
        ahead = min(self.ahead, most) if held else self.ahead
        if aligned and not (held and ahead == most):
            return self._replace(ahead=ahead)
        per_thread = 1 if held > 1 or ahead >= CHECKPOINT_EVERY else 2
        return self._replace(block=min(self.block, 32 * self.warps * per_thread), ahead=ahead)


def rows_held(
    *,
    learns: bool = False,
    recorded: bool = False,
    synapse: bool = False,
    factors: bool = False,
    other: bool = False,
) -> int:
    """``held`` of `Launch.fitting`.

    Args:
        learns: gradients of coefficients are summed up.
        recorded: h is written, or has a gradient.
        synapse: there is one.
        factors: of a gain or of a trace, which ``learns`` needs.
        other: there is anything else beyond the plain call.
    """
    if synapse:
        return 3 if learns and recorded else 2
    if learns and factors:
        return 2
    return int(learns or recorded or other)


class Row(NamedTuple):
    """What holds from so many neurons on.

    Attributes:
        neurons: so many.
        forward: launch of the forward kernel.
        backward: launch of the backward kernel.
        faster: the backend, "triton" or "cuda", that takes less time for a plain neuron's forward
            and backward pass; what "auto" takes. "triton" where nobody has measured.
    """

    neurons: int
    forward: Launch
    backward: Launch
    faster: str = "triton"


# By class of GPU and bytes of an element of x, most neurons first. Few neurons: narrow programs, so
# that all multiprocessors have one, and more steps ahead, so that enough bytes are in flight.
_HOPPER = {
    4: (
        Row(1 << 18, Launch(512, 4, 8), Launch(512, 8)),
        Row(1 << 16, Launch(256, 4, 8), Launch(128, 4)),
        Row(1 << 14, Launch(128, 4, 16), Launch(64, 2)),
        Row(0, Launch(32, 1, 32), Launch(32, 1)),
    ),
    2: (
        Row(1 << 18, Launch(1024, 4, 8), Launch(512, 8)),
        Row(1 << 17, Launch(512, 4, 8), Launch(256, 4)),
        Row(1 << 16, Launch(256, 4, 16), Launch(128, 4)),
        Row(1 << 14, Launch(64, 2, 32), Launch(64, 2)),
        Row(0, Launch(32, 1, 32), Launch(32, 1)),
    ),
}
LAUNCHES: dict[str, dict[int, tuple[Row, ...]]] = {
    "sm_80": _HOPPER,
    "sm_90": _HOPPER,
    "sm_100": _HOPPER,
    "gfx942": _HOPPER,
    "unknown": _HOPPER,
    # Its time goes by programs and operations, whatever their size.
    "interpreter": dict.fromkeys((2, 4), (Row(0, Launch(1024, 32, 4), Launch(1024, 32)),)),
}


def compiler_options(launch: Launch, limit: bool) -> dict:
    """What the compiler is told: products and sums are rounded one by one.

    Args:
        launch: of the kernel.
        limit: set MAX_REGISTERS, for the backward kernels on NVIDIA. The others stay under it by
            themselves and take more registers than they need when they are given a limit.
    """
    options = {"num_warps": launch.warps, "enable_fp_fusion": False}
    return options | {"maxnreg": MAX_REGISTERS} if limit else options


def launches_for(gpu_class: str, neurons: int, dtype: torch.dtype) -> Row:
    """The row of `LAUNCHES` for a call."""
    rows = LAUNCHES.get(gpu_class, LAUNCHES["unknown"])[dtype.itemsize]
    return row_for(rows, neurons)


def row_for(rows: tuple[Row, ...], neurons: int) -> Row:
    """The row for so many neurons."""
    return next(row for row in rows if neurons >= row.neurons)


@lru_cache
def gpu_class(index: int) -> str:
    """The class of GPU number ``index``: "sm_90", "gfx942", ...

    Raises:
        RuntimeError: an NVIDIA GPU older than compute capability 8.0.
    """
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        raise RuntimeError(
            f"backend 'triton' needs compute capability 8.0 or newer; cuda:{index} has "
            f"{major}.{minor}. Use backend='torch' there"
        )
    return f"sm_{major}{minor}"
