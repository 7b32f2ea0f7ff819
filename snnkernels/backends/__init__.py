"""The backends: one module each, with the functions that ``contract.py`` lists.

``neuron_forward`` and ``neuron_backward`` fill the buffers they are given and allocate nothing that
outlives the call. Backend "torch" is ``snnkernels.core.reference`` and has no module here.
"""

from __future__ import annotations

import math
from functools import lru_cache, wraps
from importlib import import_module
from types import ModuleType

import torch

from snnkernels.backends.faster import faster_on_gpu

__all__ = [
    "BACKENDS",
    "PREFERENCE",
    "available_backends",
    "checkpoint_every",
    "choose",
    "faster_on_gpu",
    "load",
    "max_order",
    "why_unavailable",
]

BACKENDS = ("torch", "cpp", "triton", "cuda")

# What a module may name in its OPS; one that names none has the plain neuron.
_WORDS = {
    "neuron": "lif",
    "general": "lif with synapse, gain or trace",
    "regulariser": "lif with regulariser",
    "iir": "iir",
    "bntt": "BNTT",
    "program": "a fused step",
}

# What "auto" tries on each kind of device, best first.
PREFERENCE = {"cpu": ("cpp", "torch"), "cuda": ("triton", "cuda", "torch")}


def _constant(function):
    """Cache a function, and let torch.compile call it while it traces and keep what it returned.

    The mark is torch.compiler.assume_constant_result without its import of the whole compiler;
    torch.compile does not see it on what lru_cache returns.
    """
    cached = lru_cache(function)

    @wraps(function)
    def call(*arguments):
        return cached(*arguments)

    call._dynamo_marked_constant = True
    return call


@lru_cache
def load(name: str) -> ModuleType:
    """The module of a backend with kernels ("cpp", "triton", "cuda")."""
    return import_module(f"snnkernels.backends.{name}")


@_constant
def checkpoint_every(name: str) -> int:
    """Steps between the states that a backend with kernels keeps for its backward pass."""
    return load(name).CHECKPOINT_EVERY


def check_name(name: str) -> None:
    """Raise a ValueError unless ``backend=`` takes the name, on whatever machine."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}; got {name!r}")


@_constant
def max_order(name: str) -> float:
    """The highest order of a filter, feedback or input, that a backend's `iir` takes."""
    return math.inf if name == "torch" else load(name).MAX_ORDER


@lru_cache
def why_unavailable(name: str, device_type: str, index: int | None = None) -> str | None:
    """None where the backend can run on a device, else the reason, as a sentence.

    Args:
        name: of the backend.
        device_type: kind of device.
        index: number of the device. Default: any of that kind.
    """
    if name not in BACKENDS:
        return f"there is no backend {name!r}; the backends are {', '.join(BACKENDS)}"
    if name == "torch":
        return None
    try:
        module = load(name)
    except ImportError as error:
        return f"backend {name!r} is not installed: {error}"
    return module.why_unavailable(device_type, index)


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The backends that work on a device, fastest first.

    Args:
        device: a device or its name. Default: "cpu".

    Returns:
        Names that ``backend=`` takes on that device; the first one is what "auto" takes, but for
        sizes at which `python -m snnkernels tune` found another one faster on this GPU.
    """
    device = torch.device(device)
    kind = device.type
    preferred = PREFERENCE.get(kind, ("torch",))
    names = sorted(BACKENDS, key=lambda n: preferred.index(n) if n in preferred else len(preferred))
    return tuple(name for name in names if why_unavailable(name, kind, device.index) is None)


@_constant
def choose(
    name: str,
    device_type: str,
    dtype: torch.dtype,
    op: str = "neuron",
    order: int = 0,
    first: str | None = None,
    index: int | None = None,
) -> str:
    """The backend to run: ``name`` itself or an error, or the preferred one for "auto".

    Args:
        name: as the user gave it.
        device_type: of x.
        dtype: of x.
        op: "neuron", "general" (a neuron with synapse, gain or trace), "regulariser" (any neuron
            with one), "iir" or "bntt" (of some sequences only, as its `takes_bntt` says).
        order: of the filter, where op is "iir".
        first: what "auto" tries before the others. Default: None.
        index: of x's device.
    """
    if name == "auto":
        if dtype == torch.float64:
            return "torch"  # the kernels hold float32
        candidates = PREFERENCE.get(device_type, ("torch",))
        if first is not None:
            candidates = (first, *candidates)
        return next(
            n
            for n in candidates
            if why_unavailable(n, device_type, index) is None
            and _has(n, op)
            and (op != "iir" or order <= max_order(n))
        )
    check_name(name)
    reason = why_unavailable(name, device_type, index)
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot run on device {device_type!r}: {reason}")
    if not _has(name, op):
        raise RuntimeError(f"backend {name!r} has no kernel for {_WORDS[op]}; use another backend")
    if dtype == torch.float64 and name != "torch":
        raise TypeError(
            f"x has dtype float64, which backend {name!r} does not take; "
            "use backend='torch', or float32, bfloat16 or float16 input"
        )
    return name


def _has(name: str, op: str) -> bool:
    return name == "torch" or op in getattr(load(name), "OPS", ("neuron",))
