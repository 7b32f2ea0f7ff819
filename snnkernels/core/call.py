"""What a call of a neuron or a filter is: the one record that ops make and backends read.

A `Call` becomes flat lists (tensors, whole numbers, numbers) only at the border of torch.library,
by `Call.flatten`, and is made of them again by `Call.of`.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.core.state import State

RESETS = ("hard", "soft", "none", "trace")
TRACE = RESETS.index("trace")


class Coefficient(NamedTuple):
    """A factor of the neuron: one for all neurons, or one for each channel.

    Attributes:
        tensor: float32, 0-d or `[C]`, contiguous; None where ``number`` holds.
        number: the value where there is no tensor.
    """

    tensor: Tensor | None = None
    number: float = 0.0

    @property
    def count(self) -> int:
        return 1 if self.tensor is None else self.tensor.numel()

    def is_number(self, number: float) -> bool:
        return self.tensor is None and self.number == number


class Call(NamedTuple):
    """A call of the neuron (`snnkernels.lif`), or of a filter alone (`snnkernels.iir`).

    Attributes:
        decay: factor on the potential.
        v_threshold: the threshold.
        gain: factor on the input; the number 1 is no factor at all.
        trace_decay: of the trace of earlier spikes, with reset "trace".
        alpha: the filter's feedback coefficients `[P, c]`, c = 1 or one per channel; None without.
        beta: its coefficients of the input `[Q + 1, c]`.
        state: where to start; parts that are None start from zero.
        reset: index into `RESETS`.
        detach_reset: 1 where no gradient goes through the spike in the reset and the trace.
        surrogate: ``Surrogate.code``.
        refractory: steps without a spike after a spike.
        checkpoint_every: steps between the states kept for the backward pass; 0 keeps none.
        record_h: 1 where the potentials are an output.
        regularise: 1 where the penalty on potentials is summed up.
        v_reset: potential after a spike, with reset "hard".
        surrogate_p: first of ``Surrogate.constants()``.
        surrogate_q: second of them.
        tolerance: of the penalty.
        shift: of the penalty.
    """

    decay: Coefficient = Coefficient()
    v_threshold: Coefficient = Coefficient()
    gain: Coefficient = Coefficient(number=1.0)
    trace_decay: Coefficient = Coefficient()
    alpha: Tensor | None = None
    beta: Tensor | None = None
    state: State = State()
    reset: int = 0
    detach_reset: int = 0
    surrogate: int = 0
    refractory: int = 0
    checkpoint_every: int = 0
    record_h: int = 0
    regularise: int = 0
    v_reset: float = 0.0
    surrogate_p: float = 0.0
    surrogate_q: float = 0.0
    tolerance: float = 0.0
    shift: float = 0.0

    @property
    def P(self) -> int:
        """Order of the feedback; 0 without a filter."""
        return 0 if self.alpha is None else self.alpha.shape[0]

    @property
    def Q(self) -> int:
        """Order of the filter's input; 0 without a filter."""
        return 0 if self.beta is None else self.beta.shape[0] - 1

    @property
    def has_trace(self) -> bool:
        return self.reset == TRACE

    @property
    def has_gain(self) -> bool:
        return not self.gain.is_number(1.0)

    @property
    def is_general(self) -> bool:
        """Whether it needs more of a backend than the plain neuron."""
        return self.beta is not None or self.has_trace or self.has_gain or bool(self.regularise)

    @property
    def checkpoint_rows(self) -> int:
        """Rows of a checkpoint: v, refractory, trace, outputs of the filter."""
        return 1 + (self.refractory > 0) + self.has_trace + self.P

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers that all neurons share, by name: ``csrc/neuron.h: Numbers``."""
        return Numbers(*self[_NUMBERS])

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """What may learn: the tensors of the coefficients, alpha, beta."""
        return (*[c.tensor for c in self[_COEFFICIENTS]], self.alpha, self.beta)

    def flatten(self) -> tuple[list[Tensor | None], list[int], list[float]]:
        """The call as torch.library takes it: tensors as `TENSORS`, whole numbers, numbers."""
        numbers = [c.number for c in self[_COEFFICIENTS]] + [*self[_NUMBERS]]
        numbers, traced = without_open(numbers)
        return [*self.parameters, *self.state, traced], [*self[_OPTIONS]], numbers

    @classmethod
    def of(
        cls,
        tensors: list[Tensor | None],
        options: list[int],
        numbers: list[float],
        *,
        to_run: bool = False,
    ) -> Call:
        """The call that `flatten` made these lists of.

        Args:
            tensors: as of `flatten`, as the following arguments.
            options: whole numbers, as `flatten` gives them.
            numbers: as `flatten` gives them.
            to_run: read numbers that a tracer left open, too; a tracer has no values to be read.
        """
        *tensors, traced = tensors
        if to_run and traced is not None:
            numbers = traced.tolist()
        count = len(COEFFICIENTS)
        return cls(
            *map(Coefficient, tensors[:count], numbers[:count]),
            *tensors[count : count + 2],
            State(*tensors[count + 2 :]),
            *options,
            *numbers[count:],
        )


def _fields(kind: type) -> tuple[slice, tuple[str, ...]]:
    """Where in a `Call` the fields with a default of this type stand, side by side; their names."""
    names = tuple(name for name, value in Call._field_defaults.items() if type(value) is kind)
    first = Call._fields.index(names[0])
    return slice(first, first + len(names)), names


_COEFFICIENTS, COEFFICIENTS = _fields(Coefficient)
_OPTIONS, _ = _fields(int)
_NUMBERS, NUMBERS = _fields(float)
TENSORS = (*COEFFICIENTS, "alpha", "beta", *State._fields, "open_numbers")
Numbers = namedtuple("Numbers", NUMBERS)


def is_open(number: float) -> bool:
    """Whether torch.compile has left the value of a number open, to make one graph for any."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not has_static_value(number)


