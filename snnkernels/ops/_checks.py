"""Checks of what the public ops take: apart from running, and before any kernel.

`check_policy` and `check_regulariser` need no tensor, device or backend: layers call them when they
are built.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from snnkernels.core.call import RESETS, Coefficient, as_tensor
from snnkernels.core.derivatives import is_transformed
from snnkernels.core.state import State
from snnkernels.core.surrogates import SURROGATES, Surrogate

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_REFRACTORY = 1 << 24  # float32 counts the steps
FILTER_STATE = "[P + Q, N, *]"
_REAL, _INTEGRAL = (float, numbers.Real), (int, numbers.Integral)  # the usual type first: quick
MAX_SYNAPSE_ORDER = 2  # of the filter that is fused into the neuron


def check_input(x: Tensor) -> None:
    """Raise where x is no sequence that the ops take."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [T, N, *]; got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"x must be float32, bfloat16, float16 (or float64 with backend 'torch'); got {x.dtype}"
        )
    if x.ndim < 2:
        raise ValueError(f"x must be [T, N, *], at least two dimensions; got {list(x.shape)}")


def state_dtype(x: Tensor) -> torch.dtype:
    """What a state and the arithmetic are held in: float32, or float64 for float64 input."""
    return torch.promote_types(x.dtype, torch.float32)


def check_policy(
    *,
    reset: str,
    refractory: int,
    detach_reset: bool,
    v_reset: float,
    surrogate: Surrogate,
    record: str | None,
    has_trace_decay: bool,
) -> tuple[int, float]:
    """Raise where an option of the neuron is wrong.

    Returns:
        refractory and v_reset as Python numbers.
    """
    if reset not in RESETS:
        raise ValueError(f"reset must be one of {', '.join(RESETS)}; got {reset!r}")
    if type(surrogate) not in SURROGATES:
        names = ", ".join(kind.__name__ for kind in SURROGATES)
        raise TypeError(f"surrogate must be an instance of one of {names}; got {surrogate!r}")
    if record is not None and record != "h":
        raise ValueError(f"record must be None or 'h'; got {record!r}")
    refractory = _python_number(refractory)
    if isinstance(refractory, bool) or not isinstance(refractory, _INTEGRAL):
        raise TypeError(f"refractory must be a whole number of steps >= 0; got {refractory!r}")
    if not 0 <= refractory <= MAX_REFRACTORY:
        raise ValueError(f"refractory must be >= 0 and <= {MAX_REFRACTORY}; got {refractory}")
    if not isinstance(detach_reset, bool):
        raise TypeError(f"detach_reset must be True or False; got {detach_reset!r}")
    if has_trace_decay != (reset == "trace"):
        raise ValueError(
            "trace_decay goes with reset='trace' and only with it; "
            f"got {'one' if has_trace_decay else 'None'} with reset={reset!r}"
        )
    return int(refractory), check_number("v_reset", v_reset)


def _python_number(value):
    """The number in a tensor of one value without a gradient; anything else as it is."""
    if not isinstance(value, _REAL) and isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.requires_grad else value
    return value


def check_number(name: str, value: float | Tensor) -> float:
    """A number that is not NaN, as a Python float, or an error."""
    value = _python_number(value)
    if isinstance(value, bool) or not isinstance(value, _REAL):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if value != value:  # torch.compile does not trace math.isnan
        raise ValueError(f"{name} must not be NaN; got nan")
    return float(value)


def _no_pair(regulariser) -> TypeError:
    return TypeError(
        f"regulariser must be None or a pair of numbers (tolerance, shift); got {regulariser!r}"
    )


def check_regulariser(regulariser) -> tuple[float, float] | None:
    """Raise unless it is None or (tolerance, shift)."""
    if regulariser is None:
        return None
    if not isinstance(regulariser, (tuple, list)) or len(regulariser) != 2:
        raise _no_pair(regulariser)
    try:
        tolerance, shift = (check_number("regulariser", number) for number in regulariser)
    except TypeError as error:
        raise _no_pair(regulariser) from error
    if not (tolerance >= 0 and abs(shift) < math.inf):
        raise ValueError(
            "regulariser must be (tolerance, shift) with tolerance >= 0 and a finite shift; "
            f"got {regulariser!r}"
        )
    return tolerance, shift


