"""Norse: neurons over time, and the cells that are one step of them."""

from __future__ import annotations

import norse.torch as norse
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from snnkernels.convert.adapter import Adapter
from snnkernels.convert.fused import Kept, answer, link, original_class
from snnkernels.convert.over_time import check_steps, has_hooks, stacked, without_memory

_STATES = {
    norse.LIF: norse.LIFFeedForwardState,
    norse.LIFCell: norse.LIFFeedForwardState,
    norse.LIFBoxCell: norse.LIFBoxFeedForwardState,
    norse.LIFEx: norse.LIFExFeedForwardState,
    norse.LIFExCell: norse.LIFExFeedForwardState,
    norse.LIFAdEx: norse.LIFAdExFeedForwardState,
    norse.LIFAdExCell: norse.LIFAdExFeedForwardState,
    norse.LSNN: norse.LSNNFeedForwardState,
    norse.LSNNCell: norse.LSNNFeedForwardState,
    norse.IAF: norse.IAFFeedForwardState,
    norse.IAFCell: norse.IAFFeedForwardState,
    norse.LI: norse.LIState,
    norse.LICell: norse.LIState,
    norse.LIBoxCell: norse.LIBoxState,
}
_RECURRENT = SNNRecurrent, SNNRecurrentCell, norse.LILinearCell, norse.CobaLIFCell
_NEURONS = SNN, SNNCell, *_RECURRENT


class Norse(Adapter):
    """A neuron over time: its parameters are a named tuple, its state is passed in and out."""

    def states(self, module: nn.Module) -> int:
        return len(_STATES[original_class(module)]._fields)

    def step(self, module, x, states):
        kind = _STATES[type(module)]
        output, state = module.activation(*x, kind(*states), module.p, module.dt)
        return (output,), tuple(state)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return {k: v for k, v in module.p._asdict().items() if isinstance(v, Tensor)}

    def assign(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        module.p = module.p._replace(**tensors)

    def options(self, module: nn.Module) -> dict[str, object]:
        return {"p": module.p, "dt": module.dt}

    def call(self, module: nn.Module, input_tensor: Tensor, state: tuple | None = None) -> tuple:
        """All steps at once: the outputs, and the state in the library's named tuple."""
        kind = _STATES[original_class(module)]
        if state is None:
            state = module.state_fallback(self.first(module, input_tensor))
        if not isinstance(state, kind):
            raise Kept(f"the state is no {kind.__name__}")
        recorded = getattr(module, "record_states", False)
        record = tuple(range(len(state))) if recorded else ()
        (output,), after, steps = self.run(module, input_tensor, tuple(state), record)
        return output, kind(*(steps if recorded else after))

    def first(self, module: nn.Module, input_tensor: Tensor) -> Tensor:
        """What the library makes its first state for."""
        return input_tensor


class NorseCell(Norse):
    """A neuron that is one step."""

    one_step = True

    def first(self, module: nn.Module, input_tensor: Tensor) -> Tensor:
        return input_tensor[0]


def find(module: nn.Module) -> Adapter | str | None:
    """The adapter of a neuron; why another one is kept; None for what is none."""
    if not isinstance(module, _NEURONS):
        return None
    if isinstance(module, _RECURRENT):
        return "it multiplies by a matrix at each step"
    if original_class(module) not in _STATES:
        return f"{original_class(module).__name__} is not in the table of classes"
    return NorseCell() if isinstance(module, SNNCell) else Norse()


class OverTimeSequentialState(norse.SequentialState):
    """What `snnkernels.run_over_time` makes of a SequentialState."""

    def forward(self, input_tensor: Tensor, state: list | None = None) -> tuple:
        """Run every child over all steps of input_tensor `[T, N, *]`."""
        check_steps(input_tensor)
        stepped = not any(isinstance(module, _OVER_TIME) for module in self.modules())
        return _sequential(self, input_tensor, state, stepped)


class OverTimeLift(norse.Lift):
    """What `snnkernels.run_over_time` makes of a Lift."""

    def forward(self, x: Tensor | tuple) -> Tensor | tuple:
        """Run the lifted module over all steps of x `[T, N, *]`, or of x and a state."""
        x, state = x if isinstance(x, tuple) else (x, None)
        check_steps(x)
        return _lifted(self, x, state)


CONTAINERS = {norse.SequentialState: OverTimeSequentialState, norse.Lift: OverTimeLift}
_OVER_TIME = SNN, SNNRecurrent, norse.Lift, nn.RNNBase  # take all steps by themselves


def _sequential(net: norse.SequentialState, x: Tensor, state: list | None, stepped: bool) -> tuple:
    """As the library's forward; where it is not stepped, it takes all steps already."""
    state = [None] * len(net) if state is None else state
    hidden = []
    for k, child in enumerate(net):
        if net.stateful_layers[k]:
            x, state[k] = _with_state(child, x, state[k], stepped)
        elif type(child) is norse.Lift:
            x = _lifted(child, x, None)
        else:
            x = without_memory(child, x) if stepped else child(x)
        hidden.append(x)
    return hidden if net.return_hidden else x, state


def _with_state(module: nn.Module, x: Tensor, state, stepped: bool) -> tuple:
    def by_library(x: Tensor, state) -> tuple:
        return _each_step(module, x, state) if stepped else module(x, state)

    here = link(module)
    if here is not None and here.adapter.one_step and not stepped:
        here.entry.kept["it is one step, and is called with all steps as if they were one"] += 1
    elif here is not None:
        return answer(module, by_library, x, state)
    elif type(module) is norse.SequentialState and not has_hooks(module):
        return _sequential(module, x, state, stepped)
    return by_library(x, state)


def _lifted(lift: norse.Lift, x: Tensor, state) -> Tensor | tuple:
    if lift.is_stateful:
        return _with_state(lift.lifted_module, x, state, stepped=True)
    return without_memory(lift.lifted_module, x)


def _each_step(module: nn.Module, x: Tensor, state) -> tuple:
    outputs = []
    for x_t in x.unbind(0):
        output, state = module(x_t, state)
        outputs.append(output)
    return stacked(outputs), state