def as_tensor(numbers: Sequence, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Numbers, or sequences of them, as a tensor; those that are left open too.

    A constructor of tensors would fix the value of an open number, a product does not.
    """
    if isinstance(numbers, (list, tuple)):
        return torch.stack([as_tensor(number, dtype, device) for number in numbers])
    return torch.ones((), dtype=dtype, device=device) * numbers


def without_open(numbers: list[float]) -> tuple[list[float], Tensor | None]:
    """Numbers with 0 for those left open, and all of them as a tensor where there is one.

    The list is a constant of the graph; a float64 tensor on the CPU is an input.
    """
    if not torch.compiler.is_compiling():
        return numbers, None
    places = [is_open(number) for number in numbers]
    if not any(places):
        return numbers, None
    closed = [0.0 if place else number for place, number in zip(places, numbers, strict=True)]
    return closed, as_tensor(numbers, torch.float64, "cpu")


class Outputs(NamedTuple):
    """What a forward call of the neuron fills, each None where it has no such part.

    What has no gradient stands before all that may be None, as torch.compile needs it.

    Attributes:
        s: spikes, in shape, dtype and strides as an output laid out like x; the filter's f.
        checkpoints: float32 `[T / K, rows, N, *]`, or empty.
        refractory: steps left to wait after the last step; this and what follows but h float32
            `[N, *]`, in the memory order of s.
        v: potential after the last step.
        h: potentials, float32, laid out like s.
        synapse: the filter's state `[P + Q, N, *]` after the last step.
        trace: the trace after it.
        penalty: each neuron's sum over time of the penalty.
    """

    s: Tensor | None = None
    checkpoints: Tensor | None = None
    refractory: Tensor | None = None
    v: Tensor | None = None
    h: Tensor | None = None
    synapse: Tensor | None = None
    trace: Tensor | None = None
    penalty: Tensor | None = None

    @property
    def state(self) -> State:
        return State(self.v, self.refractory, self.synapse, self.trace)


class Arriving(NamedTuple):
    """The gradients that arrive at a backward call, each None where none does; as in `Outputs`.

    Attributes:
        s: on the spikes; on the filter's f.
        v: on the state after the last step.
        h: on the potentials, float32.
        synapse: on the filter's state.
        trace: on the trace.
        penalty: on every neuron's sum of the penalty, one float32 value.
    """

    s: Tensor | None = None
    v: Tensor | None = None
    h: Tensor | None = None
    synapse: Tensor | None = None
    trace: Tensor | None = None
    penalty: Tensor | None = None


class Gradients(NamedTuple):
    """The gradients that a backward call fills, each None where it is not wanted.

    They have the shapes of the call's tensors: x, coefficients, filter, parts of the start, of
    which the steps to wait have none.
    """

    x: Tensor | None = None
    decay: Tensor | None = None
    v_threshold: Tensor | None = None
    gain: Tensor | None = None
    trace_decay: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    v: Tensor | None = None
    refractory: None = None
    synapse: Tensor | None = None
    trace: Tensor | None = None
