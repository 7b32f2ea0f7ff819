"""The private ops of traced neurons: buffers, calls of the backends, registration, autograd.

``program`` is the canonical text itself (`snnkernels.core.program`), so that an exported graph or
another process knows what to run. Parameters are 0-d, or have the dimensions of one sample, sized
to broadcast over it; states that are None start at the number in ``start``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnkernels.backends import checkpoint_every, load
from snnkernels.core import program_reference
from snnkernels.core.derivatives import (
    BackwardOnly,
    asks_for_gradients,
    in_forward_mode,
    only_once,
)
from snnkernels.core.output_memory import empty_like
from snnkernels.core.program import parse
from snnkernels.core.strides import empty_rows, in_memory_order
from snnkernels.ops._checks import state_dtype
from snnkernels.ops._registration import lay_out, nothing, register, run_vmap_one_by_one


def _rows(out: Tensor, dtype: torch.dtype, *leading: int) -> Tensor:
    rows = empty_rows(out, *leading)
    return rows if rows.dtype == dtype else torch.empty_like(rows, dtype=dtype)


def _forward_buffers(program, x, state, start, parameters, numbers, recorded, every, backend):
    out, dtype = empty_like(x[0]), state_dtype(x[0])
    outputs = [out if not recorded[0] else empty_like(out, dtype)]
    outputs += [empty_like(out, dtype if record else None) for record in recorded[1:]]
    kept = (x[0].shape[0] - 1) // every if every else 0
    states = [_rows(out, dtype) for _ in state]
    return outputs, states, _rows(out, dtype, kept, len(state)) if kept > 0 else nothing(x[0])


def _full_states(state, start, like: Tensor) -> list[Tensor]:
    shape = like.shape[1:]
    dtype = state_dtype(like)
    return [
        torch.full(shape, number, dtype=dtype, device=like.device) if s is None else s
        for s, number in zip(state, start, strict=True)
    ]


def _program_forward(program, x, state, start, parameters, numbers, recorded, every, backend):
    buffers = outputs, states, checkpoints = _forward_buffers(
        program, x, state, start, parameters, numbers, recorded, every, backend
    )
    if x[0].numel() == 0:
        for to, s, number in zip(states, state, start, strict=True):
            to.fill_(number) if s is None else to.copy_(s)
        return buffers
    if backend == "torch":
        parsed = parse(program)
        full = _full_states(state, start, x[0])
        values = program_reference.constants(
            parsed, parameters, numbers, full[0].dtype, full[0].device
        )
        program_reference.forward(
            parsed,
            x,
            full,
            values,
            every,
            outputs=outputs,
            states_out=states,
            checkpoints=checkpoints,
        )
        return buffers
    layout, x = lay_out(outputs[0], *x)
    state = [in_memory_order(s, outputs[0]) for s in state]
    load(f"{backend}_program").forward(
        layout,
        states[0],
        program,
        x,
        state,
        start,
        parameters,
        numbers,
        every,
        outputs=outputs,
        states_out=states,
        checkpoints=checkpoints,
    )
    return buffers


def _backward_buffers(
    program,
    x,
    state,
    start,
    parameters,
    numbers,
    checkpoints,
    doutputs,
    dstates,
    wanted,
    every,
    backend,
):
    like, dtype = x[0], state_dtype(x[0])
    wanted = iter(wanted)
    return [
        *(empty_like(like) if next(wanted) else like.new_empty(0) for _ in x),
        *(_rows(like, dtype) if next(wanted) else nothing(like) for _ in state),
        *(torch.empty_like(p) if next(wanted) else nothing(p) for p in parameters),
    ]


def _program_backward(
    program,
    x,
    state,
    start,
    parameters,
    numbers,
    checkpoints,
    doutputs,
    dstates,
    wanted,
    every,
    backend,
):
    buffers = _backward_buffers(
        program,
        x,
        state,
        start,
        parameters,
        numbers,
        checkpoints,
        doutputs,
        dstates,
        wanted,
        every,
        backend,
    )
    filled = [b if want else None for b, want in zip(buffers, wanted, strict=True)]
    n, s = len(x), len(state)
    parts = dict(dx=filled[:n], dstates0=filled[n : n + s], dparameters=filled[n + s :])
    if x[0].numel() == 0:
        for to, arriving in zip(
            filled, [None] * n + dstates + [None] * len(parameters), strict=True
        ):
            if to is not None:
                to.zero_() if arriving is None else to.copy_(arriving)
        return buffers
    if backend == "torch":
        parsed = parse(program)
        full = _full_states(state, start, x[0])
        values = program_reference.constants(
            parsed, parameters, numbers, full[0].dtype, full[0].device
        )
        program_reference.backward(
            parsed, x, full, values, every, checkpoints, doutputs, dstates, **parts
        )
        return buffers
    # Where no dx is wanted, only its strides are looked at.
    out = next((g for g in parts["dx"] if g is not None), None)
    out = torch.empty_like(x[0], device="meta") if out is None else out
    layout, sequences = lay_out(out, *x, *doutputs)
    load(f"{backend}_program").backward(
        layout,
        empty_rows(out, on=out.new_empty(0, device="meta")),
        program,
        sequences[:n],
        [in_memory_order(v, out) for v in state],
        start,
        parameters,
        numbers,
        every,
        checkpoints,
        sequences[n:],
        [in_memory_order(d, out) for d in dstates],
        **parts,
    )
    return buffers


_CALL = (
    "str program, Tensor[] x, Tensor?[] state, float[] start, Tensor[] parameters, float[] numbers"
)
register(
    "program_forward",
    f"({_CALL}, bool[] recorded, int every, str backend) "
    "-> (Tensor[] outputs, Tensor[] states, Tensor checkpoints)",
    _program_forward,
    _forward_buffers,
)
register(
    "program_backward",
    f"({_CALL}, Tensor checkpoints, Tensor?[] doutputs, Tensor?[] dstates, bool[] wanted, "
    "int every, str backend) -> Tensor[]",
    _program_backward,
    _backward_buffers,
)
run_vmap_one_by_one("program_forward")
run_vmap_one_by_one("program_backward")


@only_once("a fused neuron")
def _run_backward(program, start, numbers, wanted, every, backend, counts, checkpoints, *tensors):
    """The backward op with its tensors side by side, where autograd sees them."""
    parts, first = [], 0
    for count in counts:
        parts.append(list(tensors[first : first + count]))
        first += count
    x, state, parameters, doutputs, dstates = parts
    return tuple(
        torch.ops.snnkernels.program_backward(
            program,
            x,
            state,
            start,
            parameters,
            numbers,
            checkpoints,
            doutputs,
            dstates,
            wanted,
            every,
            backend,
        )
    )


class FusedNeuron(BackwardOnly):
    """One call of a traced neuron with a backward pass; tensors are x, then states, parameters."""

    @staticmethod
    def forward(program, start, numbers, recorded, every, backend, inputs, *tensors):
        n, s = inputs, inputs + len(start)
        outputs, states, checkpoints = torch.ops.snnkernels.program_forward(
            program,
            tensors[:n],
            tensors[n:s],
            start,
            tensors[s:],
            numbers,
            recorded,
            every,
            backend,
        )
        return (*outputs, *states, checkpoints)

    @staticmethod
    def setup_context(ctx, inputs, output):
        program, start, numbers, recorded, every, backend, count, *tensors = inputs
        ctx.save_for_backward(*tensors, output[-1])
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.call = program, start, numbers, every, backend, count

    @staticmethod
    def backward(ctx, *gradients):
        program, start, numbers, every, backend, n = ctx.call
        if all(g is None for g in gradients):
            return (None,) * len(ctx.needs_input_grad)
        *tensors, checkpoints = ctx.saved_tensors
        states = len(start)
        counts = (n, states, len(tensors) - n - states, len(gradients) - 1 - states, states)
        wanted = list(ctx.needs_input_grad[7:])
        found = _run_backward(
            program,
            start,
            numbers,
            wanted,
            every,
            backend,
            counts,
            checkpoints,
            *tensors,
            *gradients[:-1],
        )
        return (*(None,) * 7, *(g if want else None for g, want in zip(found, wanted, strict=True)))


def run(
    program: str,
    x: Sequence[Tensor],
    state: Sequence[Tensor | None],
    start: list[float],
    parameters: Sequence[Tensor],
    numbers: Sequence[float],
    recorded: list[bool],
    backend: str,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Run all time steps, with a backward pass where one is asked for.

    Args:
        program: the canonical text.
        x: inputs `[T, N, *]`, of one shape and dtype.
        state: before the first step, `[N, *]`; None: the number in ``start``.
        start: those numbers.
        parameters: see the module.
        numbers: values of the slots.
        recorded: of each output, whether it is float32 rather than of x's dtype.
        backend: its name.

    Returns:
        The outputs `[T, N, *]`, and the states after the last step `[N, *]`.
    """
    if asks_for_gradients(*x, *state, *parameters) or in_forward_mode():
        every = program_reference.CHECKPOINT_EVERY
        if backend != "torch":
            every = checkpoint_every(backend)
        found = FusedNeuron.apply(
            *(program, start, numbers, recorded, every, backend, len(x)),
            *(*x, *state, *parameters),
        )
        return found[: len(recorded)], found[len(recorded) : -1]
    outputs, states, _ = torch.ops.snnkernels.program_forward(
        program, x, state, start, parameters, numbers, recorded, 0, backend
    )
    return outputs, states
