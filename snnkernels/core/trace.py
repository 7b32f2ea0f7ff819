"""Tracing: one step of a neuron, written in PyTorch, becomes a program.

The step runs once, on a few numbers, under a dispatch mode that sees every operation of ATen that
it consists of, and those of its derivative that autograd runs. An operation that is not elementwise
or that the table does not have is an error that names it and the line it stands on.
"""

from __future__ import annotations

import linecache
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import _len_torch_function_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    is_in_torch_dispatch_mode,
)

from snnkernels.core.lower import (
    CONSTANT,
    COPIES,
    EMPTY,
    FULL,
    LOWER,
    VIEWS,
    Refused,
    Value,
    why_not,
)
from snnkernels.core.numbers import Expression, LooksAt, Number, evaluate
from snnkernels.core.program import Builder, build

NEURONS = 11  # of the step that is traced: unusual, so that a wrong shape is seen

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Traced(NamedTuple):
    """What tracing gives.

    Attributes:
        program: the canonical text.
        numbers: values of its slots, as floats or as expressions of parameters that stay open.
        constants: 0-d tensors that the step has captured, its last parameters; they are read at
            each call.
    """

    program: str
    numbers: tuple[Expression, ...]
    constants: tuple[Tensor, ...]

    def with_values(self, values: Mapping[str, int | float]) -> Traced:
        """The same with the values of its slots where open parameters have these values."""
        numbers = tuple(float(evaluate(number, values)) for number in self.numbers)
        if any(map(math.isnan, numbers)):
            raise ValueError("a number in the step is NaN")
        return self._replace(numbers=numbers)


