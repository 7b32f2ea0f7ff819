"""The private ops of the neuron: buffers, calls of the backends, registration, autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.backends import load
from snnkernels.core.call import (
    _TRACE,
    WANT_DECAY,
    WANT_GENERAL,
    WANT_SYNAPSE,
    WANT_THRESHOLD,
    WANT_TRACE,
    WANT_V,
    WANT_X,
    General,
    Numbers,
    Options,
    is_general,
)
from snnkernels.core.output_memory import empty_like
from snnkernels.core.strides import empty_rows
from snnkernels.ops._registration import in_memory_order, lay_out, nothing, only_once, register


def _forward_buffers(x, v, refractory, decay, v_threshold, options, numbers, backend, *general):
    options, general = Options(*options), General(*general)
    s = empty_like(x)
    kept = (x.shape[0] - 1) // options.checkpoint_every if options.checkpoint_every else 0
    h = empty_like(s, torch.float32) if options.record_h else nothing(x)
    state = empty_rows(s, options.state_rows + general.synapse_rows + options.regularise)
    checkpoints = nothing(x)
    if kept > 0:
        checkpoints = empty_rows(s, kept, options.state_rows + general.outputs)
    return s, state, h, checkpoints


def _neuron_forward(x, v, refractory, decay, v_threshold, options, numbers, backend, *general):
    outputs = s, state, h, checkpoints = _forward_buffers(
        x, v, refractory, decay, v_threshold, options, numbers, backend, *general
    )
    options, numbers, general = Options(*options), Numbers(*numbers), General(*general)
    rows, end = options.state_rows, options.state_rows + general.synapse_rows
    if s.numel() == 0:
        starts = [v]
        starts += [refractory] if options.refractory else []
        starts += [general.trace] if options.reset == _TRACE else []
        for to, start in [*zip(state, starts, strict=False), (state[rows:end], general.synapse)]:
            to.zero_() if start is None else to.copy_(start)
        state[end:].zero_()
        return outputs
    layout, (x,) = lay_out(s, x)
    more = {}
    if is_general(options, numbers, general):
        more["general"] = general._replace(
            trace=in_memory_order(general.trace, state[0]),
            synapse=in_memory_order(general.synapse, state[rows:end]),
        )
    load(backend).neuron_forward(
        layout,
        options,
        numbers,
        x,
        in_memory_order(v, state[0]),
        in_memory_order(refractory, state[0]),
        decay,
        v_threshold,
        s=s,
        state_out=state,
        h=h if options.record_h else None,
        checkpoints=checkpoints,
        **more,
    )
    return outputs


def _backward_buffers(
    x,
    v,
    refractory,
    decay,
    v_threshold,
    checkpoints,
    ds,
    dv,
    dh,
    options,
    numbers,
    backend,
    *general,
):
    options, numbers, general = Options(*options), Numbers(*numbers), General(*general)
    wanted = options.wanted
    more = []
    if is_general(options, numbers, general):
        makers = [lambda c=c: torch.empty_like(c) for c in general[:4]]
        makers += [
            lambda: empty_rows(torch.empty_like(x), 1)[0],
            lambda: empty_rows(torch.empty_like(x), general.synapse_rows),
        ]
        more = [
            make() if wanted & flag else nothing(x)
            for flag, make in zip(WANT_GENERAL, makers, strict=True)
        ]
    return (
        empty_like(x) if wanted & WANT_X else x.new_empty(0),
        empty_rows(torch.empty_like(x), 1)[0] if wanted & WANT_V else nothing(x),
        torch.empty_like(decay) if wanted & WANT_DECAY else nothing(x),
        torch.empty_like(v_threshold) if wanted & WANT_THRESHOLD else nothing(x),
        more,
    )


def _neuron_backward(
    x,
    v,
    refractory,
    decay,
    v_threshold,
    checkpoints,
    ds,
    dv,
    dh,
    options,
    numbers,
    backend,
    *general,
):
    outputs = dx, dv0, ddecay, dv_threshold, more = _backward_buffers(
        x,
        v,
        refractory,
        decay,
        v_threshold,
        checkpoints,
        ds,
        dv,
        dh,
        options,
        numbers,
        backend,
        *general,
    )
    options, numbers, general = Options(*options), Numbers(*numbers), General(*general)
    wanted = options.wanted
    if x.numel() == 0:
        for gradient in (dx, dv0, ddecay, dv_threshold, *more):
            gradient.zero_()
        through = [(WANT_V, dv0, dv)]
        if more:
            through += [
                (WANT_TRACE, more[4], general.dtrace),
                (WANT_SYNAPSE, more[5], general.dsynapse),
            ]
        for flag, to, arriving in through:
            if arriving is not None and wanted & flag:
                to.copy_(arriving)
        return outputs
    out = dx if wanted & WANT_X else empty_like(x)
    layout, (x, ds, dh) = lay_out(out, x, ds, dh)
    row = empty_rows(out, 1)[0]
    keywords = {}
    if more:
        rows = empty_rows(out, general.synapse_rows)
        keywords["general"] = general._replace(
            trace=in_memory_order(general.trace, row),
            synapse=in_memory_order(general.synapse, rows),
            dtrace=in_memory_order(general.dtrace, row),
            dsynapse=in_memory_order(general.dsynapse, rows),
        )
        keywords["general_out"] = tuple(
            gradient if wanted & flag else None
            for flag, gradient in zip(WANT_GENERAL, more, strict=True)
        )
    load(backend).neuron_backward(
        layout,
        options,
        numbers,
        x,
        in_memory_order(v, row),
        in_memory_order(refractory, row),
        decay,
        v_threshold,
        checkpoints,
        ds,
        in_memory_order(dv, row),
        dh,
        dx=dx if wanted & WANT_X else None,
        dv0=dv0 if wanted & WANT_V else None,
        ddecay=ddecay if wanted & WANT_DECAY else None,
        dv_threshold=dv_threshold if wanted & WANT_THRESHOLD else None,
        **keywords,
    )
    return outputs


_GENERAL = (
    "Tensor? gain=None, Tensor? trace_decay=None, Tensor? alpha=None, Tensor? beta=None, "
    "Tensor? trace=None, Tensor? synapse=None"
)
register(
    "neuron_forward",
    "(Tensor x, Tensor? v, Tensor? refractory, Tensor? decay, Tensor? v_threshold, "
    f"int[] options, float[] numbers, str backend, {_GENERAL}) -> (Tensor s, Tensor state, "
    "Tensor h, Tensor checkpoints)",
    _neuron_forward,
    _forward_buffers,
)
register(
    "neuron_backward",
    "(Tensor x, Tensor? v, Tensor? refractory, Tensor? decay, Tensor? v_threshold, "
    "Tensor checkpoints, Tensor? ds, Tensor? dv, Tensor? dh, int[] options, float[] numbers, "
    f"str backend, {_GENERAL}, Tensor? dtrace=None, Tensor? dsynapse=None, "
    "Tensor? dpenalty=None) -> (Tensor dx, Tensor dv0, Tensor ddecay, Tensor dv_threshold, "
    "Tensor[] general)",
    _neuron_backward,
    _backward_buffers,
)
_run_backward = only_once(
    torch.ops.snnkernels.neuron_backward, "lif, whose surrogate gradient has no derivative here,"
)


class Neuron(torch.autograd.Function):
    """One call of the neuron with a backward pass. Arguments as the private forward op's."""

    @staticmethod
    def forward(ctx, x, v, refractory, decay, v_threshold, options, numbers, backend, *general):
        s, state, h, checkpoints = torch.ops.snnkernels.neuron_forward(
            x, v, refractory, decay, v_threshold, options, numbers, backend, *general
        )
        ctx.save_for_backward(x, v, refractory, decay, v_threshold, checkpoints, *general)
        ctx.call = options, numbers, backend
        ctx.set_materialize_grads(False)
        *parts, penalty = split_state(state, x.shape[0], Options(*options), general)
        if parts[1] is not None:
            ctx.mark_non_differentiable(parts[1])
        return s, h, penalty, *parts

    @staticmethod
    def backward(ctx, ds, dh, dpenalty, dv, _, dsynapse, dtrace):
        if all(g is None for g in (ds, dh, dpenalty, dv, dsynapse, dtrace)):
            return (None,) * len(ctx.needs_input_grad)
        x, v, refractory, decay, v_threshold, checkpoints, *general = ctx.saved_tensors
        options, numbers, backend = ctx.call
        need_x, need_v, _, need_decay, need_threshold = ctx.needs_input_grad[:5]
        needs = ctx.needs_input_grad[8:]
        wanted = (
            need_x * WANT_X
            + need_v * WANT_V
            + need_decay * WANT_DECAY
            + need_threshold * WANT_THRESHOLD
            + sum(flag for flag, need in zip(WANT_GENERAL, needs, strict=False) if need)
        )
        options = Options(*options)._replace(wanted=wanted)
        if dh is not None and not options.record_h:
            dh = None
        if dpenalty is not None:
            dpenalty = dpenalty / max(x.numel(), 1)  # of a mean, on its terms
        arriving = (dtrace, dsynapse, dpenalty) if general else ()
        dx, dv0, ddecay, dv_threshold, more = _run_backward(
            x,
            v,
            refractory,
            decay,
            v_threshold,
            checkpoints,
            ds,
            dv,
            dh,
            [*options],
            numbers,
            backend,
            *general,
            *arriving,
        )
        return (
            dx if need_x else None,
            dv0 if need_v else None,
            None,
            ddecay if need_decay else None,
            dv_threshold if need_threshold else None,
            None,
            None,
            None,
            *(gradient if need else None for need, gradient in zip(needs, more, strict=False)),
        )


def split_state(
    state: Tensor, steps: int, options: Options, general: tuple
) -> tuple[Tensor | None, ...]:
    """The rows that the forward op returns, as the parts of a `State` and the mean penalty."""
    general, rows = General(*general), options.state_rows
    trace = state[rows - 1] if options.reset == _TRACE else None
    synapse = state[rows : rows + general.synapse_rows] if general.beta is not None else None
    penalty = None
    if options.regularise:
        penalty = (state[-1].sum(dtype=torch.float64) / max(steps * state[-1].numel(), 1)).float()
    return state[0], state[1] if options.refractory else None, synapse, trace, penalty