def check_values(name: str, value: Tensor, x: Tensor) -> None:
    """Raise where a tensor of coefficients has the wrong kind, place or values."""
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be a tensor of numbers; got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x is on {x.device}; they must be the same")
    # A look at the values would stop a GPU; under a tracer and torch.func there are none to see.
    unseen = value.device.type != "cpu" or torch.compiler.is_compiling() or is_transformed()
    if not unseen and value.isnan().any():
        raise ValueError(f"{name} must not be NaN; got {value.tolist()}")


def check_coefficient(name: str, value: float | Tensor | Sequence, x: Tensor) -> float | Tensor:
    """A number, a 0-d tensor or `[C]`, or an error."""
    if isinstance(value, _REAL):
        return check_number(name, value)
    value = _as_tensor(name, value, x, "a number, a tensor, or one value per channel")
    check_values(name, value, x)
    if value.numel() == 1:
        return value.reshape(())
    channels = x.shape[2] if x.ndim > 2 else None
    at = next((d for d, size in enumerate(value.shape) if size != 1), 0)
    # `[C]`, `[C, 1, 1]`, and what broadcasts against `[N, C, *]` or `[T, N, C, *]`.
    aligned = at == 0 or value.ndim - at == x.ndim - 2
    if value.numel() != channels or value.shape[at] != channels or not aligned:
        allowed = f"0-d or [{channels}], one per channel" if channels else "0-d for x [T, M]"
        raise ValueError(f"{name} must be {allowed}; got shape {list(value.shape)}")
    return value.reshape(-1)


def as_coefficient(value: float | Tensor) -> Coefficient:
    """A checked coefficient as a `Call` holds it."""
    if isinstance(value, Tensor):
        return Coefficient(value.to(torch.float32).contiguous())
    return Coefficient(None, value)


# --- filters -------------------------------------------------------------------------------------


def check_pair(synapse) -> None:
    """Raise unless ``synapse`` is a pair."""
    if not isinstance(synapse, (tuple, list)) or len(synapse) != 2:
        raise TypeError(f"synapse must be None or a pair (alpha, beta); got {synapse!r}")


def check_filter(
    prefix: str, alpha: Tensor | Sequence[float], beta: Tensor | Sequence[float], x: Tensor
) -> tuple[Tensor, Tensor]:
    """The coefficients as tensors `[P]` or `[C, P]`, `[Q + 1]` or `[C, Q + 1]`, or an error."""
    checked = []
    for name, value, least in ((f"{prefix}alpha", alpha, 0), (f"{prefix}beta", beta, 1)):
        value = _as_tensor(name, value, x, "a tensor or a sequence of numbers")
        check_values(name, value, x)
        shape = list(value.shape)
        lags = "Q + 1" if least else "P"
        if value.ndim not in (1, 2) or shape[-1] < least:
            raise ValueError(f"{name} must be [{lags}] or [C, {lags}]; got shape {shape}")
        if value.ndim == 2 and (x.ndim < 3 or shape[0] != x.shape[2]):
            allowed = (
                f"[{x.shape[2]}, {lags}] for x with that many channels"
                if x.ndim > 2
                else f"[{lags}] for x [T, M]"
            )
            raise ValueError(f"{name} must be {allowed}; got shape {shape}")
        checked.append(value)
    return tuple(checked)


