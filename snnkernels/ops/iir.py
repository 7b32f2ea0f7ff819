"""The public function `iir`: checks, the private ops under it, dispatch as in ``lif.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnkernels.backends import checkpoint_every, choose, load, max_order
from snnkernels.core import reference
from snnkernels.core.call import Arriving, Call, Gradients, Outputs
from snnkernels.core.derivatives import BackwardOnly, asks_for_gradients, only_once
from snnkernels.core.output_memory import empty_like, empty_strided
from snnkernels.core.state import State
from snnkernels.core.strides import common_layout, empty_rows, in_memory_order
from snnkernels.ops import _time_chunks as time_chunks
from snnkernels.ops._checks import (
    FILTER_STATE,
    check_filter,
    check_input,
    check_orders,
    check_state_part,
    lags_first,
)
from snnkernels.ops._registration import lay_out, nothing, register

WANTED = ("x", "synapse", "alpha", "beta")  # the gradients of a call, in their order everywhere


# --- the private ops: alpha is [P, c], beta [Q + 1, c], c = 1 or one per channel ------------------


def _call(alpha, beta, state, checkpoint_every) -> Call:
    start = State(synapse=state)
    return Call(alpha=alpha, beta=beta, state=start, checkpoint_every=checkpoint_every)


def _forward_buffers(x, state, alpha, beta, checkpoint_every, chunks, backend):
    call = _call(alpha, beta, state, checkpoint_every)
    f = empty_like(x)
    kept = (x.shape[0] - 1) // checkpoint_every if checkpoint_every else 0
    checkpoints = empty_rows(f, kept, call.P) if kept > 0 else nothing(x)
    if chunks and checkpoint_every:
        cut = time_chunks.Cut(x.shape[0], x[0].numel(), call, chunks)
        checkpoints = x.new_empty(sum(cut.sizes), dtype=torch.float32)
    return f, empty_rows(f, call.P + call.Q), checkpoints


def _iir_forward(x, state, alpha, beta, checkpoint_every, chunks, backend):
    made = f, end, checkpoints = _forward_buffers(
        x, state, alpha, beta, checkpoint_every, chunks, backend
    )
    if f.numel() == 0:
        end.zero_() if state is None else end.copy_(state)
        return made
    layout, (x,) = lay_out(f, x, one_row=chunks > 0)
    call = _call(alpha, beta, in_memory_order(state, f), checkpoint_every)
    outputs = Outputs(f, checkpoints, synapse=end)
    run = load(backend).iir_forward
    if chunks:
        time_chunks.forward(run, layout, call, x, outputs, chunks)
    else:
        run(layout, call, x, outputs)
    return made


def _backward_buffers(
    df, dstate, alpha, beta, x, state, checkpoints, strides, every, wanted, chunks, backend
):
    want = dict(zip(WANTED, wanted, strict=True))
    rows = alpha.shape[0] + beta.shape[0] - 1
    like = torch.empty_strided(df.shape, strides, dtype=df.dtype, device="meta")
    return (
        empty_strided(df.shape, strides, df.dtype, df) if want["x"] else None,
        empty_rows(like, rows, on=df) if want["synapse"] else None,
        torch.empty_like(alpha) if want["alpha"] else None,
        torch.empty_like(beta) if want["beta"] else None,
    )


def _iir_backward(
    df, dstate, alpha, beta, x, state, checkpoints, strides, every, wanted, chunks, backend
):
    made = _backward_buffers(
        df, dstate, alpha, beta, x, state, checkpoints, strides, every, wanted, chunks, backend
    )
    gradients = Gradients(**dict(zip(WANTED, made, strict=True)))
    if df.numel() == 0:
        for gradient in made:
            if gradient is not None:
                gradient.zero_()
        if dstate is not None and gradients.synapse is not None:
            gradients.synapse.copy_(dstate)
        return made
    # Where dx is not wanted, only its strides are looked at.
    out = torch.empty_strided(df.shape, strides, dtype=df.dtype, device="meta")
    layout, (x, df) = lay_out(out, x, df, one_row=chunks > 0)
    call = _call(alpha, beta, in_memory_order(state, out), every)
    arriving = Arriving(s=df, synapse=in_memory_order(dstate, out))
    layout = layout._replace(inputs=(*layout.inputs, None))
    run = load(backend).iir_backward
    if chunks:
        time_chunks.backward(run, layout, call, x, checkpoints, arriving, gradients, chunks)
    else:
        run(layout, call, x, checkpoints, arriving, gradients)
    return made


register(
    "iir_forward",
    "(Tensor x, Tensor? state, Tensor alpha, Tensor beta, int checkpoint_every, int chunks, "
    "str backend) -> (Tensor f, Tensor state, Tensor checkpoints)",
    _iir_forward,
    _forward_buffers,
)
register(
    "iir_backward",
    "(Tensor df, Tensor? dstate, Tensor alpha, Tensor beta, Tensor? x, Tensor? state, "
    "Tensor? checkpoints, SymInt[] strides, int checkpoint_every, bool[] wanted, int chunks, "
    "str backend) -> (Tensor dx, Tensor dstate0, Tensor dalpha, Tensor dbeta)",
    _iir_backward,
    _backward_buffers,
)
_run_backward = only_once("iir on a backend with kernels")(torch.ops.snnkernels.iir_backward)


class _Iir(BackwardOnly):
    """One call of the filter with a backward pass. Arguments as the private forward op's."""

    @staticmethod
    def forward(x, state, alpha, beta, checkpoint_every, chunks, backend):
        return torch.ops.snnkernels.iir_forward(
            x, state, alpha, beta, checkpoint_every, chunks, backend
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, state, alpha, beta, checkpoint_every, chunks, backend = inputs
        f, _, checkpoints = output
        # The adjoint filter alone needs neither x nor the outputs.
        kept = (x, state, checkpoints) if checkpoint_every else (None, None, None)
        ctx.save_for_backward(alpha, beta, *kept)
        ctx.call = f.stride(), checkpoint_every, chunks, backend
        ctx.like = f.shape, f.dtype, f.device
        ctx.mark_non_differentiable(checkpoints)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, df, dstate, _):
        if df is None and dstate is None:
            return (None,) * 7
        if df is None:
            shape, dtype, device = ctx.like
            # Added to any number, -0.0 changes no bit of it.
            df = torch.full((), -0.0, dtype=dtype, device=device).expand(shape)
        strides, checkpoint_every, chunks, backend = ctx.call
        needs = ctx.needs_input_grad[:4]
        learn = needs[2] or needs[3]
        wanted = [*needs[:2], learn, learn]
        gradients = _run_backward(
            df, dstate, *ctx.saved_tensors, strides, checkpoint_every, wanted, chunks, backend
        )
        made = (g if need else None for g, need in zip(gradients, needs, strict=True))
        return *made, None, None, None


