"""Checks of what `snnkernels.fuse` is given: the step, its parameters and its states."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import fields

from torch import Tensor

from snnkernels.core.surrogates import Surrogate
from snnkernels.ops._checks import state_dtype

NUMBERS = {"int": int, "float": float}  # options that `snnkernels.core.trace` may leave open


def step_name(step: Callable) -> str:
    return getattr(step, "__qualname__", type(step).__name__)


def sample_shaped(name: str, value: Tensor, x: Tensor) -> Tensor:
    """A parameter as the private ops take it, or an error."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor; got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x is on {x.device}; they must be the same")
    dtype = state_dtype(x)
    if value.dtype != dtype:
        value = value.to(dtype)
    sample = x.shape[2:]
    if value.ndim == 0 or value.shape == sample:
        return value
    if value.numel() == 1:
        return value.reshape(())
    channels = [sample[0], *[1] * (len(sample) - 1)] if sample else None
    if channels is None or list(value.shape) not in ([sample[0]], channels):
        allowed = "0-d"
        if sample:
            allowed += f", [{sample[0]}] (one per channel) or {list(sample)} (one per neuron)"
        raise ValueError(f"{name} must be {allowed}; got shape {list(value.shape)}")
    return value.view(channels)


def recorded_outputs(outputs: int | Sequence[str]) -> list[bool]:
    if type(outputs) is int and outputs >= 1:
        return [False] * outputs
    if isinstance(outputs, (tuple, list)) and outputs and set(outputs) <= {"x", "float32"}:
        return [word == "float32" for word in outputs]
    raise ValueError(
        "outputs must be a whole number >= 1, or a tuple of 'x' and 'float32', the dtype of each; "
        f"got {outputs!r}"
    )


def signature(step: Callable) -> tuple[tuple[str, ...], dict[str, object]]:
    """Names of the positional arguments, and the keyword-only ones with their defaults."""
    positional, keywords = [], {}
    for name, parameter in inspect.signature(step).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            keywords[name] = parameter.default
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(name)
        else:
            raise TypeError(
                f"{step_name(step)} must name its arguments; it has *{name}. Inputs and states are "
                "positional, parameters keyword-only"
            )
    if "backend" in keywords:
        raise TypeError("a parameter must not be named backend")
    return tuple(positional), keywords


def trace_options(parameters: dict, tensors: tuple[str, ...]) -> tuple:
    """The parameters that are no tensors, with 1, 1.0 and True apart.

    Hashable, and of what torch.compile takes for constants; `option_values` undoes it.
    """
    options = []
    for name, value in parameters.items():
        if name in tensors:
            continue
        if isinstance(value, float):
            if math.isnan(value):
                raise ValueError(f"{name} must not be NaN")
            options.append((name, "float", value.hex()))
        elif isinstance(value, Surrogate):
            numbers = tuple(getattr(value, field.name) for field in fields(value))
            options.append((name, type(value), numbers))
        elif value is None or isinstance(value, (bool, int, str)) or callable(value):
            options.append((name, type(value).__name__, value))
        else:
            raise TypeError(
                f"{name} must be a number, a tensor or an option such as a surrogate; got {value!r}"
            )
    return tuple(options)


def option_values(options: tuple) -> dict[str, object]:
    """The parameters that `trace_options` was given."""
    values = {}
    for name, kind, value in options:
        if kind == "float":
            value = float.fromhex(value)
        elif isinstance(kind, type):
            value = kind(*value)
        values[name] = value
    return values
