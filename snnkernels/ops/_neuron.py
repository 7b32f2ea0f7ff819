"""The private ops of the neuron: buffers, calls of the backends, registration, autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.backends import load
from snnkernels.core.call import COEFFICIENTS, RESETS, TENSORS, Arriving, Call, Gradients, Outputs
from snnkernels.core.derivatives import (
    BackwardOnly,
    asks_for_gradients,
    in_forward_mode,
    only_once,
)
from snnkernels.core.output_memory import empty_like
from snnkernels.core.reference import NO_SECOND
from snnkernels.core.state import State
from snnkernels.core.strides import empty_rows
from snnkernels.core.surrogates import Rectangle
from snnkernels.ops._registration import (
    in_memory_order,
    lay_out,
    nothing,
    optional,
    register,
)


def _present(call: Call) -> Outputs:
    """Which outputs a call has."""
    return Outputs(
        s=True,
        h=bool(call.record_h),
        checkpoints=True,
        v=True,
        refractory=call.refractory > 0,
        synapse=call.beta is not None,
        trace=call.has_trace,
        penalty=bool(call.regularise),
    )


def empty_outputs(x: Tensor, call: Call) -> Outputs:
    """What a forward call fills, unfilled; None where the neuron has no such part."""
    s, has = empty_like(x), _present(call)
    kept = (x.shape[0] - 1) // call.checkpoint_every if call.checkpoint_every else 0
    return Outputs(
        s=s,
        h=empty_like(s, torch.float32) if has.h else None,
        checkpoints=empty_rows(s, kept, call.checkpoint_rows) if kept > 0 else nothing(x),
        v=empty_rows(s),
        refractory=empty_rows(s) if has.refractory else None,
        synapse=empty_rows(s, call.P + call.Q) if has.synapse else None,
        trace=empty_rows(s) if has.trace else None,
        penalty=empty_rows(s) if has.penalty else None,
    )


def _made(x: Tensor, outputs: Outputs) -> tuple[Tensor, ...]:
    """Outputs as the op returns them: what is not there is empty."""
    return tuple(nothing(x) if t is None else t for t in outputs)


def _forward_buffers(x, *flat):
    return _made(x, empty_outputs(x, _call(flat)))


def _neuron_forward(x, *flat):
    call, backend = _call(flat, to_run=True), flat[-1]
    outputs = empty_outputs(x, call)
    if x.numel() == 0:
        for to, start in zip((*outputs.state, outputs.penalty), (*call.state, None), strict=True):
            if to is not None:
                to.zero_() if start is None else to.copy_(start)
        return _made(x, outputs)
    layout, (x,) = lay_out(outputs.s, x)
    state = State(*map(in_memory_order, call.state, outputs.state))
    load(backend).neuron_forward(layout, call._replace(state=state), x, outputs)
    return _made(x, outputs)


def _call(flat: tuple, to_run: bool = False) -> Call:
    """The call in the arguments of an op: tensors first; options, numbers, backend last."""
    return Call.of(flat[: len(TENSORS)], *flat[-3:-1], to_run=to_run)


def _absent_as_none(call: Call, outputs: tuple[Tensor, ...]) -> Outputs:
    return Outputs(*(t if has else None for t, has in zip(outputs, _present(call), strict=True)))


def _backward_buffers(x, *flat):
    *flat, wanted = flat
    call = _call(flat)
    makers = Gradients(
        x=lambda: empty_like(x),
        **{c: (lambda c=c: torch.empty_like(getattr(call, c).tensor)) for c in COEFFICIENTS},
        alpha=lambda: torch.empty_like(call.alpha),
        beta=lambda: torch.empty_like(call.beta),
        v=lambda: empty_rows(x),
        synapse=lambda: empty_rows(x, call.P + call.Q),
        trace=lambda: empty_rows(x),
    )
    return tuple(make() if want else nothing(x) for make, want in zip(makers, wanted, strict=True))


def _without_spike_gradient(call: Call, arriving: Arriving, x: Tensor) -> tuple[Call, Arriving]:
    """The call where no gradient arrives on s: its terms change no bit of the others.

    They are -0.0, which added to any number gives that number. Where no reset reaches back through
    s either, the surrogate is 0 everywhere, also of a potential that is NaN.
    """
    ds = x.new_full((), -0.0).expand_as(x)
    if call.detach_reset or RESETS[call.reset] == "none":
        call = call._replace(surrogate=Rectangle.code, surrogate_p=0.0, surrogate_q=0.0)
    return call, arriving._replace(s=ds)


def _neuron_backward(x, *flat):
    made = _backward_buffers(x, *flat)
    *flat, wanted = flat
    call, backend = _call(flat, to_run=True), flat[-1]
    checkpoints, *arriving = flat[len(TENSORS) : -3]
    arriving = Arriving(*arriving)
    gradients = Gradients(*(t if w else None for t, w in zip(made, wanted, strict=True)))
    if x.numel() == 0:
        for name, to in gradients._asdict().items():
            if to is not None:  # from the state after no steps to the one before them
                start = getattr(arriving, name) if name in State._fields else None
                to.zero_() if start is None else to.copy_(start)
        return made
    if arriving.s is None:
        call, arriving = _without_spike_gradient(call, arriving, x)
    # Where dx is not wanted, only its strides are looked at.
    out = torch.empty_like(x, device="meta") if gradients.x is None else gradients.x
    layout, (x, ds, dh) = lay_out(out, x, arriving.s, arriving.h)
    row, rows = empty_rows(out.to("meta")), empty_rows(out.to("meta"), call.P + call.Q)
    like = State(row, row, rows, row)
    arriving = arriving._replace(
        s=ds,
        h=dh,
        v=in_memory_order(arriving.v, row),
        synapse=in_memory_order(arriving.synapse, rows),
        trace=in_memory_order(arriving.trace, row),
    )
    call = call._replace(state=State(*map(in_memory_order, call.state, like)))
    load(backend).neuron_backward(layout, call, x, checkpoints, arriving, gradients)
    return made


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


def _mean_penalty(x: Tensor, sums: Tensor) -> Tensor:
    return (sums.sum(dtype=torch.float64) / max(x.numel(), 1)).float()


class _Neuron(BackwardOnly):
    """One call with a backward pass: x, the call's tensors, then options, numbers and backend."""

    @staticmethod
    def forward(x, *flat):
        *outputs, penalty = torch.ops.snnkernels.neuron_forward(x, *flat)
        return (*outputs, _mean_penalty(x, penalty) if _call(flat).regularise else penalty)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *tensors = inputs[: 1 + len(TENSORS)]
        outputs = Outputs(*output)
        ctx.save_for_backward(x, *tensors, outputs.checkpoints)
        ctx.rest = inputs[-3:]
        ctx.mark_non_differentiable(outputs.checkpoints, outputs.refractory)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *gradients):
        saved = ctx.saved_tensors  # asked for once: a checkpoint gives each of them once
        x, *tensors, _ = saved
        # torch.compile makes gradients on outputs that are not there.
        by_output = _absent_as_none(Call.of(tensors, *ctx.rest[:2]), gradients)
        arriving = Arriving(*(getattr(by_output, name) for name in Arriving._fields))
        nowhere = (None,) * len(ctx.rest)
        needs = dict(zip(("x", *TENSORS), ctx.needs_input_grad, strict=False))
        if all(gradient is None for gradient in arriving):
            return (*(None for _ in needs), *nowhere)
        if arriving.penalty is not None:  # of a mean, on its terms
            arriving = arriving._replace(penalty=arriving.penalty / max(x.numel(), 1))
        wanted = [needs[name] for name in Gradients._fields]
        made = _run_backward(*saved, *arriving, *ctx.rest, wanted)
        made = dict(zip(Gradients._fields, made, strict=True))
        return (*(made.get(name) if need else None for name, need in needs.items()), *nowhere)


def run(x: Tensor, call: Call, backend: str) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
    """Run a checked call on a backend with kernels.

    Args:
        x: `[T, N, *]`.
        call: what to run; nothing is kept for a backward pass where no gradient is asked for.
        backend: its name.

    Returns:
        s, h or None, the mean penalty or None, the state after the last step.
    """
    coefficients = (getattr(call, name).tensor for name in COEFFICIENTS)
    backward = asks_for_gradients(x, *coefficients, call.alpha, call.beta, *call.state)
    if not backward:
        call = call._replace(checkpoint_every=0)
    tensors, *rest = call.flatten()
    # Without a derivative to ask for, the function itself: `apply` takes as long as a small call.
    function = _Neuron.apply if backward or in_forward_mode() else _Neuron.forward
    made = _absent_as_none(call, function(x, *tensors, *rest, backend))
    return made.s, made.h, made.penalty, made.state
