"""What a backend with kernels is, and what the backends share.

A module ``backends/<name>`` has

* ``CHECKPOINT_EVERY``, ``MAX_ORDER``, ``OPS`` and ``why_unavailable(device_type, index)``;
* ``neuron_forward(layout, call, x, outputs)`` and ``iir_forward`` with the same arguments, which
  fill the `Outputs` that are not None;
* ``neuron_backward(layout, call, x, checkpoints, arriving, gradients)`` and ``iir_backward``, which
  fill the `Gradients` that are not None from the `Arriving` ones;
* with "bntt" in ``OPS``: ``takes_bntt``, ``bntt_forward`` and ``bntt_backward``.

``layout`` is the walk over x and the outputs; going back, its inputs are x, the gradient on s and
that on h. For the filter alone s is its output f, and x may be None where no coefficient learns.
States lie in the memory order of the outputs. Kernels allocate nothing that outlives the call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.core.call import COEFFICIENTS, Call, Gradients
from snnkernels.core.strides import Layout


class Sums:
    """What a backward kernel adds up over time for the coefficients: one value per neuron.

    Attributes:
        decay, v_threshold, gain, trace_decay: float32 `[M]`, or None where it is not wanted.
        filter: float32 `[P + Q + 1, M]`, of alpha and then of beta, or None.
    """

    def __init__(self, layout: Layout, call: Call, gradients: Gradients, device) -> None:
        def empty(wanted: bool, *leading: int) -> Tensor | None:
            size = (*leading, layout.neurons)
            return torch.empty(size, dtype=torch.float32, device=device) if wanted else None

        self.gradients, self.P = gradients, call.P
        for name in COEFFICIENTS:
            setattr(self, name, empty(getattr(gradients, name) is not None))
        learns = gradients.alpha is not None or gradients.beta is not None
        self.filter = empty(learns, call.P + call.Q + 1)

    @property
    def wanted(self) -> bool:
        """Whether anything is added up at all."""
        rows = (getattr(self, name) for name in COEFFICIENTS)
        return self.filter is not None or any(row is not None for row in rows)

    def reduce(self, reduce: Callable[[Tensor, Tensor], None]) -> None:
        """Fill the gradients; ``reduce(per_neuron, out)`` adds up `[M]` into one or C values."""
        for name in COEFFICIENTS:
            if getattr(self, name) is not None:
                reduce(getattr(self, name), getattr(self.gradients, name))
        if self.filter is None:
            return
        alpha, beta = self.filter[: self.P], self.filter[self.P :]
        for rows, gradient in ((alpha, self.gradients.alpha), (beta, self.gradients.beta)):
            if gradient is not None:
                for per_neuron, out in zip(rows, gradient, strict=True):
                    reduce(per_neuron, out)
