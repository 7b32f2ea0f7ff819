"""`accelerate`, `restore` and `original`: which modules of a network run fused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from torch import nn
from torch.jit import ScriptModule

from snnkernels.backends import check_name
from snnkernels.convert.adapter import Adapter
from snnkernels.convert.fused import Kept, Link, fuse_class, original_class, restore_class
from snnkernels.convert.report import Entry, Report


class Library(NamedTuple):
    """A library whose neurons are known.

    Attributes:
        neurons: the package that has the classes of its neurons.
        first: version that is tested.
        last: version that is tested.
    """

    neurons: str
    first: str
    last: str


LIBRARIES = {
    "spikingjelly": Library("spikingjelly.activation_based.neuron", "2.0.0", "2.0.0"),
    "snntorch": Library("snntorch._neurons", "1.0.0", "1.0.0"),
    "norse": Library("norse.torch.module", "1.1.0", "1.1.0"),
    "sinabs": Library("sinabs.layers", "3.1.3", "3.1.3"),
}


def accelerate(
    model: nn.Module,
    *,
    backend: str = "auto",
    allow_fp32_state: bool = False,
    strict: bool = False,
) -> Report:
    """Let the spiking neurons of another library run over time in one fused pass.

    The class of each neuron module is swapped for one that replaces the loop over time. The object
    stays the same, with its parameters, buffers, hooks, state and state_dict, and so do the
    library's functions for them. Its own code for one step is traced, with its options as they are
    at each call, so spikes and states are the library's: bit for bit, or within what the report
    says. What cannot run fused keeps the library's code, and the report says why.

    Args:
        model: a network with neurons of SpikingJelly, snnTorch, Norse or sinabs, or one such
            neuron. Modules that an earlier call has swapped are swapped anew.
        backend: "auto" or a name, see `snnkernels.available_backends`. Default: "auto".
        allow_fp32_state: run input in bfloat16 and float16 fused too, with states in float32 where
            the library has them in the input's dtype. Default: False.
        strict: raise where a neuron cannot run fused, and change nothing. Default: False.

    Returns:
        A `Report`, one entry for each neuron module.

    Raises:
        TypeError: model is no module.
        ValueError: it has no neuron of these libraries, or strict and one that cannot run fused;
            the backend has no such name.

    Example:
        >>> import snnkernels
        >>> from spikingjelly.activation_based.neuron import LIFNode
        >>> print(snnkernels.accelerate(LIFNode(tau=2.0, step_mode="m")).entries[0].how)
        same bits
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    check_name(backend)
    found: list[tuple[nn.Module, Entry, Adapter | None]] = []
    for name, module in model.named_modules():
        examined = examine(name, module)
        if examined is not None:
            entry, adapter = examined
            if adapter is not None and adapter.one_step:
                entry.reason = "it is one step, in a loop of your own: see run_over_time"
            found.append((module, entry, adapter))
    if not found:
        raise ValueError(
            f"model has no neuron of {', '.join(LIBRARIES)}; it is a {type(model).__name__}"
        )
    report = Report([entry for _, entry, _ in found])
    if strict:
        raise_if_kept(report)
    for module, entry, adapter in found:
        restore_class(module)
        if entry.reason is None:
            fuse_class(module, Link(adapter, entry, backend, allow_fp32_state))
    return report


def restore(model: nn.Module) -> None:
    """Give every neuron that `accelerate` has swapped its library's class back.

    Args:
        model: the network, or a part of it.
    """
    for module in model.modules():
        restore_class(module)


@contextmanager
def original(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which the network's neurons are of their library's classes.

    For code that asks for a module's exact type, as exporters do.

    Args:
        model: the network, or a part of it.

    Example:
        >>> import snnkernels
        >>> from spikingjelly.activation_based.neuron import IFNode
        >>> node = IFNode(step_mode="m")
        >>> report = snnkernels.accelerate(node)
        >>> with snnkernels.original(node):
        ...     print(type(node) is IFNode)
        True
    """
    links = [(module, restore_class(module)) for module in model.modules()]
    try:
        yield model
    finally:
        for module, link in links:
            if link is not None:
                fuse_class(module, link)


def raise_if_kept(report: Report) -> None:
    """An error that names every neuron that cannot run fused."""
    kept = [entry for entry in report if entry.reason is not None]
    if kept:
        raise ValueError(
            "cannot run fused: " + "; ".join(f"{e.name} ({e.kind}): {e.reason}" for e in kept)
        )


def examine(
    name: str, module: nn.Module, why_kept: str | None = None
) -> tuple[Entry, Adapter | None] | None:
    """A module's line of the report, and its adapter unless it is kept; None: no neuron.

    Args:
        name: of the module in the network.
        module: any.
        why_kept: a reason that a neuron is kept for, whatever else is said of it.
    """
    library = _library(module)
    adapter = None if library is None else _adapter(module, library)
    return None if adapter is None else _entry(name, module, library, why_kept or adapter)


def _library(module: nn.Module) -> str | None:
    """The library that a neuron module's class, or one of its bases, is from."""
    if isinstance(module, ScriptModule):  # what it was made of
        places = [module._c._type().qualified_name().removeprefix("__torch__.")]
    else:
        places = [kind.__module__ for kind in type(module).__mro__]
    for name, library in LIBRARIES.items():
        if any(f"{place}.".startswith(f"{library.neurons}.") for place in places):
            return name
    return None


def _adapter(module: nn.Module, library: str) -> Adapter | str | None:
    """How the module runs over time, the reason why it is kept, or None: it is no neuron."""
    if isinstance(module, ScriptModule):
        return "it is a ScriptModule"
    _, first, last = LIBRARIES[library]
    installed = version(library)
    if not _numbers(first) <= _numbers(installed) <= _numbers(last):
        tested = first if first == last else f"{first} to {last}"
        return f"{library} {installed} is installed; tested is {tested}"
    adapter = import_module(f"snnkernels.convert.{library}").find(module)
    if isinstance(adapter, Adapter):
        if hasattr(module, "parametrizations"):
            return "it is parametrized"
        for method in ("forward", adapter.over_time):
            if method in vars(module):
                return f"its {method} was replaced on the object"
    return adapter


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".") if part.isdigit())


def _entry(
    name: str, module: nn.Module, library: str, adapter: Adapter | str
) -> tuple[Entry, Adapter | None]:
    """The module's line of the report, and its adapter unless it is kept."""
    kind = getattr(module, "original_name", original_class(module).__name__)  # of a ScriptModule
    entry = Entry(name, kind, library, version(library))
    if isinstance(adapter, str):
        entry.reason = adapter
        return entry, None
    entry.options = adapter.options(module)
    try:
        entry.numerics = adapter.program(module, adapter.tensors(module)).numerics
    except Kept as reason:
        entry.reason = str(reason)
    return entry, adapter
