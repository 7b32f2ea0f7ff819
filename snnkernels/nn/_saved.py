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
        unpack: gives the tensor again, of data.
    """

    data: Tensor
    unpack: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, x: Tensor, save: str) -> Packed:
        """Pack a tensor.

        Args:
            x: of whole numbers, 0 or 1 for ``save="bits"``, 0 to 255 for "bytes".
            save: one of `MOST`.
        """
        small = x.to(torch.uint8)  # dense, if x is not
        shape, strides, dtype = x.shape, small.stride(), x.dtype
        data = small.as_strided((small.numel(),), (1,))
        if save == "bits":
            missing = -data.numel() % 8
            rows = (F.pad(data, (0, missing)) if missing else data).view(8, -1)
            data = rows[0].clone()
            for k in range(1, 8):
                data |= rows[k] << k

        def unpack(data: Tensor) -> Tensor:
            if save == "bits":
                rows = data.new_empty((8, data.numel()), dtype=dtype)
                for k in range(8):
                    rows[k] = (data >> k) & 1
                data = rows.view(-1)
            return data.to(dtype).as_strided(shape, strides)

        return cls(data, unpack)


def check_values(x: Tensor, save: str) -> None:
    """Raise a ValueError unless ``save`` can hold x."""
    most = MOST[save]
    wrong = x[~((x >= 0) & (x <= most) & (x == x.round()))]
    if wrong.numel():
        raise ValueError(
            f"x must hold whole numbers from 0 to {most} for save={save!r}; got {wrong[0].item():g}"
        )


Kept = tuple[Tensor | None, Callable[[Tensor | None], Tensor] | None]


@contextmanager
def saving(x: Tensor, keep: Callable[[Tensor], Kept]) -> Iterator[None]:
    """Within it, graphs keep another thing in the place of x.

    Hooks on saved tensors that are at work already, as in `torch.utils.checkpoint`, go on: they see
    what is kept.

    Args:
        x: the tensor whose elements are meant, as they are now: what has other elements, or the
            same memory after a change in place, is kept as ever.
        keep: called with x, or with a tensor of another shape of the same elements; gives what is
            kept, a tensor or None, and a function that makes such a tensor of that again in the
            backward pass.
    """
    memory = _memory(x)
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
    hold, fetch = outer or (_same, _same)

    def pack(saved: Tensor) -> tuple[object, Callable | None]:
        kept, restore = keep(saved) if _memory(saved) == memory else (saved, None)
        return None if kept is None else hold(kept), restore

    @torch.no_grad()
    def unpack(packed: tuple[object, Callable | None]) -> Tensor:
        held, restore = packed
        kept = None if held is None else fetch(held)
        return kept if restore is None else restore(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def _same(x: Tensor) -> Tensor:
    return x


def _memory(x: Tensor) -> tuple:
    """Equal for tensors that are the same elements of the same memory, and for no others."""
    dense = x.stride() == dense_strides(x)
    order = (x.numel(),) if dense else (x.shape, x.stride())
    version = 0 if x.is_inference() else x._version
    return x.data_ptr(), x.dtype, version, order