# --- the public op -------------------------------------------------------------------------------


def iir(
    x: Tensor,
    alpha: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    state: Tensor | None = None,
    *,
    sequential: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Run an infinite impulse response filter over all time steps in one fused pass.

    For t = 0 ... T-1 (Fang et al., eq. 5d), each product and sum rounded by itself in float32,
    inputs before outputs and older before newer ones::

        f[t] = beta[Q] * x[t-Q] + ... + beta[0] * x[t]
               + alpha[P] * f[t-P] + ... + alpha[1] * f[t-1]

    The backward pass is the adjoint filter: exact, and it keeps nothing of x or f unless alpha or
    beta learn; then it keeps x and the last P outputs every few steps.

    Args:
        x: `[T, N, *]`, float32, bfloat16 or float16 (float64 with backend "torch"), in any memory
            format.
        alpha: feedback coefficients of lags 1 ... P, `[P]`, or `[C, P]` with a filter for each
            channel (C = ``x.shape[2]``). P may be 0. A sequence of numbers stands for `[P]`.
        beta: coefficients of x at lags 0 ... Q, `[Q + 1]` or `[C, Q + 1]`. beta[q] with q > 0
            alone is a delay of q steps. With alpha = (-a[1:]) and beta = b it is
            ``scipy.signal.lfilter(b, a, x)`` for a[0] = 1.
        state: `[P + Q, N, *]`, what an earlier call returned: the last outputs f[-1] ... f[-P],
            then the last inputs x[-1] ... x[-Q], float32 (float64 for float64 input). Default:
            zero.
        sequential: run over time in one sequence, the order of operations of the formula. Default:
            False: a long record of few neurons (T >= 65,536; M <= 4 on a CPU, 1,024 on a GPU), the
            neurons of a step side by side in memory, is cut into chunks of time that run side by
            side, unless a pole lies outside the unit circle (seen on the CPU alone: coefficients
            on a GPU are not looked at) or torch.compile traces the call. The result then differs
            from the sequential one by at most ``2 * eps * sum(abs(g)) * max(abs(f))``, g being the
            impulse response to alpha alone. Backend "torch" is always sequential.
        backend: "auto" or a name from `available_backends`. P and Q may be up to 64 with "cpp", 8
            with "triton" and 4 with "cuda". Default: "auto".

    Returns:
        ``(f, state)``: f in the shape, dtype and strides of x, and the state after the last step.
        Gradients flow from both to x, alpha, beta and the starting state.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
        RuntimeError: the backend asked for is not available; differentiated twice with kernels.

    Example:
        >>> import torch, snnkernels
        >>> x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(4, 1)
        >>> f, state = snnkernels.iir(x, alpha=[0.5], beta=[1.0])
        >>> f.squeeze(1).tolist()
        [1.0, 0.5, 0.25, 0.125]
    """
    check_input(x)
    alpha, beta = check_filter("", alpha, beta, x)
    if state is not None:
        rows = alpha.shape[-1] + beta.shape[-1] - 1
        state = check_state_part("state", state, x, [rows, *x.shape[1:]], FILTER_STATE)
    order = max(alpha.shape[-1], beta.shape[-1] - 1)
    backend = choose(backend, x.device.type, x.dtype, "iir", order, None, x.device.index)
    if backend == "torch":
        return reference.iir(x, alpha, beta, state)
    hint = f" with backend {backend!r}, any with backend 'torch'"
    check_orders("", alpha, beta, max_order(backend), hint)
    alpha, beta = lags_first(alpha, beta)
    chunks = 0 if sequential else _chunks(x, alpha, beta)
    every = checkpoint_every(backend) if asks_for_gradients(alpha, beta) else 0
    return _Iir.apply(x, state, alpha, beta, every, chunks, backend)[:2]


def _chunks(x: Tensor, alpha: Tensor, beta: Tensor) -> int:
    """Chunks of time that run side by side, 0 where one sequence is taken."""
    if torch.compiler.is_compiling() or not alpha.shape[0] + beta.shape[0] - 1:
        return 0
    chunks = time_chunks.chunks_for(x.shape[0], x[:1].numel(), x.device.type)
    if not chunks or common_layout(torch.empty_like(x, device="meta")).outer > 1:
        return 0
    # Coefficients on a GPU are not looked at: it would have to stop.
    if alpha.device.type == "cpu" and time_chunks.largest_pole(alpha.t()) > 1 + 1e-6:
        return 0
    return chunks
