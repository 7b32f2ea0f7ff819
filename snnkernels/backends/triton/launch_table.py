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
            backward kernel loads CHECKPOINT_EVERY.
    """

    block: int
    warps: int
    ahead: int = CHECKPOINT_EVERY

    def within(self, limit: Limit, aligned: bool) -> Launch:
        """This launch, with no more per thread than a `Limit` allows."""
        neurons = limit.aligned if aligned else limit.unaligned
        return self._replace(
            block=min(self.block, 32 * self.warps * neurons), ahead=min(self.ahead, limit.ahead)
        )


class Limit(NamedTuple):
    """The most that a thread takes without spilling registers.

    Attributes:
        aligned: neurons, where rows allow wide accesses.
        unaligned: neurons, where each has loads and addresses of its own.
        ahead: steps loaded ahead.
    """

    aligned: int
    unaligned: int
    ahead: int


# By kernel and by what a step holds in registers. Triton 3.6 cannot compile the recorded variant of
# the forward kernel with two neurons a thread, in bfloat16 and narrow rows.
LIMITS = {
    "forward": {
        "plain": Limit(16, 2, 32),
        "recorded": Limit(8, 1, 16),  # also h
        "general": Limit(1, 1, 8),  # also a synapse
    },
    "backward": {
        "plain": Limit(16, 1, 16),
        "recorded": Limit(
            1, 1, 16
        ),  # also a gradient of h, a wait, a trace or one coefficient's sum
        "general": Limit(1, 1, 8),  # also a synapse, or what several gradients need
        "full": Limit(1, 1, 4),  # nearly all there is
    },
}


def forward_limit(*, recorded: bool, synapse: bool) -> Limit:
    """The limit of the neuron's forward kernel.

    Args:
        recorded: h is written.
        synapse: there is one.
    """
    return LIMITS["forward"]["general" if synapse else "recorded" if recorded else "plain"]


def backward_limit(
    *, learns: bool, recorded: bool, synapse: bool, factors: bool, other: bool
) -> Limit:
    """The limit of the neuron's backward kernel.

    Args:
        learns: gradients of coefficients are summed up.
        recorded: h has a gradient.
        synapse: there is one.
        factors: of a gain or of a trace, which ``learns`` needs.
        other: there is anything else beyond the plain call.
    """
    limits = LIMITS["backward"]
    if synapse:
        return limits["full" if learns and recorded else "general"]
    if learns and factors:
        return limits["general"]
    return limits["recorded" if learns or recorded or other else "plain"]


def filter_limit(P: int, Q: int, *, backward: bool, learns: bool = False) -> Limit:
    """The limit of a kernel of the filter of order P, Q.

    Args:
        P: order of the outputs.
        Q: order of the inputs.
        backward: it is the backward kernel.
        learns: gradients of coefficients are summed up.
    """
    short = max(P, Q) <= 2
    if learns:
        return LIMITS["backward"]["general" if short else "full"]
    return LIMITS["backward" if backward else "forward"]["recorded" if short else "general"]


class Row(NamedTuple):
    """The launches from a number of neurons on.

    Attributes:
        neurons: that number.
        forward: launch of the forward kernel.
        backward: launch of the backward kernel.
    """

    neurons: int
    forward: Launch
    backward: Launch


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
    """The row for a number of neurons."""
    return next(row for row in rows if neurons >= row.neurons)


@lru_cache
def gpu_class(index: int) -> str:
    """The class of GPU number ``index``: "sm_90", "gfx942", ..."""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"
