"""The layer `OverTime`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_choice
from snnkernels.nn._saved import MOST, Kept, Packed, check_values, saving


class OverTime(nn.Module):
    """Apply a module without memory to all time steps at once, by folding T into the batch.

    For convolutions, linear layers, norms and pooling. Memory format is kept: a channels_last
    convolution gives a channels_last sequence.

    Args:
        *modules: run one after the other.
        save: how x is kept, where the first module keeps it for its backward pass, as convolutions,
            linear layers and pooling do: "bits" keeps an eighth of a byte for an element that is 0
            or 1, as spikes are; "bytes" keeps one byte for a whole number from 0 to 255, as sums of
            spikes are. That changes no bit of a result or gradient. Other values give wrong
            gradients; under `torch.autograd.detect_anomaly`, which looks at all of them, they are
            an error. None keeps x as it is, and so does `torch.compile`. Default: None.

    Shape:
        x `[T, N, *]`; the modules see `[T * N, *]`.
    """

    def __init__(self, *modules: nn.Module, save: str | None = None) -> None:
        super().__init__()
        if not modules:
            raise ValueError("OverTime needs at least one module; got none")
        check_choice("save", save, (None, *MOST))
        self.module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        self.save = save

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules on every step."""
        return self._run(x, None)

    def _run(self, x: Tensor, again: Callable[[], Tensor] | None) -> Tensor:
        """Run the modules; ``again``, if given, gives x in the backward pass: it is not kept."""
        plain = again is None and self.save is None
        # A compiled graph decides for itself what is kept.
        if plain or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # here, so that what is kept is the input itself
            x = x.to(torch.get_autocast_dtype(kind))
        if again is None and torch.is_anomaly_enabled():
            check_values(x, self.save)
        save, own = self.save, x.flatten(0, 1)

        def keep(x: Tensor) -> Kept:
            if again is None:
                return Packed.of(x, save)
            shape, dtype = x.shape, x.dtype  # not x itself, which would stay
            return None, lambda _: again().to(dtype).flatten(0, 1).reshape(shape)

        with saving(own, keep):
            return self.module(own).unflatten(0, x.shape[:2])

    def extra_repr(self) -> str:
        return "" if self.save is None else f"save={self.save!r}"
