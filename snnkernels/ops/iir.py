"""The public function `iir`: checks, the private ops under it, dispatch as in ``lif.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from snnkernels.backends import checkpoint_every, choose, load, max_order
from snnkernels.core import reference
from snnkernels.core.output_memory import empty_like, empty_strided
from snnkernels.core.strides import common_layout, empty_rows
from snnkernels.ops import _time_chunks as time_parallel
from snnkernels.ops._registration import (
    check_input,
    check_values,
    in_memory_order,
    lay_out,
    nothing,
    only_once,
    register,
)

WANT_X, WANT_STATE, WANT_COEFFICIENTS = 1, 2, 4


# --- the private ops: alpha is [P, c], beta [Q + 1, c], c = 1 or one per channel ------------------


def _orders(alpha: Tensor, beta: Tensor) -> tuple[int, int]:
    return alpha.shape[0], beta.shape[0] - 1


def _forward_buffers(x, state, alpha, beta, checkpoint_every, chunks, backend):
    P, Q = _orders(alpha, beta)
    f = empty_like(x)
    kept = (x.shape[0] - 1) // checkpoint_every if checkpoint_every else 0
    checkpoints = empty_rows(f, kept, P) if kept > 0 else nothing(x)
    if chunks and checkpoint_every:
        cut = time_parallel.Cut(x.shape[0], x[0].numel(), P, Q, chunks, checkpoint_every)
        checkpoints = x.new_empty(sum(cut.sizes), dtype=torch.float32)
    return f, empty_rows(f, P + Q), checkpoints


def _iir_forward(x, state, alpha, beta, checkpoint_every, chunks, backend):
    outputs = f, state_out, checkpoints = _forward_buffers(
        x, state, alpha, beta, checkpoint_every, chunks, backend
    )
    if f.numel() == 0:
        state_out.zero_() if state is None else state_out.copy_(state)
        return outputs
    layout, (x,) = lay_out(f, x, one_row=chunks > 0)
    run = load(backend).iir_forward
    call = (layout, x, in_memory_order(state, state_out), alpha, beta)
    filled = {"f": f, "state_out": state_out, "checkpoint_every": checkpoint_every}
    if chunks:
        kept = checkpoints
        if not checkpoint_every:
            cut = time_parallel.Cut(layout.steps, layout.neurons, *_orders(alpha, beta), chunks, 0)
            kept = x.new_empty(sum(cut.sizes), dtype=torch.float32)
        time_parallel.forward(run, *call, **filled, kept=kept, chunks=chunks)
    else:
        run(*call, **filled, checkpoints=checkpoints)
    return outputs


def _backward_buffers(
    df,
    dstate,
    alpha,
    beta,
    x,
    state,
    checkpoints,
    strides,
    checkpoint_every,
    wanted,
    chunks,
    backend,
):
    P, Q = _orders(alpha, beta)
    dx = empty_strided(df.shape, strides, df.dtype, df)
    learn = wanted & WANT_COEFFICIENTS
    return (
        dx if wanted & WANT_X else df.new_empty(0),
        empty_rows(dx, P + Q) if wanted & WANT_STATE else nothing(df),
        torch.empty_like(alpha) if learn else nothing(df),
        torch.empty_like(beta) if learn else nothing(df),
    )


def _iir_backward(
    df,
    dstate,
    alpha,
    beta,
    x,
    state,
    checkpoints,
    strides,
    checkpoint_every,
    wanted,
    chunks,
    backend,
):
    outputs = dx, dstate0, dalpha, dbeta = _backward_buffers(
        df,
        dstate,
        alpha,
        beta,
        x,
        state,
        checkpoints,
        strides,
        checkpoint_every,
        wanted,
        chunks,
        backend,
    )
    if df.numel() == 0:
        for gradient in outputs:
            gradient.zero_()
        if dstate is not None and wanted & WANT_STATE:
            dstate0.copy_(dstate)
        return outputs
    out = dx if wanted & WANT_X else empty_strided(df.shape, strides, df.dtype, df)
    layout, (df, x) = lay_out(out, df, x, one_row=chunks > 0)
    rows = empty_rows(out, sum(_orders(alpha, beta)))
    run = load(backend).iir_backward
    call = (layout, df, in_memory_order(dstate, rows), alpha, beta, x)
    filled = {
        "dx": dx if wanted & WANT_X else None,
        "dstate0": dstate0 if wanted & WANT_STATE else None,
        "dalpha": dalpha if wanted & WANT_COEFFICIENTS else None,
        "dbeta": dbeta if wanted & WANT_COEFFICIENTS else None,
    }
    if chunks:
        time_parallel.backward(run, *call, checkpoint_every, checkpoints, **filled, chunks=chunks)
    else:
        run(*call, in_memory_order(state, rows), checkpoint_every, checkpoints, **filled)
    return outputs


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
    "Tensor? checkpoints, SymInt[] strides, int checkpoint_every, int wanted, int chunks, "
    "str backend) -> (Tensor dx, Tensor dstate0, Tensor dalpha, Tensor dbeta)",
    _iir_backward,
    _backward_buffers,
)
_run_backward = only_once(torch.ops.snnkernels.iir_backward, "iir on a backend with kernels")


class _Iir(torch.autograd.Function):
    """One call of the filter with a backward pass. Arguments as the private forward op's."""

    @staticmethod
    def forward(ctx, x, state, alpha, beta, checkpoint_every, chunks, backend):
        f, state_out, checkpoints = torch.ops.snnkernels.iir_forward(
            x, state, alpha, beta, checkpoint_every, chunks, backend
        )
        # The adjoint filter alone needs neither x nor the outputs.
        learns = checkpoint_every > 0
        kept = (x, state, checkpoints) if learns else (None, None, None)
        ctx.save_for_backward(alpha, beta, *kept)
        ctx.call = f.stride(), checkpoint_every, chunks, backend
        ctx.like = f.shape, f.dtype, f.device
        ctx.set_materialize_grads(False)
        return f, state_out

    @staticmethod
    def backward(ctx, df, dstate):
        if df is None and dstate is None:
            return (None,) * 7
        if df is None:
            shape, dtype, device = ctx.like
            df = torch.zeros((), dtype=dtype, device=device).expand(shape)
        alpha, beta, x, state, checkpoints = ctx.saved_tensors
        strides, checkpoint_every, chunks, backend = ctx.call
        need_x, need_state, need_alpha, need_beta = ctx.needs_input_grad[:4]
        learn = need_alpha or need_beta
        wanted = need_x * WANT_X + need_state * WANT_STATE + learn * WANT_COEFFICIENTS
        dx, dstate0, dalpha, dbeta = _run_backward(
            df,
            dstate,
            alpha,
            beta,
            x,
            state,
            checkpoints,
            strides,
            checkpoint_every,
            wanted,
            chunks,
            backend,
        )
        return (
            dx if need_x else None,
            dstate0 if need_state else None,
            dalpha if need_alpha else None,
            dbeta if need_beta else None,
            None,
            None,
            None,
        )


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

        f[t] = beta[Q] * x[t-Q] + ... + beta[0] * x[t] + alpha[P] * f[t-P] + ... + alpha[1] * f[t-1]

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
    state = _check_state(state, x, alpha.shape[-1] + beta.shape[-1] - 1)
    order = max(alpha.shape[-1], beta.shape[-1] - 1)
    backend = choose(backend, x.device.type, x.dtype, "iir", order)
    if backend == "torch":
        return reference.iir(x, alpha, beta, state)
    hint = f" with backend {backend!r}, any with backend 'torch'"
    check_orders("", alpha, beta, max_order(backend), hint)
    alpha, beta = lags_first(alpha, beta)
    graph = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, state, alpha, beta)
    )
    learns = graph and (alpha.requires_grad or beta.requires_grad)
    every = checkpoint_every(backend) if learns else 0
    chunks = 0 if sequential else _chunks(x, alpha, beta)
    arguments = (x, state, alpha, beta, every, chunks, backend)
    if graph:
        return _Iir.apply(*arguments)
    return torch.ops.snnkernels.iir_forward(*arguments)[:2]


