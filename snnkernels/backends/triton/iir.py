"""The filter's way from tensors to a launch."""

from __future__ import annotations

from snnkernels.backends.triton.iir_kernels import iir_bwd_kernel, iir_fwd_kernel
from snnkernels.backends.triton.launch import empty_sums, per_channel, reduce_filter, run, table_row
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY

MAX_ORDER = 8  # of P and of Q: so many rows fit the registers


def held(P: int, Q: int, learns: bool) -> int:
    """``held`` of `Launch.fitting`, which a filter of these orders needs."""
    if learns:
        return 2 if max(P, Q) <= 2 else 3
    return 1 if max(P, Q) <= 2 else 2


def _orders(alpha, beta) -> dict:
    return {
        "P": alpha.shape[0],
        "Q": beta.shape[0] - 1,
        "FILTER_PER_CHANNEL": per_channel(beta),
    }


def iir_forward(
    layout, x, state, alpha, beta, *, f, state_out, checkpoint_every, checkpoints
) -> None:
    """Fill f, state_out and checkpoints; see ``csrc/snncore.h: IirForward``."""
    orders = _orders(alpha, beta)
    run(
        iir_fwd_kernel,
        layout,
        table_row(layout.neurons, x).forward,
        {"x": layout.inputs[0], "out": layout.out},
        {
            "x": x,
            "state0": state,
            "alpha": alpha,
            "beta": beta,
            "f": f,
            "state_out": state_out,
            "checkpoints": checkpoints,
        },
        orders | {"K": checkpoint_every},
        x,
        backward=False,
        held=held(orders["P"], orders["Q"], False),
    )


def iir_backward(
    layout,
    df,
    dstate,
    alpha,
    beta,
    x,
    state,
    checkpoint_every,
    checkpoints,
    *,
    dx,
    dstate0,
    dalpha,
    dbeta,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: IirBackward``."""
    orders = _orders(alpha, beta)
    learns = dalpha is not None
    sums = empty_sums(layout, df, orders["P"] + orders["Q"] + 1) if learns else None
    run(
        iir_bwd_kernel,
        layout,
        table_row(layout.neurons, df).backward,
        dict(zip(("df", "x", "out"), (*layout.inputs, layout.out), strict=True)),
        {
            "df": df,
            "dstate": dstate,
            "alpha": alpha,
            "beta": beta,
            "x": x if learns else None,
            "state0": state if learns else None,
            "checkpoints": checkpoints if learns else None,
            "dx": dx,
            "dstate0": dstate0,
            "dcoefficients": sums,
        },
        orders | {"K": checkpoint_every or CHECKPOINT_EVERY},
        df,
        backward=True,
        held=held(orders["P"], orders["Q"], learns),
    )
    reduce_filter(layout, sums, dalpha, dbeta)