def _place(home: str | None) -> str:
    """The innermost line that is neither torch's nor this package's, or lies in the file home."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not trace.__code__:
        file = frame.f_code.co_filename
        if file == home or not file.startswith((_TORCH, _PACKAGE)):
            line = linecache.getline(file, frame.f_lineno).strip()
            return f"{file}:{frame.f_lineno}" + (f": `{line}`" if line else "")
        frame = frame.f_back
    return "in the derivative of the step"


class _Recorder(TorchDispatchMode):
    """Writes down what every tensor is made of, known by where it lies in memory."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; True would import the whole compiler

    def __init__(self, home: str | None) -> None:
        super().__init__()
        self.home = home  # the file that the step stands in
        self.builder = Builder()
        self.values: dict[tuple[int, int], tuple[Value | None, int]] = {}
        self.kept: list[Tensor] = []  # as long as a tensor lives, its place is its own
        self.leaves: set[int] = set()
        self.constants: list[Tensor] = []
        self.numbers: dict[float, Number] = {}

    def define(self, tensor: Tensor, value: Value | None) -> None:
        self.kept.append(tensor)
        self.values[_key(tensor)] = value, tensor.numel()

    def leaf(self, tensor: Tensor, name: str) -> Tensor:
        self.define(tensor, name)
        self.leaves.add(_key(tensor)[0])
        return tensor

    def value(self, argument: object) -> object:
        """The value of a tensor; of a number, the number; what is neither stays as it is."""
        if isinstance(argument, bool) or argument is None or isinstance(argument, str):
            return argument
        if isinstance(argument, (int, float)):
            number = self.numbers.get(argument)
            return float(argument) if number is None else number.name
        if not isinstance(argument, Tensor):
            return argument
        value, size = self.values.get(_key(argument), (None, -1))
        if size < 0:
            return self._captured(argument)
        if value is None:
            raise Refused("it reads memory that nothing was written to")
        if argument.numel() != size and size != 1:
            raise Refused("it takes a part of a tensor; a step is elementwise over neurons")
        return value

    def _captured(self, tensor: Tensor) -> Value:
        if tensor.requires_grad:
            raise Refused(
                f"it uses a captured tensor of shape {list(tensor.shape)} that requires a "
                "gradient, which would be lost; pass it as a parameter"
            )
        if tensor.ndim:
            raise Refused(
                f"it uses a captured tensor of shape {list(tensor.shape)}; pass it as a parameter"
            )
        if not tensor.is_floating_point():
            raise Refused(f"it uses a captured tensor of {tensor.dtype}; use floating point")
        self.constants.append(tensor)
        name = f"k{len(self.constants) - 1}"
        self.define(tensor, name)
        return name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        try:
            return self._record(func, name, args, kwargs)
        except Refused as reason:
            raise Refused(f"{name} at {_place(self.home)}: {reason}") from None

    def _record(self, func, name: str, args: tuple, kwargs: dict):
        if name in VIEWS:
            self.value(args[0])
            out = func(*args, **kwargs)
            self.kept.append(out)
            return out
        in_place = name.endswith("_") and not name.endswith("__")
        plain = name.rstrip("_") if in_place else name
        if name.startswith("__"):  # __and__, __or__
            plain = f"bitwise_{name.strip('_').lstrip('ir')}"
        known = plain in LOWER or plain in FULL or plain in CONSTANT or plain in COPIES
        if not known and plain not in EMPTY and plain not in ("stack", "cat", "select_backward"):
            raise Refused(why_not(plain))
        if in_place:
            self._check_target(args[0])
        value: Value | None = None
        if plain in FULL:
            value = self.value(args[FULL[plain]])
            if isinstance(value, bool):
                value = float(value)
        elif plain in CONSTANT:
            value = CONSTANT[plain]
        elif plain in COPIES:
            value = self._copy(plain, in_place, args)
        elif plain == "select_backward" and args[1][args[2]] == 1:  # of the only one
            value = self.value(args[0])
        elif plain in LOWER:
            arguments = [self.value(a) for a in args]
            options = {k: self.value(v) for k, v in kwargs.items()}
            value = self._lower(plain, arguments, options, args)
        if plain == "_efficientzerotensor":  # has no memory to be known by
            func = torch.ops.aten.zeros.default
        out = func(*args, **kwargs)
        self._check_result(out, args)
        if plain in ("stack", "cat"):
            return self._stacked(out, args[0])
        if _is_bool(out) and isinstance(value, str):
            value = self.builder.condition(value)
        self.define(out, value)
        return out

    def _copy(self, name: str, in_place: bool, args: tuple) -> Value:
        source = args[1] if in_place else args[0]
        if name.startswith("lift_fresh") and _key(source) not in self.values:  # torch.tensor(0.5)
            if source.numel() == 1 and source.is_floating_point():
                return float(source)
        return self.value(source)

    def _lower(self, name: str, arguments: list, options: dict, args: tuple) -> Value:
        if name in ("add", "max") and all(map(_is_bool, args[:2])):
            name = "logical_or"
        looked_at = [options.get("alpha"), *(arguments if name == "pow" else ())]
        for number in self.numbers.values():
            if number.name in looked_at:  # what these do depends on its value
                number.look()
        return LOWER[name](self.builder, *arguments, **options)

    def _check_target(self, target: Tensor) -> None:
        place = _key(target)
        if place not in self.values or place[0] in self.leaves:
            raise Refused("it changes an input, a state, a parameter or a captured tensor in place")
        if target.numel() != self.values[place][1]:
            raise Refused("it changes a part of a tensor in place")

    def _check_result(self, out: object, args: tuple) -> None:
        if not isinstance(out, Tensor):
            raise Refused("it does not give one tensor")
        if out.dtype not in (torch.float32, torch.bool):
            raise Refused(f"its result is {out.dtype}; a step computes in float32")

    def _stacked(self, out: Tensor, parts: list[Tensor]) -> Tensor:
        sizes = {part.numel() for part in parts}
        if len(sizes) != 1 or out.shape[0] not in (len(parts), 1) and len(parts) > 1:
            raise Refused("it joins tensors other than along a new first dimension")
        self.kept.append(out)
        pointer, offset = _key(out)
        for k, part in enumerate(parts):
            self.values[pointer, offset + k * part.numel()] = self.value(part), part.numel()
        return out


