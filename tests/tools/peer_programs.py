"""The commonest neurons of other libraries, whose programs are compiled ahead of time too.

Their texts lie beside those of the neurons that ship, as csrc/programs/<library>-<neuron>.txt. They
are written where the library is installed; to build with them takes no library.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import nn

import snnkernels
from snnkernels.convert.fused import link


def text_of(module: nn.Module) -> str:
    """The canonical text of a neuron module's step."""
    snnkernels.accelerate(module, strict=True)
    adapter = link(module).adapter
    return adapter.program(module, adapter.tensors(module)).program


def spikingjelly() -> dict[str, str]:
    """Hard reset, with either surrogate that its examples use, reset detached or not."""
    from spikingjelly.activation_based import neuron, surrogate

    kinds = dict(IF=neuron.IFNode, LIF=neuron.LIFNode, PLIF=neuron.ParametricLIFNode)
    return {
        f"{name}-{surrogate_type.__name__}{'-detach' if detach else ''}": text_of(
            kind(surrogate_function=surrogate_type(), detach_reset=detach, step_mode="m")
        )
        for name, kind in kinds.items()
        for surrogate_type in (surrogate.Sigmoid, surrogate.ATan)
        for detach in (False, True)
    }


PEERS: dict[str, Callable[[], dict[str, str]]] = {"spikingjelly": spikingjelly}


def peer_programs() -> dict[str, str]:
    """Text by name, of the libraries that are installed."""
    return {
        f"{library}-{name}": text
        for library, texts in PEERS.items()
        if find_spec(library) is not None
        for name, text in texts().items()
    }
