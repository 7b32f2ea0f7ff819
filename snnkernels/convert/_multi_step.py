"""SpikingJelly's neurons and layers in multi-step mode, with the arguments they used to have."""

from __future__ import annotations

from spikingjelly.activation_based import layer, neuron

_BACKENDS = ("torch", "cupy")


class _MultiStep:
    """Takes ``backend=``, which decides nothing any more, and runs in multi-step mode alone."""

    def __init__(self, *args, backend: str = "torch", **kwargs) -> None:
        if backend not in _BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}; got {backend!r}")
        super().__init__(*args, step_mode="m", **kwargs)

    def supported_step_mode(self) -> tuple[str, ...]:
        return ("m",)


def _multi_step(kind: type) -> type:
    name = f"MultiStep{kind.__name__}"
    doc = f"`{kind.__name__}` in multi-step mode.\n\nArguments: its own, and ``backend``."
    return type(name, (_MultiStep, kind), {"__doc__": doc, "__module__": __name__})


MultiStepIFNode = _multi_step(neuron.IFNode)
MultiStepLIFNode = _multi_step(neuron.LIFNode)
MultiStepParametricLIFNode = _multi_step(neuron.ParametricLIFNode)
MultiStepEIFNode = _multi_step(neuron.EIFNode)
MultiStepDropout = _multi_step(layer.Dropout)
MultiStepDropout2d = _multi_step(layer.Dropout2d)

NEURONS = {
    kind.__name__: kind
    for kind in (MultiStepIFNode, MultiStepLIFNode, MultiStepParametricLIFNode, MultiStepEIFNode)
}
LAYERS = {kind.__name__: kind for kind in (MultiStepDropout, MultiStepDropout2d)}