def _chunks(x: Tensor, alpha: Tensor, beta: Tensor) -> int:
    """Chunks of time that run side by side, 0 where one sequence is taken."""
    if torch.compiler.is_compiling() or not sum(_orders(alpha, beta)):
        return 0
    chunks = time_parallel.chunks_for(x.shape[0], x[:1].numel(), x.device.type)
    if not chunks or common_layout(torch.empty_like(x, device="meta")).outer > 1:
        return 0
    # Coefficients on a GPU are not looked at: it would have to stop.
    if alpha.device.type == "cpu" and time_parallel.largest_pole(alpha.t()) > 1 + 1e-6:
        return 0
    return chunks


def check_filter(
    prefix: str, alpha: Tensor | Sequence[float], beta: Tensor | Sequence[float], x: Tensor
) -> tuple[Tensor, Tensor]:
    """The coefficients as tensors `[P]` or `[C, P]`, `[Q + 1]` or `[C, Q + 1]`, or an error."""
    checked = []
    for name, value, least in ((f"{prefix}alpha", alpha, 0), (f"{prefix}beta", beta, 1)):
        if not isinstance(value, Tensor):
            dtype = torch.promote_types(x.dtype, torch.float32)
            copied = _copies_once(x)
            try:
                value = torch.tensor(value, dtype=dtype, device="cpu" if copied else x.device)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} must be a tensor or a sequence of numbers; got {value!r}"
                ) from error
            if copied:
                check_values(name, value, value)
                numbers = tuple(value.flatten().tolist())
                value = _on_device(numbers, tuple(value.shape), dtype, x.device)
        check_values(name, value, x)
        shape = list(value.shape)
        lags = "Q + 1" if least else "P"
        if value.ndim not in (1, 2) or shape[-1] < least:
            raise ValueError(f"{name} must be [{lags}] or [C, {lags}]; got shape {shape}")
        if value.ndim == 2 and (x.ndim < 3 or shape[0] != x.shape[2]):
            allowed = (
                f"[{x.shape[2]}, {lags}] for x with that many channels"
                if x.ndim > 2
                else (f"[{lags}] for x [T, M]")
            )
            raise ValueError(f"{name} must be {allowed}; got shape {shape}")
        checked.append(value)
    return tuple(checked)


