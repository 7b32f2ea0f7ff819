"""How a tensor `[T, N, *]` of any strides is walked: as rows of `[O, T, I]`, without a copy.

Neurons are numbered in the memory order of the output: m = o * I + i with i contiguous. Any dense
tensor has this form (channels_last and transposed ones too), and so has an input that is expanded
over T or N.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.core.output_memory import dense_strides, empty_strided


class Rows(NamedTuple):
    """Element (o, t, i) of a tensor lies at ``o * outer + t * time + i * inner`` elements."""

    outer: int
    time: int
    inner: int  # 1, or 0 where a value is broadcast


class Layout(NamedTuple):
    """The common walk over the output (dense) and the inputs of one call.

    Attributes:
        steps: T.
        outer: O, rows that lie apart from each other.
        inner: I, neurons that lie side by side.
        channels: size of dim 2, or 1 where there is none.
        channel_inner: neurons, in memory order, that share a channel before the next one starts:
            the channel of neuron m is ``(m // channel_inner) % channels``.
        out: strides of the output and of everything that is laid out like it.
        inputs: strides of each input, or None where it cannot be walked this way and must be
            copied into the output's layout.
    """

    steps: int
    outer: int
    inner: int
    channels: int
    channel_inner: int
    out: Rows
    inputs: tuple[Rows | None, ...]

    @property
    def neurons(self) -> int:
        return self.outer * self.inner


def _merge(dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Join neighbouring (size, *strides), outermost first, wherever all strides allow it."""
    merged: list[tuple[int, ...]] = []
    for dim in dims:
        if merged and all(
            outer == inner * dim[0] for outer, inner in zip(merged[-1][1:], dim[1:], strict=True)
        ):
            merged[-1] = (merged[-1][0] * dim[0], *dim[1:])
        else:
            merged.append(dim)
    return merged


def _walkable(dims: list[tuple[int, ...]], most: int) -> bool:
    """At most O and I, I contiguous in the output and contiguous or constant in the inputs."""
    if len(dims) < 2 and (not dims or dims[0][1] != 1):
        return True  # one neuron, or one run of neurons with time innermost
    contiguous = len(dims) <= most and dims[-1][1] == 1
    return contiguous and all(stride in (0, 1) for stride in dims[-1][2:])


@lru_cache(maxsize=1024)
def _layout(
    shape: tuple[int, ...],
    out: tuple[int, ...],
    inputs: tuple[tuple[int, ...] | None, ...],
    most: int,
) -> Layout:
    order = sorted(
        (d for d in range(1, len(shape)) if shape[d] != 1), key=lambda d: out[d], reverse=True
    )
    accepted: list[tuple[int, ...]] = []
    kept: list[bool] = []
    for strides in inputs:
        trial = [*accepted, strides] if strides is not None else accepted
        dims = [(shape[d], out[d], *(s[d] for s in trial)) for d in order]
        ok = strides is not None and _walkable(_merge(dims), most)
        kept.append(ok)
        if ok:
            accepted = trial
    dims = _merge([(shape[d], out[d], *(s[d] for s in accepted)) for d in order])
    if not dims:
        dims = [(1, 1, *(1 for _ in accepted))]
    if len(dims) == 1:
        # One run of neurons: side by side (O = 1), or each a row of its own (time innermost).
        outer, inner = (1, *(0 for _ in dims[0][1:])), (1, *(1 for _ in dims[0][1:]))
        dims = [outer, dims[0]] if dims[0][1] == 1 else [dims[0], inner]
    rows = [Rows(outer, 0, inner) for outer, inner in zip(dims[0][1:], dims[1][1:], strict=True)]
    times = iter([s[0] for s in accepted])
    walked = iter([row._replace(time=next(times)) for row in rows[1:]])
    channels = shape[2] if len(shape) > 2 else 1
    inside = 1
    if len(shape) > 2 and shape[2] != 1:
        for d in order[order.index(2) + 1 :]:
            inside *= shape[d]
    return Layout(
        steps=shape[0],
        outer=dims[0][0],
        inner=dims[1][0],
        channels=channels,
        channel_inner=inside,
        out=rows[0]._replace(time=out[0]),
        inputs=tuple(next(walked) if ok else None for ok in kept),
    )


def common_layout(out: Tensor, *inputs: Tensor | None, one_row: bool = False) -> Layout:
    """The walk over ``out`` (dense) and those of ``inputs`` (same shape) that fit it.

    Args:
        out: the output.
        inputs: read as they lie, where that is possible.
        one_row: only inputs fit with which O = 1 if it is 1 for the output alone. Default: False.
    """
    strides = tuple(None if t is None else t.stride() for t in inputs)
    return _layout(tuple(out.shape), out.stride(), strides, 1 if one_row else 2)


def lay_out_like(x: Tensor, out: Tensor) -> Tensor:
    """A copy of x, in x's dtype, with the strides of out."""
    return torch.empty_strided(out.shape, out.stride(), dtype=x.dtype, device=x.device).copy_(x)


def rows_form(laid_out: Tensor, *leading: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size and strides of `[*leading, *shape[1:]]`, each laid out as a step of an output.

    Args:
        laid_out: `[T, *]`, an output, or the input whose strides an output takes over.
        leading: sizes in front, outermost first.
    """
    of_output, shape = dense_strides(laid_out), laid_out.shape
    strides, step = [0] * len(shape), 1
    for d in sorted(range(1, len(shape)), key=of_output.__getitem__):
        strides[d] = step
        step *= max(shape[d], 1)
    front: tuple[int, ...] = ()
    for size in reversed(leading):
        front = (step, *front)
        step *= size
    return (*leading, *shape[1:]), (*front, *strides[1:])


def empty_rows(laid_out: Tensor, *leading: int, on: Tensor | None = None) -> Tensor:
    """Uninitialised float32 rows in the form of `rows_form`.

    Args:
        laid_out: as `rows_form` takes it.
        leading: as `rows_form` takes it.
        on: a tensor on the device to use. Default: ``laid_out``.
    """
    form = rows_form(laid_out, *leading)
    return empty_strided(*form, torch.float32, laid_out if on is None else on)


def in_memory_order(rows: Tensor | None, laid_out: Tensor) -> Tensor | None:
    """A state in the form of `rows_form`, copied only where it has another one."""
    if rows is None:
        return None
    size, strides = rows_form(laid_out, *rows.shape[: rows.ndim - laid_out.ndim + 1])
    if rows.stride() == strides:
        return rows
    return torch.empty_strided(size, strides, dtype=rows.dtype, device=rows.device).copy_(rows)