def _as_tensor(name: str, value: Tensor | Sequence, x: Tensor, allowed: str) -> Tensor:
    """A tensor as it is; numbers in a sequence or an array as one on x's device."""
    if isinstance(value, Tensor):
        return value
    traced = torch.compiler.is_compiling()
    if traced and isinstance(value, (list, tuple)) and len(value):
        return as_tensor(value, state_dtype(x), x.device)
    # Not while a graph is traced, which has its own constants, nor for tensors without data.
    copied = x.device.type != "cpu" and type(x) is Tensor and not traced
    try:
        tensor = torch.tensor(value, dtype=state_dtype(x), device="cpu" if copied else x.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be {allowed}; got {value!r}") from error
    if not copied:
        return tensor
    check_values(name, tensor, tensor)
    return _on_device(tuple(tensor.flatten().tolist()), tuple(tensor.shape), tensor.dtype, x.device)


@lru_cache(maxsize=256)
def _on_device(values: tuple, shape: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied once: a copy waits for the device and cannot be part of a CUDA graph."""
    with torch.inference_mode(False):  # or it could never be part of a backward pass
        return torch.tensor(values, dtype=dtype, device=device).view(shape)


def check_orders(prefix: str, alpha: Tensor, beta: Tensor, most: float, hint: str = "") -> None:
    """Raise where an order is higher than the kernels take."""
    for name, order in (("alpha", alpha.shape[-1]), ("beta", beta.shape[-1] - 1)):
        if order > most:
            raise ValueError(
                f"{prefix}{name} has order {order}; the kernels take up to {most}{hint}"
            )


def check_synapse(synapse, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The filter in front of a neuron, or an error."""
    if synapse is None:
        return None
    check_pair(synapse)
    alpha, beta = check_filter("synapse ", *synapse, x)
    hint = ": put snnkernels.iir in front of the neuron"
    check_orders("synapse ", alpha, beta, MAX_SYNAPSE_ORDER, hint)
    return alpha, beta


def lags_first(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients as a `Call` holds them: float32 `[P, c]` and `[Q + 1, c]`."""
    if alpha.ndim != beta.ndim:  # one filter's part is shared by the channels, the other is not
        channels = max(alpha, beta, key=lambda t: t.ndim).shape[0]
        alpha, beta = (t if t.ndim == 2 else t.expand(channels, -1) for t in (alpha, beta))
    return tuple(
        t.to(torch.float32).unsqueeze(1) if t.ndim == 1 else t.to(torch.float32).t().contiguous()
        for t in (alpha, beta)
    )


# --- states --------------------------------------------------------------------------------------


def check_state_part(
    name: str, part: float | Tensor, x: Tensor, shape: list[int], form: str = "[N, *]"
) -> Tensor:
    """One part of a state in the dtype that it is held in, or an error; a number fills it."""
    if not isinstance(part, Tensor):
        part = as_tensor(check_number(name, part), state_dtype(x), x.device)
    if part.is_complex() or part.dtype == torch.bool:
        raise TypeError(f"{name} must be a tensor of numbers; got {part.dtype}")
    if part.device != x.device:
        raise ValueError(f"{name} is on {part.device}, x is on {x.device}")
    if part.ndim and list(part.shape) != shape:
        raise ValueError(f"{name} must be {form} = {shape}; got {list(part.shape)}")
    part = part.to(state_dtype(x)).expand(shape)
    if not torch.compiler.is_compiling() and part.is_inference():
        part = part.clone()  # outside of inference mode a graph cannot keep it
    return part


def check_state(
    state: State | Tensor | float | None,
    x: Tensor,
    *,
    refractory: int,
    reset: str,
    filter_rows: int | None,
) -> State:
    """Where a neuron starts, or an error.

    Args:
        state: as the user gave it.
        x: the input.
        refractory: of the neuron.
        reset: of the neuron.
        filter_rows: P + Q of its synapse; None without one.
    """
    if state is None:
        return State()
    if isinstance(state, (Tensor, numbers.Real)):
        state = State(state)
    if not isinstance(state, State):
        raise TypeError(f"state must be a State, a tensor, a number or None; got {state!r}")
    if state.synapse is not None and filter_rows is None:
        raise ValueError("state.synapse is set, but synapse=None: pass the filter, or drop it")
    if state.trace is not None and reset != "trace":
        raise ValueError("state.trace is set, but reset is not 'trace': pass it, or drop the trace")
    if state.refractory is not None and not refractory:
        raise ValueError("state.refractory is set, but refractory=0: pass the period, or drop it")
    step = list(x.shape[1:])
    places = dict.fromkeys(State._fields, (step, "[N, *]"))
    places["synapse"] = [filter_rows, *step], FILTER_STATE
    return State(
        **{
            name: check_state_part(f"state.{name}", part, x, *places[name])
            for name, part in state._asdict().items()
            if part is not None
        }
    )
