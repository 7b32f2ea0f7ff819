"""Shapes, options and inputs of the neuron op: the one table that tests and benchmarks read.

A `Shape` says how x lies in memory, a `Neuron` which options it has, and `make_inputs` builds the
tensors of one call from a seed. Add an option to `Neuron` and `AXES`, and a named neuron that uses
it, and every test and backend meets it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels import ATan, FastSigmoid, Gaussian, Rectangle, Sigmoid, State, Triangle
from snnkernels.core.surrogates import Surrogate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SURROGATES = (
    Triangle(),
    Rectangle(height=0.7),
    Gaussian(),
    ATan(),
    Sigmoid(),
    FastSigmoid(alpha=2.0),
)


# --- shapes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How a tensor [T, N, *] lies in memory.

    Attributes:
        sizes: T, N, ...
        order: its dimensions from the outermost in memory to the innermost; None: as they are.
        expand: dimensions of stride 0.
        every: only every so many elements along the innermost dimension belong to the tensor.
        offset: elements between an aligned address and the first one.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...] | None = None
    expand: tuple[int, ...] = ()
    every: int = 1
    offset: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.sizes)

    def arrange(self, values: Tensor) -> Tensor:
        """The values of a dense tensor in this place in memory."""
        order = self.order or tuple(range(len(self.sizes)))
        dense = values.permute(order)
        wide = (*dense.shape[:-1], dense.shape[-1] * self.every)
        memory = torch.zeros(math.prod(wide) + self.offset, dtype=values.dtype)
        view = memory[self.offset :].view(wide)[..., :: self.every]
        view.copy_(dense)
        out = view.permute([order.index(d) for d in range(len(order))])
        for dim in self.expand:
            out = out.narrow(dim, 0, 1).expand(self.sizes)
        return out


SHAPES = {
    "no_steps": Shape((0, 3, 4)),
    "no_samples": Shape((4, 0, 3, 2)),
    "one_of_all": Shape((1, 1)),
    "one_neuron": Shape((40, 1)),
    "one_step": Shape((1, 3, 5, 7)),
    "two_dims": Shape((9, 130)),
    "1003_neurons": Shape((5, 1003)),
    "three_dims": Shape((33, 2, 16)),
    "one_chunk": Shape((16, 2, 5)),
    "one_chunk_and_a_step": Shape((17, 2, 5)),
    "odd_rows": Shape((7, 3, 5, 3, 7)),
    "shifted_by_one": Shape((18, 3, 67), offset=1),
    "channels_last": Shape((20, 3, 4, 5, 3), order=(0, 1, 3, 4, 2)),
    "batch_first": Shape((19, 3, 35), order=(1, 0, 2)),
    "time_innermost": Shape((18, 37), order=(1, 0)),
    "time_innermost_images": Shape((6, 2, 3, 4, 5), order=(1, 2, 3, 4, 0)),
    "transposed_images": Shape((6, 2, 3, 4, 5), order=(0, 4, 2, 1, 3)),
    "same_at_all_steps": Shape((18, 2, 3, 11), expand=(0,)),
    "same_for_all_samples": Shape((18, 4, 33), expand=(1,)),
    "same_for_all_channels": Shape((18, 4, 33), expand=(2,)),
    "one_value": Shape((5, 2, 3), expand=(0, 1, 2)),
    "every_second": Shape((18, 3, 21), every=2),
    "wide_channels": Shape((3, 2, 1030, 2)),
}
# Outputs beyond the size from which kernels write past the caches, aligned and not.
LARGE_SHAPES = {
    "large": Shape((20, 4, 64, 16, 8)),
    "large_odd": Shape((21, 30011), offset=1),
    "large_batch_first": Shape((18, 11, 3001), order=(1, 0, 2)),
}


# --- neurons -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neuron:
    """Options of one neuron: keywords of `snnkernels.lif`, and how some of them are given.

    Attributes:
        coefficients: decay and v_threshold are a "number", a 0-d tensor ("scalar") or a tensor with
            one value per channel ("channel"; "scalar" where x has no channels).
        start: the state is None ("zero") or a State ("given").
    """

    reset: str = "hard"
    detach_reset: bool = False
    refractory: int = 0
    surrogate: Surrogate = SURROGATES[0]
    record: str | None = None
    coefficients: str = "number"
    start: str = "zero"
    decay: float = 0.9
    v_threshold: float = 1.0
    v_reset: float = 0.0

    def options(self) -> dict:
        """The keywords that are the same for every call."""
        names = ("reset", "detach_reset", "refractory", "surrogate", "record", "v_reset")
        return {name: getattr(self, name) for name in names}


# Options of `snnkernels.lif` beyond the plain neuron; tests/engine/test_general.py has their cases.
GENERAL_OPTIONS = {"synapse", "gain", "trace_decay", "regulariser"}

NEURONS = {
    "default": Neuron(),
    "detached": Neuron(detach_reset=True, v_reset=-0.1),
    "soft": Neuron(reset="soft", surrogate=SURROGATES[1], start="given"),
    "soft_detached": Neuron(reset="soft", detach_reset=True, surrogate=SURROGATES[3]),
    "never_reset": Neuron(reset="none", surrogate=SURROGATES[5], decay=0.5, start="given"),
    "refractory": Neuron(refractory=1, v_reset=0.25),
    "refractory_soft": Neuron(reset="soft", refractory=3, surrogate=SURROGATES[2], start="given"),
    "recorded": Neuron(record="h", surrogate=SURROGATES[4], start="given"),
    "scalar_soft": Neuron(reset="soft", coefficients="scalar"),
    "scalar_never_reset": Neuron(reset="none", coefficients="scalar", surrogate=SURROGATES[3]),
    "channel_hard": Neuron(coefficients="channel", start="given", v_reset=-0.1),
    "everything": Neuron(
        "soft", True, 2, SURROGATES[3], record="h", coefficients="channel", start="given"
    ),
    "always_fires": Neuron(v_threshold=-50.0, reset="soft", decay=0.5),
    "integrator": Neuron(v_threshold=math.inf, reset="none", decay=1.0, record="h"),
    "no_memory": Neuron(decay=0.0, v_threshold=0.0),
    "growing": Neuron(decay=-1.5, v_reset=1.0, surrogate=SURROGATES[1]),
}

AXES = {
    "reset": ("hard", "soft", "none"),
    "detach_reset": (False, True),
    "refractory": (0, 2),
    "surrogate": SURROGATES,
    "record": (None, "h"),
    "coefficients": ("number", "scalar", "channel"),
    "start": ("zero", "given"),
}


def every_neuron() -> list[Neuron]:
    """The full product of the axes."""
    return [
        Neuron(**dict(zip(AXES, values, strict=True)), v_reset=-0.1)
        for values in itertools.product(*AXES.values())
    ]


def pairwise(axes: dict[str, tuple]) -> list[dict]:
    """Few combinations in which every pair of values of two axes occurs (greedy)."""
    places = [[(axis, k) for k in range(len(values))] for axis, values in enumerate(axes.values())]
    missing = {
        pair
        for one, other in itertools.combinations(places, 2)
        for pair in itertools.product(one, other)
    }
    chosen = []
    while missing:
        row = dict(min(missing))
        for axis, values in enumerate(places):
            if axis not in row:
                gained = [
                    sum(tuple(sorted((place, other))) in missing for other in row.items())
                    for place in values
                ]
                row[axis] = gained.index(max(gained))
        chosen.append(row)
        missing -= set(itertools.combinations(sorted(row.items()), 2))
    return [
        {name: values[row[axis]] for axis, (name, values) in enumerate(axes.items())}
        for row in chosen
    ]


# --- inputs --------------------------------------------------------------------------------------

VALUES = ("normal", "grid", "special")
_SPECIAL = (1.0, -0.0, 0.0, 65504.0, 3e38, math.inf, -math.inf, math.nan, 1e-40, -3e-45)


class Inputs(NamedTuple):
    """One call and the gradients that arrive on its outputs. Leaves without requires_grad."""

    x: Tensor
    state: State | None
    decay: float | Tensor
    v_threshold: float | Tensor
    ds: Tensor
    dv: Tensor
    dh: Tensor

    def to(self, *where) -> Inputs:
        """The same on another device (strides are kept)."""
        moved = [p.to(*where) if isinstance(p, Tensor) else p for p in self]
        if self.state is not None:
            moved[1] = State(*(None if p is None else p.to(*where) for p in self.state))
        return Inputs(*moved)


def make_inputs(
    shape: Shape,
    neuron: Neuron,
    dtype: torch.dtype = torch.float32,
    values: str = "normal",
    seed: int = 0,
) -> Inputs:
    """The tensors of one call, on the CPU.

    Args:
        shape: of x; gradients and states are contiguous.
        neuron: its options.
        dtype: of x and ds.
        values: "normal"; "grid": multiples of 1/16 with decay 1/2, so that potentials meet the
            threshold exactly; "special": normal, with denormals, infinities, NaN, huge values,
            both zeros and the threshold strewn into x, the state and all gradients.
        seed: of everything random.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(sizes: tuple[int, ...], kind: str = values) -> Tensor:
        if kind == "grid":
            return torch.randint(-16, 25, sizes, generator=random) / 16
        out = torch.randn(sizes, generator=random) * 0.7 + 0.2
        if kind == "special" and out.numel():
            for value in _SPECIAL:
                count = max(1, out.numel() // 200)
                place = torch.randint(out.numel(), (count,), generator=random)
                out.view(-1)[place] = value
        return out

    def coefficient(value: float) -> float | Tensor:
        if neuron.coefficients == "number":
            return value
        if neuron.coefficients == "scalar" or len(shape.sizes) < 3:
            return torch.tensor(value)
        spread = torch.rand(shape.sizes[2], generator=random)
        return value + ((spread * 4).floor() / 8 if values == "grid" else spread * 0.1)

    step = shape.sizes[1:]
    state = None
    if neuron.start == "given":
        wait = torch.randint(0, neuron.refractory + 1, step, generator=random).float()
        state = State(draw(step), wait if neuron.refractory else None)
    return Inputs(
        x=shape.arrange(draw(shape.sizes).to(dtype)),
        state=state,
        decay=coefficient(0.5 if values == "grid" else neuron.decay),
        v_threshold=coefficient(neuron.v_threshold),
        ds=draw(shape.sizes).to(dtype),
        dv=draw(step),
        dh=draw(shape.sizes),
    )


# --- what is timed -------------------------------------------------------------------------------


class BenchCase(NamedTuple):
    """One row of the benchmark."""

    steps: int
    neurons: int
    dtype: torch.dtype
    neuron: Neuron = NEURONS["default"]

    def inputs(self, seed: int = 0) -> Inputs:
        """The tensors of this case, on the CPU."""
        return make_inputs(Shape((self.steps, self.neurons)), self.neuron, self.dtype, seed=seed)


BENCH_CASES = tuple(
    BenchCase(steps, neurons, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for steps, neurons in ((500, 1 << 13), (64, 1 << 14), (64, 1 << 17), (64, 1 << 20))
)
