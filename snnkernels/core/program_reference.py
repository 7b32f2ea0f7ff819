"""A traced neuron run with PyTorch, instruction by instruction: what every kernel must reproduce.

It is backend "torch" of `snnkernels.fuse`: a loop over time that keeps the states of every few
steps for the backward pass, as the kernels do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from snnkernels.core.program import OPERATIONS, Instruction, Program, pruned

CHECKPOINT_EVERY = 16  # steps

Values = dict[str, Tensor]


def _run(instructions: Iterable[Instruction], values: Values) -> None:
    for target, operation, arguments in instructions:
        values[target] = OPERATIONS[operation].run(*(values[a] for a in arguments))


def constants(
    program: Program,
    parameters: Sequence[Tensor],
    numbers: Sequence[float],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Values:
    """What does not change over time: parameters, numbers, and what is made of them alone.

    Args:
        program: of which ``once`` is run.
        parameters: as the private ops take them.
        numbers: values of the slots.
        dtype: to compute in.
        device: of the parameters.
    """
    values = {f"p{k}": p for k, p in enumerate(parameters)}
    for k, number in enumerate(numbers):
        values[f"n{k}"] = torch.full((), number, dtype=dtype, device=device)
    _run(program.once, values)
    return values


def forward(
    program: Program,
    x: Sequence[Tensor],
    states: list[Tensor],
    values: Values,
    every: int,
    *,
    outputs: Sequence[Tensor],
    states_out: Sequence[Tensor],
    checkpoints: Tensor,
) -> None:
    """Fill outputs, states_out and checkpoints.

    Args:
        program: what to run.
        x: inputs `[T, N, *]`.
        states: before the first step, `[N, *]`.
        values: of `constants`.
        every: steps between two checkpoints; 0: none.
        outputs: `[T, N, *]`.
        states_out: after the last step, `[N, *]`.
        checkpoints: `[(T - 1) // every, states, N, *]`.
    """
    for t in range(x[0].shape[0]):
        if every and t and t % every == 0:
            for to, state in zip(checkpoints[t // every - 1], states, strict=True):
                to.copy_(state)
        step = _step(x, states, values, t)
        _run(program.forward, step)
        results = [step[name] for name in program.results]
        for to, result in zip(outputs, results, strict=False):
            to[t].copy_(result)
        states = results[program.outputs :]
    for to, state in zip(states_out, states, strict=True):
        to.copy_(state)


def _step(x: Sequence[Tensor], states: Sequence[Tensor], values: Values, t: int) -> Values:
    step = dict(values)
    step |= {f"x{k}": each[t].to(states[0].dtype) for k, each in enumerate(x)}
    step |= {f"v{k}": state for k, state in enumerate(states)}
    return step


def backward(
    program: Program,
    x: Sequence[Tensor],
    states: list[Tensor],
    values: Values,
    every: int,
    checkpoints: Tensor,
    doutputs: Sequence[Tensor | None],
    dstates: Sequence[Tensor | None],
    *,
    dx: Sequence[Tensor | None],
    dstates0: Sequence[Tensor | None],
    dparameters: Sequence[Tensor | None],
) -> None:
    """Fill the gradients that are not None. Arguments as of `forward`, and gradients."""
    steps = x[0].shape[0]
    gradients = program.gradients
    n, s = program.inputs, program.states
    wanted = [p is not None for p in dparameters]
    names = [
        *gradients[: n + s],
        *(g for g, w in zip(gradients[n + s :], wanted, strict=True) if w),
    ]
    adjoint = pruned([*program.forward, *program.adjoint], names)
    zero = torch.zeros_like(states[0])
    carried = [zero if d is None else d for d in dstates]
    totals = [None if p is None else zero.double() for p in dparameters]
    for chunk in range((steps - 1) // every, -1, -1):
        first, end = chunk * every, min(steps, chunk * every + every)
        tape = [states if chunk == 0 else list(checkpoints[chunk - 1].unbind(0))]
        for t in range(first, end - 1):
            step = _step(x, tape[-1], values, t)
            _run(program.forward, step)
            tape.append([step[name] for name in program.results[program.outputs :]])
        sums = [None if p is None else zero for p in dparameters]
        for t in range(end - 1, first - 1, -1):
            step = _step(x, tape.pop(), values, t)
            for k, d in enumerate(doutputs):
                step[f"g{k}"] = zero if d is None else d[t].to(zero.dtype)
            step |= {f"d{k}": d for k, d in enumerate(carried)}
            _run(adjoint, step)
            terms = [zero if name is None else step.get(name, zero) for name in gradients]
            for to, term in zip(dx, terms, strict=False):
                if to is not None:
                    to[t].copy_(term)
            carried = terms[n : n + s]
            sums = [a if a is None else a + g for a, g in zip(sums, terms[n + s :], strict=True)]
        totals = [a if a is None else a + b for a, b in zip(totals, sums, strict=True)]
    for to, total in zip([*dstates0, *dparameters], [*carried, *totals], strict=True):
        if to is not None:
            to.copy_(total if to.shape == total.shape else total.sum_to_size(to.shape))
