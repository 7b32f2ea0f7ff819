"""snnTorch: Leaky, Synaptic, Lapicque and Alpha, for `snnkernels.run_over_time`.

A module is one step, called in a loop of the user's, where a fused call gains nothing: `accelerate`
leaves it as it is.
"""

from __future__ import annotations

import snntorch
from torch import Tensor, nn

from snnkernels.convert.adapter import Adapter
from snnkernels.convert.fused import Kept, original_class

STATES = {
    snntorch.Leaky: ("mem",),
    snntorch.Lapicque: ("mem",),
    snntorch.Synaptic: ("syn", "mem"),
    snntorch.Alpha: ("syn_exc", "syn_inh", "mem"),
}
_MECHANISM = "reset_mechanism_val"  # the buffer that holds the mechanism's number


class SnnTorch(Adapter):
    """A neuron whose states are buffers, kept from call to call."""

    changing = frozenset({"reset", _MECHANISM})
    one_step = True

    def states(self, module: nn.Module) -> int:
        return len(STATES[original_class(module)])

    def step(self, module, x, states):
        names = STATES[type(module)]
        module._buffers.update(zip(names, states, strict=True))
        del module._buffers[_MECHANISM]  # the step asks for its value, which a trace cannot
        setattr(module, _MECHANISM, module.reset_dict[module.reset_mechanism])
        returned = module.forward(*x)
        spikes = returned[0] if isinstance(returned, tuple) else returned
        return (spikes,), tuple(getattr(module, name) for name in names)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        left_out = {*STATES[original_class(module)], _MECHANISM}
        found = dict(module.named_parameters()) | dict(module.named_buffers())
        return {name: tensor for name, tensor in found.items() if name not in left_out}

    def call(self, module: nn.Module, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """All steps at once: spikes, and the states of all steps where a step returns its state."""
        if not getattr(module, "reset_delay", True):
            loaded = int(getattr(module, _MECHANISM))
            if loaded != module.reset_dict[module.reset_mechanism]:
                raise Kept("its reset_mechanism_val is another than its reset_mechanism")
        names = STATES[original_class(module)]
        states = [getattr(module, name) for name in names]
        fits = x.shape[1:]
        record = tuple(range(len(names))) if module.output or not module.init_hidden else ()
        (spikes,), states, recorded = self.run(
            module, x, [s if s.shape == fits else 0.0 for s in states], record
        )
        for name, state in zip(names, states, strict=True):
            setattr(module, name, state)
        return (spikes, *recorded) if record else spikes


_ADAPTER = SnnTorch()


def find(module: nn.Module) -> Adapter | str | None:
    """The adapter of a neuron; why another one is kept; None for what is none."""
    if not isinstance(module, snntorch.SpikingNeuron):
        return None
    kind = original_class(module)
    if kind not in STATES:
        return f"{kind.__name__} is none of {', '.join(known.__name__ for known in STATES)}"
    return _ADAPTER