def _key(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def _is_bool(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype == torch.bool


@contextmanager
def _no_function_modes() -> Iterator[None]:
    modes = [_pop_mode() for _ in range(_len_torch_function_stack())]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)


@contextmanager
def _clean_place() -> Iterator[None]:
    """No mode, no inference mode, no autocast, gradients on, float32."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if is_in_torch_dispatch_mode():  # asked first: it imports much
            stack.enter_context(_disable_current_modes())
        stack.enter_context(_no_function_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def trace(
    step: Callable,
    inputs: int,
    states: int,
    outputs: int,
    tensors: tuple[str, ...],
    values: Mapping[str, object],
    open_numbers: Mapping[str, type] = MappingProxyType({}),
) -> Traced:
    """Trace one step and its derivative.

    Args:
        step: ``step(*inputs, *states, **parameters)``, which returns outputs and next states.
        inputs: how many.
        states: how many.
        outputs: how many.
        tensors: names of the parameters that are tensors; each is one value per neuron in the
            trace.
        values: of the other parameters.
        open_numbers: parameters that are numbers of any value, and their types, int or float.

    Raises:
        LooksAt: the step needs the value of one of those.
        ValueError: the step cannot be traced; the message names the operation and its line.
        TypeError: it returns something else than tensors.
    """
    name = getattr(step, "__qualname__", repr(step))
    with _clean_place():
        recorder = _Recorder(getattr(getattr(step, "__code__", None), "co_filename", None))

        def leaf(value_name: str) -> Tensor:
            # Values that no branch of an operation treats in its own way.
            tensor = torch.linspace(0.25, 0.75, NEURONS).view(1, NEURONS)
            return recorder.leaf(tensor.requires_grad_(), value_name)

        x = [leaf(f"x{k}") for k in range(inputs)]
        v = [leaf(f"v{k}") for k in range(states)]
        p = {key: leaf(f"p{k}") for k, key in enumerate(tensors)}
        gradients = [torch.ones(1, NEURONS) for _ in range(outputs + states)]
        for k, tensor in enumerate(gradients):
            recorder.leaf(tensor, f"g{k}" if k < outputs else f"d{k - outputs}")
        numbers = {key: Number(key, kind, recorder.numbers) for key, kind in open_numbers.items()}
        try:
            with recorder:
                returned = step(*x, *v, **p, **values, **numbers)
                results = _checked_results(returned, name, states, outputs, recorder)
                roots = [k for k, r in enumerate(results) if r.requires_grad]
                leaves = [*x, *v, *p.values()]
                found: tuple = (None,) * len(leaves)
                if roots:
                    found = torch.autograd.grad(
                        [results[k] for k in roots],
                        leaves,
                        [gradients[k].view(results[k].shape) for k in roots],
                        allow_unused=True,
                    )
                made = [recorder.value(r) for r in results]
                back = [None if g is None else recorder.value(g) for g in found]
        except Refused as reason:
            raise ValueError(f"{name} cannot be fused: {reason}") from None
        except (RuntimeError, TypeError) as error:
            if numbers:  # perhaps it took one where only a float will do
                raise LooksAt(frozenset(numbers)) from None
            if "leaf Variable" in str(error):
                raise ValueError(
                    f"{name} cannot be fused: it changes an input, a state or a parameter in place"
                ) from error
            raise
    return _finished(recorder, (inputs, states, len(tensors)), made, back)


def _checked_results(returned, name, states, outputs, recorder) -> tuple[Tensor, ...]:
    results = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
    if len(results) != outputs + states:
        raise ValueError(
            f"{name} must return {outputs} output(s) and then {states} state(s); "
            f"it returned {len(results)} value(s)"
        )
    out = []
    for k, result in enumerate(results):
        which = f"output {k}" if k < outputs else f"state {k - outputs}"
        if not isinstance(result, Tensor):
            raise TypeError(
                f"{name} must return tensors; {which} is a {type(result).__name__}: {result!r}"
            )
        if result.dtype not in (torch.float32, torch.bool):
            raise TypeError(f"{name} must return float32 tensors; {which} is {result.dtype}")
        if result.numel() != NEURONS:
            if result.numel() != 1:
                raise ValueError(f"{name} must return one value per neuron; {which} is not")
            result = result.expand(1, NEURONS)
        out.append(result)
    return tuple(out)


def _finished(recorder: _Recorder, counts: tuple[int, int, int], made, back) -> Traced:
    """Captured constants become the last parameters."""
    rename = {f"k{k}": f"p{counts[2] + k}" for k in range(len(recorder.constants))}
    instructions = [
        (name, operation, tuple(rename.get(a, a) for a in arguments))
        for name, operation, arguments in recorder.builder.instructions
    ]
    counts = (*counts[:2], counts[2] + len(recorder.constants))
    back = [rename.get(g, g) for g in back] + [None] * len(recorder.constants)
    made = [rename.get(r, r) for r in made]
    program, numbers = build(counts, instructions, made, back)
    known = {number.name: number.expression for number in recorder.numbers.values()}
    numbers = tuple(known.get(number, number) for number in numbers)
    return Traced(program.text(), numbers, tuple(recorder.constants))
