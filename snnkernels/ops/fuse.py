"""`fuse`: a neuron that is written as one step in PyTorch runs over all time steps at once."""

from __future__ import annotations

import inspect
import math
import pickle
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from snnkernels.backends import choose
from snnkernels.core.numbers import LooksAt
from snnkernels.core.program import equations, parse
from snnkernels.core.trace import Traced, trace
from snnkernels.ops._checks import check_input, check_state_part, state_dtype
from snnkernels.ops._program import run
from snnkernels.ops._state_tuple import state_type
from snnkernels.ops._step_arguments import (
    NUMBERS,
    option_values,
    recorded_outputs,
    sample_shaped,
    signature,
    step_name,
    trace_options,
)


class FusedStep:
    """What `fuse` returns: call it as ``neuron(x, state, **parameters)``.

    Args:
        x: one tensor `[T, N, *]`, or as many as the step has inputs, as a tuple, of one shape and
            dtype: float32, bfloat16 or float16 (float64 with backend "torch"), in any memory
            format.
        state: where to start: a tuple with a number or tensor `[N, *]` for each state of the step,
            what an earlier call returned, or None for zeros. Default: None.
        backend: "auto", "torch" or "cpp". Default: "auto".
        **parameters: the keyword-only arguments of the step. A number has no
            gradient; a new value is traced again only where the step looks at it, as to branch.
            A tensor, 0-d, `[C]` (one value per channel, C = ``x.shape[2]``) or `[*]` (one per
            neuron of a sample), has a gradient. Anything else that is hashable is an option of
            the step, such as a surrogate.

    Returns:
        The outputs, each in the shape and strides of x, and last the state after the last step, a
        named tuple in float32. Gradients flow from all of them to x, the starting state and the
        parameters that are tensors.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or device, or a step that cannot be traced.
        RuntimeError: the backend asked for is not available; differentiated twice.
    """

    def __init__(self, step: Callable, inputs: int, outputs: int | Sequence[str]) -> None:
        self.step = step
        self.inputs = inputs
        self.recorded = recorded_outputs(outputs)
        names, self.parameters = signature(step)
        if len(names) <= inputs:
            raise ValueError(
                f"step must take {inputs} input(s) and at least one state as positional arguments; "
                f"it has {names}"
            )
        self.input_names, self.state_names = names[:inputs], names[inputs:]
        self.state_type = state_type(self.state_names)

    def __deepcopy__(self, memo: dict) -> FusedStep:
        return self  # nothing in it changes

    def __reduce__(self):
        if "<" in step_name(self.step):
            raise pickle.PicklingError(
                f"{step_name(self.step)} cannot be pickled: make the step a function of a module"
            )
        words = tuple("float32" if record else "x" for record in self.recorded)
        return type(self), (self.step, self.inputs, words)

    def __repr__(self) -> str:
        names = ", ".join((*self.input_names, *self.state_names))
        return f"fuse({step_name(self.step)}: {names}; {', '.join(self.parameters)})"

    def __call__(
        self,
        x: Tensor | tuple[Tensor, ...],
        state: tuple | float | Tensor | None = None,
        *,
        backend: str = "auto",
        **parameters: float | Tensor | Hashable,
    ) -> tuple:
        """Run all time steps; see the class."""
        x = self._check_inputs(x)
        tensors, values, options = self._check_parameters(parameters, x[0])
        states, start = self._check_state(state, x[0])
        backend = _choose(backend, x[0])
        program, numbers, captured = self._program(tensors, options)
        place = {"dtype": state_dtype(x[0]), "device": x[0].device}
        values += [value.to(**place) for value in captured]
        outputs, states = run(program, x, states, start, values, numbers, self.recorded, backend)
        return (*outputs, self.state_type(*states))

    def traced(self, tensors: tuple[str, ...], options: tuple) -> Traced:
        """The program where these parameters are tensors and the others have these values."""
        return _traced(*self._traced_for(tensors, options))

    def _traced_for(self, tensors: tuple[str, ...], options: tuple) -> tuple:
        counts = self.inputs, len(self.state_names), len(self.recorded)
        return self.step, *counts, tensors, options

    def _program(self, tensors: tuple[str, ...], options: tuple) -> tuple:
        if not torch.compiler.is_compiling():
            return self.traced(tensors, options)
        text, captured, *numbers = _as_constants(*self._traced_for(tensors, options))
        if captured:
            raise RuntimeError(
                f"{step_name(self.step)} captures a tensor, which torch.compile would keep as it "
                "is now; pass it as a parameter"
            )
        return text, [float.fromhex(number) for number in numbers], ()

    def equations(self, parameters: dict) -> tuple[str, str]:
        """The program, and the step as equations with the values of parameters that are numbers."""
        tensors = tuple(k for k in self.parameters if isinstance(parameters.get(k), Tensor))
        program, numbers, constants = self.traced(tensors, trace_options(parameters, tensors))
        captured = tuple(f"captured{k}" for k in range(len(constants)))
        names = self.input_names, self.state_names, (*tensors, *captured)
        return program, equations(parse(program), numbers, names)

    def _check_inputs(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if isinstance(x, Tensor):
            x = (x,)
        if not isinstance(x, (tuple, list)) or len(x) != self.inputs:
            got = f"{len(x)}" if isinstance(x, (tuple, list)) else type(x).__name__
            raise TypeError(f"x must be {self.inputs} tensor(s) [T, N, *]; got {got}")
        for each in x:
            check_input(each)
            if each.shape != x[0].shape or each.dtype != x[0].dtype or each.device != x[0].device:
                raise ValueError(
                    "all inputs must have one shape, dtype and device; got "
                    f"{list(x[0].shape)} {x[0].dtype} {x[0].device} and "
                    f"{list(each.shape)} {each.dtype} {each.device}"
                )
        return tuple(x)

    def _check_parameters(self, parameters: dict, x: Tensor) -> tuple[tuple, list[Tensor], tuple]:
        """Names and values of the tensors, and the rest as what a trace is known by."""
        if parameters.keys() != self.parameters.keys():
            self._check_names(parameters)
            parameters = {**self.parameters, **parameters}
        tensors, values = [], []
        for name in self.parameters:
            value = parameters[name]
            if isinstance(value, Tensor):
                tensors.append(name)
                values.append(sample_shaped(name, value, x))
        tensors = tuple(tensors)
        return tensors, values, trace_options(parameters, tensors)

    def _check_names(self, parameters: dict) -> None:
        unknown = parameters.keys() - self.parameters.keys()
        if unknown:
            raise TypeError(
                f"{step_name(self.step)} has no parameter {sorted(unknown)}; it has "
                f"{sorted(self.parameters)}"
            )
        missing = [
            k
            for k, default in self.parameters.items()
            if default is inspect.Parameter.empty and k not in parameters
        ]
        if missing:
            raise TypeError(f"{step_name(self.step)} needs a value for {', '.join(missing)}")

    def _check_state(self, state, x: Tensor) -> tuple[list[Tensor | None], list[float]]:
        names = self.state_names
        if state is None:
            return [None] * len(names), [0.0] * len(names)
        if isinstance(state, (Tensor, int, float)) and len(names) == 1:
            state = (state,)
        if not isinstance(state, (tuple, list)) or len(state) != len(names):
            got = f"{len(state)} of them" if isinstance(state, (tuple, list)) else repr(state)
            raise ValueError(
                f"state must be None or a tuple with one value for each of {', '.join(names)}; "
                f"got {got}"
            )
        tensors: list[Tensor | None] = []
        start: list[float] = []
        for name, part in zip(names, state, strict=True):
            number = 0.0
            if isinstance(part, Tensor):
                if not part.is_floating_point():
                    raise TypeError(
                        f"state {name} must be a floating-point tensor; got {part.dtype}"
                    )
                part = check_state_part(f"state {name}", part, x, list(x.shape[1:]))
            elif isinstance(part, (int, float)) and not isinstance(part, bool):
                if math.isnan(part):
                    raise ValueError(f"state {name} must not be NaN")
                part, number = None, float(part)
            else:
                raise TypeError(f"state {name} must be a number or a tensor; got {part!r}")
            tensors.append(part)
            start.append(number)
        return tensors, start


def fuse(step: Callable, *, inputs: int = 1, outputs: int | Sequence[str] = 1) -> FusedStep:
    """Turn one step of a neuron, written in PyTorch, into one fused pass over time.

    The step is traced once, into a short list of elementwise operations and their adjoint; each
    backend runs that list with time inside. The bits are those of the loop over time in PyTorch,
    with states in float32, but for exp, log, tanh, sigmoid, sin, cos and pow, which may differ by
    2 units in the last place, and sqrt, which PyTorch may round 1 unit off. The backward pass keeps
    x and the states of every few steps.

    Args:
        step: ``step(*inputs, *states, **parameters)``, a function of tensors that stand for one
            step of all neurons `[N, *]`, in float32. Inputs and states are positional arguments,
            parameters are keyword-only. It returns the outputs, then the next states, and is
            elementwise: no branch on data, no sum over neurons, no random numbers, nothing
            changed in place. `snnkernels.spike` fires; ``detach()`` cuts the gradient.
        inputs: how many of the positional arguments are inputs. Default: 1.
        outputs: how many of the returned values are outputs `[T, N, *]` in x's dtype; or one word
            for each, "x" for x's dtype or "float32". Default: 1.

    Returns:
        A function ``neuron(x, state=None, *, backend="auto", **parameters)``, see `FusedStep`.

    Raises:
        TypeError: step is no function of the form above.
        ValueError: it has no states.

    Example:
        >>> import torch, snnkernels
        >>> def leaky(x, v, *, decay):
        ...     h = decay * v + x
        ...     s = snnkernels.spike(h - 1.0)
        ...     return s, h * (1 - s)
        >>> neuron = snnkernels.fuse(leaky)
        >>> s, state = neuron(torch.full((4, 1), 0.75), decay=0.5)
        >>> s.squeeze(1).tolist(), state.v.item()
        ([0.0, 1.0, 0.0, 1.0], 0.0)
    """
    if not callable(step):
        raise TypeError(f"step must be a function; got {step!r}")
    if hasattr(step, "_torchdynamo_orig_callable"):
        raise TypeError("step is a compiled function; pass the function itself")
    if type(inputs) is not int or inputs < 1:
        raise ValueError(f"inputs must be a whole number >= 1; got {inputs!r}")
    return FusedStep(step, inputs, outputs)


@lru_cache(maxsize=512)
def _traced(
    step: Callable,
    inputs: int,
    states: int,
    outputs: int,
    tensors: tuple[str, ...],
    options: tuple,
) -> Traced:
    """What runs, with the values of its numbers."""
    values = option_values(options)
    numbers = {name: kind for name, kind, _ in options if kind in NUMBERS}
    while True:
        others = tuple(option for option in options if option[0] not in numbers)
        found = _traced_once(step, inputs, states, outputs, tensors, others, tuple(numbers.items()))
        if isinstance(found, Traced):
            return found.with_values(values)
        numbers = {name: kind for name, kind in numbers.items() if name not in found}


@lru_cache(maxsize=512)
def _traced_once(
    step: Callable,
    inputs: int,
    states: int,
    outputs: int,
    tensors: tuple[str, ...],
    options: tuple,
    numbers: tuple[tuple[str, str], ...],
) -> Traced | frozenset[str]:
    """What serves all values of these numbers, or those that the step looks at."""
    if step_name(step).endswith("<lambda>"):
        _warn_of_lambda(step)
    kinds = {name: NUMBERS[kind] for name, kind in numbers}
    try:
        return trace(step, inputs, states, outputs, tensors, option_values(options), kinds)
    except LooksAt as reason:
        return reason.names


_lambdas: dict[object, int] = {}


@lru_cache(maxsize=512)  # once for each
def _warn_of_lambda(step: Callable) -> None:
    code = step.__code__
    _lambdas[code] = _lambdas.get(code, 0) + 1
    if _lambdas[code] == 4:
        warnings.warn(
            "a step that is a lambda made anew for each call is traced anew for each call; "
            "use a function of a module",
            stacklevel=6,
        )


def _as_constants(*arguments) -> tuple[str, ...]:
    """The text, a word where tensors are captured, and the numbers, all as text.

    torch.compile makes variables of floats that change.
    """
    program, numbers, captured = _traced(*arguments)
    return program, "captured" if captured else "", *(number.hex() for number in numbers)


# torch.compile calls it while it traces and keeps what it returns; the mark is
# torch.compiler.assume_constant_result without its import of the whole compiler.
_as_constants._dynamo_marked_constant = True


def _choose(backend: str, x: Tensor) -> str:
    chosen = choose(backend, x.device.type, x.dtype, "program")
    on_cpu = x.device.type == "cpu" or torch.compiler.is_compiling()
    if backend == "auto" and chosen == "torch" and not on_cpu:
        _warn_of_device(x.device.type)
    return chosen


@lru_cache
def _warn_of_device(device_type: str) -> None:
    warnings.warn(
        f"on {device_type} a fused neuron runs instruction by instruction with PyTorch: there is "
        "no kernel for it yet",
        stacklevel=4,
    )
