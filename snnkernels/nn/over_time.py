"""The layer `OverTime`."""

from __future__ import annotations

from torch import Tensor, nn


class OverTime(nn.Module):
    """Apply a module without memory to all time steps at once, by folding T into the batch.

    For convolutions, linear layers, norms and pooling. Memory format is kept: a channels_last
    convolution gives a channels_last sequence.

    Args:
        *modules: run one after the other.

    Shape:
        x `[T, N, *]`; the modules see `[T * N, *]`.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        if not modules:
            raise ValueError("OverTime needs at least one module; got none")
        self.module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules on every step."""
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
