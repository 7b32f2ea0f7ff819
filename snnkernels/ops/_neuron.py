"""The private ops of the neuron: buffers, calls of the backends, registration, autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.backends import load
from snnkernels.core.call import RESETS, TENSORS, Arriving, Call, Gradients, Outputs
from snnkernels.core.derivatives import (
    BackwardOnly,
    asks_for_gradients,
    in_forward_mode,
    only_once,
)
from snnkernels.core.output_memory import empty_like
from snnkernels.core.reference import NO_SECOND
from snnkernels.core.state import State
from snnkernels.core.strides import empty_rows, in_memory_order
from snnkernels.core.surrogates import Rectangle
from snnkernels.ops._registration import lay_out, nothing, optional, register


def empty_outputs(x: Tensor, call: Call) -> Outputs:
    """What a forward call fills, unfilled; None where the neuron has no such part."""
    s = empty_like(x)
    kept = (x.shape[0] - 1) // call.checkpoint_every if call.checkpoint_every else 0
    return Outputs(
        s=s,
        h=empty_like(s, torch.float32) if call.record_h else None,
        checkpoints=empty_rows(s, kept, call.checkpoint_rows) if kept > 0 else nothing(x),
        v=empty_rows(s),
        refractory=empty_rows(s) if call.refractory else None,
        synapse=None if call.beta is None else empty_rows(s, call.P + call.Q),
        trace=empty_rows(s) if call.has_trace else None,
        penalty=empty_rows(s) if call.regularise else None,
    )


def _with_mean_penalty(x: Tensor, outputs: Outputs) -> Outputs:
    """The outputs as the op returns them: one penalty, the mean over steps and neurons."""
    if outputs.penalty is None:
        return outputs
    mean = outputs.penalty.sum(dtype=torch.float64) / max(x.numel(), 1)
    return outputs._replace(penalty=mean.float())


def _forward_buffers(x, *flat):
    return tuple(_with_mean_penalty(x, empty_outputs(x, _call(flat))))


def _neuron_forward(x, *flat):
    call, backend = _call(flat, to_run=True), flat[-1]
    outputs = empty_outputs(x, call)
    if x.numel() == 0:
        for to, start in zip((*outputs.state, outputs.penalty), (*call.state, None), strict=True):
            if to is not None:
                to.zero_() if start is None else to.copy_(start)
    else:
        layout, (x,) = lay_out(outputs.s, x)
        call = _start_in_memory_order(call, outputs.s)
        load(backend).neuron_forward(layout, call, x, outputs)
    return tuple(_with_mean_penalty(x, outputs))


def _call(flat: tuple, to_run: bool = False) -> Call:
    """The call in the arguments of an op: tensors first; options, numbers, backend last."""
    return Call.of(flat[: len(TENSORS)], *flat[-3:-1], to_run=to_run)


def _start_in_memory_order(call: Call, out: Tensor) -> Call:
    if all(part is None for part in call.state):
        return call
    return call._replace(state=State(*(in_memory_order(part, out) for part in call.state)))


def _empty_gradients(x: Tensor, call: Call, wanted: list[bool]) -> Gradients:
    """What a backward call fills, unfilled; None where it is not wanted."""
    want, learn = Gradients(*wanted), zip(call.parameters, wanted[1:], strict=False)
    return Gradients(
        empty_like(x) if want.x else None,
        *(torch.empty_like(parameter) if wanted else None for parameter, wanted in learn),
        v=empty_rows(x) if want.v else None,
        synapse=empty_rows(x, call.P + call.Q) if want.synapse else None,
        trace=empty_rows(x) if want.trace else None,
    )


def _backward_buffers(x, *flat):
    *flat, wanted = flat
    return tuple(_empty_gradients(x, _call(flat), wanted))


def _without_spike_gradient(call: Call, arriving: Arriving, x: Tensor) -> tuple[Call, Arriving]:
    """The call where no gradient arrives on s: its terms change no bit of the others.

    They are -0.0, which added to any number gives that number. Where no reset reaches back through
    s either, the surrogate is 0 everywhere, also of a potential that is NaN.
    """
    ds = x.new_full((), -0.0).expand_as(x)
    if call.detach_reset or RESETS[call.reset] == "none":
        call = call._replace(surrogate=Rectangle.code, surrogate_p=0.0, surrogate_q=0.0)
    return call, arriving._replace(s=ds)


_CARRIED = ("v", "synapse", "trace")  # the parts of a state that carry a gradient


def _neuron_backward(x, *flat):
    *flat, wanted = flat
    call, backend = _call(flat, to_run=True), flat[-1]
    checkpoints, *arriving = flat[len(TENSORS) : -3]
    arriving = Arriving(*arriving)
    gradients = _empty_gradients(x, call, wanted)
    if x.numel() == 0:
        for name, to in gradients._asdict().items():
            if to is not None:  # from the state after no steps to the one before them
                start = getattr(arriving, name) if name in State._fields else None
                to.zero_() if start is None else to.copy_(start)
        return tuple(gradients)
    if arriving.s is None:
        call, arriving = _without_spike_gradient(call, arriving, x)
    if arriving.penalty is not None:  # of the mean, on its terms
        arriving = arriving._replace(penalty=arriving.penalty / x.numel())
    # Where dx is not wanted, only its strides are looked at.
    out = torch.empty_like(x, device="meta") if gradients.x is None else gradients.x
    layout, (x, ds, dh) = lay_out(out, x, arriving.s, arriving.h)
    after = {name: in_memory_order(getattr(arriving, name), out) for name in _CARRIED}
    arriving = arriving._replace(s=ds, h=dh, **after)
    call = _start_in_memory_order(call, out)
    load(backend).neuron_backward(layout, call, x, checkpoints, arriving, gradients)
    return tuple(gradients)


_CALL = f"Tensor x, {optional(TENSORS)}"
_REST = "int[] options, float[] numbers, str backend"
_ARRIVING = optional(tuple(f"d{name}" for name in Arriving._fields))
register(
    "neuron_forward",
    f"({_CALL}, {_REST}) -> ({', '.join(f'Tensor {name}_out' for name in Outputs._fields)})",
    _neuron_forward,
    _forward_buffers,
)
register(
    "neuron_backward",
    f"({_CALL}, Tensor checkpoints, {_ARRIVING}, {_REST}, bool[] wanted) -> "
    f"({', '.join(f'Tensor d{name}_out' for name in Gradients._fields)})",
    _neuron_backward,
    _backward_buffers,
)
_run_backward = only_once(NO_SECOND)(torch.ops.snnkernels.neuron_backward)


class _Neuron(BackwardOnly):
    """One call with a backward pass: x, the call's tensors, then options, numbers and backend."""

    @staticmethod
    def forward(x, *flat):
        return torch.ops.snnkernels.neuron_forward(x, *flat)

    @staticmethod
    def setup_context(ctx, inputs, output):
        outputs = Outputs(*output)
        ctx.save_for_backward(*inputs[: 1 + len(TENSORS)], outputs.checkpoints)
        ctx.rest = inputs[-3:]
        kept = (outputs.checkpoints, outputs.refractory)
        ctx.mark_non_differentiable(*(t for t in kept if t is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, ds, _, __, *arriving):
        arriving = Arriving(ds, *arriving)
        if all(gradient is None for gradient in arriving):
            return (None,) * len(ctx.needs_input_grad)
        wanted = ctx.needs_input_grad[: len(Gradients._fields)]
        made = _run_backward(*ctx.saved_tensors, *arriving, *ctx.rest, wanted)
        return (*made, *(None,) * (len(ctx.needs_input_grad) - len(wanted)))


def run(x: Tensor, call: Call, backend: str) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
    """Run a checked call on a backend with kernels.

    Args:
        x: `[T, N, *]`.
        call: what to run; nothing is kept for a backward pass where no gradient is asked for.
        backend: its name.

    Returns:
        s, h or None, the mean penalty or None, the state after the last step.
    """
    backward = asks_for_gradients(x, *call.parameters, *call.state)
    if not backward:
        call = call._replace(checkpoint_every=0)
    tensors, *rest = call.flatten()
    # Without a derivative to ask for, the function itself: `apply` takes as long as a small call.
    function = _Neuron.apply if backward or in_forward_mode() else _Neuron.forward
    made = Outputs(*function(x, *tensors, *rest, backend))
    return made.s, made.h, made.penalty, made.state
