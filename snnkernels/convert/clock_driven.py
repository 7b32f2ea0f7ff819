"""Names of SpikingJelly before activation_based, for networks that import them."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_OLD, _NEW = "spikingjelly.clock_driven", "spikingjelly.activation_based"
_SAME = ("base", "encoding", "functional", "surrogate")


def install() -> None:
    """Make ``spikingjelly.clock_driven`` importable, from SpikingJelly 2.0's own classes.

    Spiking transformers are published with imports such as
    ``from spikingjelly.clock_driven.neuron import MultiStepLIFNode``, of a package that is gone,
    and ``backend="cupy"``. After this call they import as they are, without CuPy: the names are
    those of ``activation_based``, and ``MultiStepIFNode``, ``MultiStepLIFNode``,
    ``MultiStepParametricLIFNode`` and ``MultiStepEIFNode`` are its neurons in multi-step mode.
    `snnkernels.accelerate` knows them. Call it before the network is imported; a second call
    changes nothing.

    Raises:
        ImportError: SpikingJelly is not installed, or too old to have ``activation_based``.
        RuntimeError: the installed SpikingJelly has a ``clock_driven`` of its own.

    Example:
        >>> import snnkernels
        >>> snnkernels.convert.clock_driven.install()
        >>> from spikingjelly.clock_driven.neuron import MultiStepLIFNode
        >>> MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy").step_mode
        'm'
    """
    if getattr(sys.modules.get(_OLD), "installed_by", None) == __name__:
        return
    if find_spec(_OLD) is not None:
        raise RuntimeError(f"{_OLD} is installed; use it as it is, or install SpikingJelly 2.0")
    package = ModuleType(_OLD, "Old names, put here by snnkernels.convert.clock_driven.install().")
    package.installed_by = __name__
    package.__path__ = []
    modules = {name: import_module(f"{_NEW}.{name}") for name in _SAME}
    ours = import_module("snnkernels.convert._multi_step")
    for name in ("neuron", "layer"):
        modules[name] = ModuleType(f"{_OLD}.{name}")
        vars(modules[name]).update(_public(import_module(f"{_NEW}.{name}")))
    vars(modules["neuron"]).update(surrogate=modules["surrogate"], **ours.NEURONS)
    vars(modules["layer"]).update(ours.LAYERS)
    vars(package).update(modules)
    sys.modules[_OLD] = package
    sys.modules.update({f"{_OLD}.{name}": module for name, module in modules.items()})
    import_module("spikingjelly").clock_driven = package


def _public(module: ModuleType) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}
