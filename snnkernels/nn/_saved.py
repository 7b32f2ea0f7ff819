"""How a graph keeps spikes for its backward pass: as bits, as bytes, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snnkernels.core.output_memory import dense_strides

MOST = {"bits": 1, "bytes": 255}  # what an element may be, from 0


class Packed(NamedTuple):
    """Whole numbers in one bit or one byte each, and what tensor they were.

    Attributes:
        data: uint8, the elements in the order of their memory: `[n]`, or `[ceil(n / 8)]` where bit
            k of byte j is element k * len(data) + j.
        bits: whether it holds bits.
        shape: of the tensor.
        strides: of the tensor; dense.
        dtype: of the tensor.
    """

    data: Tensor
    bits: bool
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, save: str) -> Packed:
        """Pack a tensor.

        Args:
            x: of whole numbers, 0 or 1 for ``save="bits"``, 0 to 255 for "bytes".
            save: one of `MOST`.
        """
        small = x.to(torch.uint8)  # dense, if x is not
        data = small.as_strided((small.numel(),), (1,))
        if save == "bits":
            missing = -data.numel() % 8
            rows = (F.pad(data, (0, missing)) if missing else data).view(8, -1)
            data = rows[0].clone()
            for k in range(1, 8):
                data |= rows[k] << k
        return cls(data, save == "bits", x.shape, small.stride(), x.dtype)

    def unpack(self) -> Tensor:
        """The tensor again."""
        data = self.data
        if self.bits:
            rows = data.new_empty((8, data.numel()), dtype=self.dtype)
            for k in range(8):
                rows[k] = (data >> k) & 1
            data = rows.view(-1)
        return data.to(self.dtype).as_strided(self.shape, self.strides)


def check_values(x: Tensor, save: str) -> None:
    """Raise a ValueError unless ``save`` can hold x."""
    most = MOST[save]
    wrong = x[~((x >= 0) & (x <= most) & (x == x.round()))]
    if wrong.numel():
        raise ValueError(
            f"x must hold whole numbers from 0 to {most} for save={save!r}; got {wrong[0].item():g}"
        )


@contextmanager
def saving(x: Tensor, keep: Callable[[Tensor], Callable[[], Tensor]]) -> Iterator[None]:
    """Within it, graphs keep another thing in the place of x.

    Args:
        x: the tensor whose elements are meant, as they are now: what has other elements, or the
            same memory after a change in place, is kept as ever.
        keep: called with x, or with a tensor of another shape of the same elements; gives a
            function of nothing that gives such a tensor in the backward pass.
    """
    memory = _memory(x)

    def pack(kept: Tensor) -> Tensor | Callable[[], Tensor]:
        return keep(kept) if _memory(kept) == memory else kept

    @torch.no_grad()
    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _memory(x: Tensor) -> tuple:
    """Equal for tensors that are the same elements of the same memory, and for no others."""
    dense = x.stride() == dense_strides(x)
    order = (x.numel(),) if dense else (x.shape, x.stride())
    version = 0 if x.is_inference() else x._version
    return x.data_ptr(), x.dtype, version, order
