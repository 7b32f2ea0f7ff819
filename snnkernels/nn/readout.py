"""The layer `LeakyReadout`."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.backends import check_name
from snnkernels.core.checks import check_choice
from snnkernels.nn._stateful import StatefulLayer
from snnkernels.ops.lif import lif

OUTPUTS = ("last", "mean", "sequence")


def total(x: Tensor, dim: int = 0) -> Tensor:
    """The sum over a dimension in float32 (float64 for float64 x).

    bfloat16 counts to 256 and float16 to 2,048 only.
    """
    return x.sum(dim, dtype=torch.promote_types(x.dtype, torch.float32))


def mean(x: Tensor, dim: int = 0) -> Tensor:
    """The mean over a dimension in float32 (float64 for float64 x)."""
    return x.mean(dim, dtype=torch.promote_types(x.dtype, torch.float32))


class LeakyReadout(StatefulLayer):
    """An output layer that integrates and never fires.

    .. math:: v_t = a v_{t-1} + x_t

    Args:
        decay: the leak, a number or one value per channel; 1 does not leak. Default: 1.
        output: "last" gives the potential after the last step (Stöckl's networks), "mean" the mean
            potential over the steps, "sequence" the potential after every step. Default: "last".
        learn_decay: make decay a parameter. Default: False.
        channels: size of dim 2 where decay is kept per channel. Default: None.
        stateful: go on where the last call ended. Default: False.
        backend: as in `LIF`. Default: "auto".

    Shape:
        x `[T, N, *]`, time first; output `[N, *]`, or `[T, N, *]` for "sequence", float32 (float64
        for float64 input). One step `[N, *]` goes to `step`.
    """

    def __init__(
        self,
        *,
        decay: float | Tensor = 1.0,
        output: str = "last",
        learn_decay: bool = False,
        channels: int | None = None,
        stateful: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(stateful, channels)
        check_choice("output", output, OUTPUTS)
        check_name(backend)
        self._coefficient("decay", decay, learn_decay)
        self.output = output
        self.backend = backend

    def step(self, x_t: Tensor) -> Tensor:
        """Integrate one step `[N, *]` of a stream, carrying the state, stateful or not.

        Args:
            x_t: input of one step `[N, *]`.

        Returns:
            The potential after it `[N, *]`.
        """
        v = self._run(x_t.unsqueeze(0), True)
        return v.squeeze(0) if self.output == "sequence" else v

    def _run(self, x: Tensor, carry: bool) -> Tensor:
        _, state, *h = lif(
            x,
            self._start(x, carry),
            decay=self.decay,
            v_threshold=float("inf"),
            reset="none",
            record=None if self.output == "last" else "h",
            backend=self.backend,
        )
        self._end(state, x, carry)
        if self.output == "last":
            return state.v
        return h[0].mean(0) if self.output == "mean" else h[0]

    def extra_repr(self) -> str:
        return f"decay={self._shown('decay')}, output={self.output!r}"
