"""Look at what the neuron layers of a network receive and send."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkernels.nn.lif import LIF


class Seen(NamedTuple):
    """One call of a neuron layer.

    Attributes:
        layer: the layer.
        x: its input `[T, N, *]`, with the strides it had.
        s: its spikes `[T, N, *]`.
        h: potentials before firing, where the layer records them, else None.
    """

    layer: LIF
    x: Tensor
    s: Tensor
    h: Tensor | None


def watch(network: nn.Module, x: Tensor) -> list[Seen]:
    """Run a network once, without gradients, and note every call of a `LIF` layer in it.

    Args:
        network: any module.
        x: its input.

    Returns:
        The calls, first one first.
    """
    calls: list[Seen] = []

    def note(layer: LIF, args: tuple[Tensor], out: Tensor | tuple[Tensor, Tensor]) -> None:
        s, h = (out, None) if isinstance(out, Tensor) else out
        calls.append(Seen(layer, args[0], s, h))

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, LIF)]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
