"""The commonest neurons of other libraries, whose programs are compiled ahead of time too.

Their texts lie beside those of the neurons that ship, as csrc/programs/<library>-<neuron>.txt. They
are written where the library is installed; to build with them takes no library.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import nn

from snnkernels.convert.swap import examine


def text_of(module: nn.Module, *record: int) -> str:
    """The canonical text of a neuron module's step, where these states are recorded."""
    _, adapter = examine("", module)
    return adapter.program(module, adapter.tensors(module), record).program


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


def snntorch() -> dict[str, str]:
    """Reset by subtraction, as hidden layers have it and as a last layer that records `mem`."""
    from snntorch import Leaky, Synaptic, surrogate

    texts = {
        f"Leaky-{name}{'-record' if record else ''}": text_of(
            Leaky(0.5, spike_grad=made()), *record
        )
        for name, made in dict(atan=surrogate.atan, fast_sigmoid=surrogate.fast_sigmoid).items()
        for record in ((), (0,))
    }
    texts["Leaky-atan-beta"] = text_of(Leaky(0.5, learn_beta=True))
    return texts | {"Synaptic-atan": text_of(Synaptic(0.5, 0.5))}


def norse() -> dict[str, str]:
    """With the surrogate that is its default; the texts of cells are the same."""
    from norse.torch import LICell, LIFBoxCell, LIFCell

    return dict(LIF=text_of(LIFCell()), LIFBox=text_of(LIFBoxCell()), LI=text_of(LICell()))


def sinabs() -> dict[str, str]:
    """As its converter of networks makes them, and without a least potential."""
    from sinabs.activation import PeriodicExponential
    from sinabs.layers import IAF, LIF

    periodic = PeriodicExponential()
    return {
        "IAF": text_of(IAF()),
        "IAF-clip": text_of(IAF(min_v_mem=-1.0)),
        "IAF-clip-periodic": text_of(IAF(min_v_mem=-1.0, surrogate_grad_fn=periodic)),
        "LIF": text_of(LIF(tau_mem=10.0)),
    }


PEERS: dict[str, Callable[[], dict[str, str]]] = {
    "spikingjelly": spikingjelly,
    "snntorch": snntorch,
    "norse": norse,
    "sinabs": sinabs,
}


def peer_programs() -> dict[str, str]:
    """Text by name, of the libraries that are installed."""
    return {
        f"{library}-{name}": text
        for library, texts in PEERS.items()
        if find_spec(library) is not None
        for name, text in texts().items()
    }
