"""SpikingJelly's neurons in multi-step mode: `[T, N, *]` at once."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn

from snnkernels.convert.adapter import Adapter
from snnkernels.convert.fused import Kept, original_class

_KNOWN = (
    neuron.IFNode,
    neuron.LIFNode,
    neuron.ParametricLIFNode,
    neuron.QIFNode,
    neuron.EIFNode,
    neuron.KLIFNode,
    neuron.IzhikevichNode,
    neuron.ILIFNode,
    neuron.CUBALIFNode,
    neuron.HalfThresholdIFNode,
    neuron.ComplementaryLIFNode,
    neuron.TernaryIFNode,
    neuron.TernaryLIFNode,
)
_GENERAL = (base.MemoryModule, neuron.BaseNode)  # whose multi-step forward runs any step
_STEP, _OVER_TIME = "single_step_functional_forward", "multi_step_functional_forward"


class Node(Adapter):
    """A neuron with a functional form: its states are its memories, in their order."""

    over_time = "multi_step_forward"
    changing = frozenset({"_memories", "_memories_rv", "v_seq", "_store_v_seq"})

    def states(self, module: nn.Module) -> int:
        return len(module._memories)

    def step(self, module, x, states):
        # The multi-step form, of one step: I-LIF's two forms round in different orders.
        outputs, states = module.multi_step_functional_forward((x[0].unsqueeze(0),), states)
        return (outputs[0].squeeze(0),), states

    def call(self, module: nn.Module, x_seq: Tensor, *args, **kwargs) -> Tensor:
        if args or kwargs:
            raise Kept("it is called with more than x_seq")
        self.check(module, x_seq)
        states, v_seq = self._start(module, x_seq), self._stores_v_seq(module)
        (spikes,), states, recorded = self.run(module, x_seq, states, (0,) if v_seq else ())
        module._memories.update(zip(module._memories, states, strict=True))
        if v_seq:
            module.v_seq = recorded[0]
        return spikes

    def _start(self, module: nn.Module, x_seq: Tensor) -> tuple[Tensor, ...]:
        if module._neuron_precision is not None:
            raise Kept("its precision is set")
        if getattr(module, "store_state_seqs", False):
            raise Kept("store_state_seqs is set")
        first = x_seq[:1].detach().to(torch.float32)
        return module.materialize_states((first,), tuple(module._memories.values()), "m")

    def _stores_v_seq(self, module: nn.Module) -> bool:
        return module.store_v_seq


class SimpleNode(Node):
    """A neuron of `neuronal_charge`, `neuronal_fire` and `neuronal_reset`."""

    def step(self, module, x, states):
        module._memories.update(zip(module._memories, states, strict=True))
        spike = module.single_step_forward(x[0])
        return (spike,), tuple(module._memories.values())

    def _start(self, module: nn.Module, x_seq: Tensor) -> tuple:
        return tuple(module._memories.values())

    def _stores_v_seq(self, module: nn.Module) -> bool:
        return False


class NonSpiking(Adapter):
    """A readout: `neuronal_charge` from zero at each call, then a decoding of all potentials."""

    changing = frozenset({"v", "decode"})

    def states(self, module: nn.Module) -> int:
        return 1

    def step(self, module, x, states):
        (module.v,) = states
        module.neuronal_charge(x[0])
        return (module.v,), (module.v,)

    def call(self, module: nn.Module, x_seq: Tensor):
        (v_seq,), _, _ = self.run(module, x_seq, (0.0,))
        steps = iter(v_seq.unbind(0))

        def charged(x: Tensor) -> None:
            module.v = next(steps)

        # The library decodes; its charge is told what came out.
        module.neuronal_charge = charged
        try:
            return type(module).__bases__[1].forward(module, x_seq)
        finally:
            del module.neuronal_charge


def find(module: nn.Module) -> Adapter | str:
    """The adapter of a neuron module, or why it is kept."""
    kind = original_class(module)
    if issubclass(kind, neuron.NonSpikingBaseNode):
        return _foreign(kind, "forward") or NonSpiking()
    simple = issubclass(kind, neuron.SimpleBaseNode)
    if not simple and not issubclass(kind, neuron.BaseNode):
        return f"{kind.__name__} is not a neuron of one step that is known here"
    reason = _foreign(kind, "forward", "multi_step_forward", _OVER_TIME)
    if reason is not None:
        return reason
    if not simple:
        step, over_time = _definer(kind, _STEP), _definer(kind, _OVER_TIME)
        if step.__module__.startswith("spikingjelly.") and step not in _KNOWN:
            return f"{step.__name__} is not known here"
        if over_time not in (step, *_GENERAL):
            return f"its multi-step forward is that of {over_time.__name__}, not of its own step"
    if module.step_mode != "m":
        return "it runs single steps: functional.set_step_mode(net, 'm'), and feed it [T, N, *]"
    return SimpleNode() if simple else Node()


def _definer(kind: type, name: str) -> type:
    """The class that a method is from."""
    return next(base for base in kind.__mro__ if name in vars(base))


def _foreign(kind: type, *names: str) -> str | None:
    """A sentence where one of the methods is not SpikingJelly's own."""
    for name in names:
        if not vars(_definer(kind, name))[name].__module__.startswith("spikingjelly."):
            return f"its {name} is not SpikingJelly's own"
    return None