def _copies_once(x: Tensor) -> bool:
    """Not while a graph is traced, which has its own constants, nor for tensors without data."""
    return x.device.type != "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()


@lru_cache(maxsize=256)
def _on_device(values: tuple, shape: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied once: a copy waits for the device and cannot be part of a CUDA graph."""
    with torch.inference_mode(False):  # or it could never be part of a backward pass
        return torch.tensor(values, dtype=dtype, device=device).view(shape)


def check_orders(prefix: str, alpha: Tensor, beta: Tensor, most: float, hint: str = "") -> None:
    """Raise where an order is higher than the kernels take."""
    for name, order in (("alpha", alpha.shape[-1]), ("beta", beta.shape[-1] - 1)):
        if order > most:
            raise ValueError(
                f"{prefix}{name} has order {order}; the kernels take up to {most}{hint}"
            )


def lags_first(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients as the private ops take them: float32 `[P, c]` and `[Q + 1, c]`."""
    if alpha.ndim != beta.ndim:  # one filter's part is shared by the channels, the other is not
        channels = max(alpha, beta, key=lambda t: t.ndim).shape[0]
        alpha, beta = (t if t.ndim == 2 else t.expand(channels, -1) for t in (alpha, beta))
    return tuple(
        t.to(torch.float32).unsqueeze(1) if t.ndim == 1 else t.to(torch.float32).t().contiguous()
        for t in (alpha, beta)
    )


def _check_state(state: Tensor | None, x: Tensor, rows: int) -> Tensor | None:
    if state is None:
        return None
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not isinstance(state, Tensor) or state.dtype != dtype:
        got = state.dtype if isinstance(state, Tensor) else type(state).__name__
        raise TypeError(f"state must be a {dtype} tensor for {x.dtype} x; got {got}")
    if state.device != x.device:
        raise ValueError(f"state is on {state.device}, x is on {x.device}")
    if list(state.shape) != [rows, *x.shape[1:]]:
        raise ValueError(
            f"state must be [P + Q, N, *] = {[rows, *x.shape[1:]]}; got {list(state.shape)}"
        )
    return state
