"""Samples with their classes, and how they are told apart: training, validation, test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.core.checks import check_share, check_whole

SPLIT_SEED = 0  # of every split made here: which samples are test samples never changes


class DataError(ValueError):
    """A sample cannot be read; the file is named."""


class Lazy:
    """Samples that are read when they are asked for, in place of a tensor `[N, *]`.

    Args:
        items: what ``read`` takes, one for each sample.
        read: gives one sample `[*]`, each of the same shape and dtype.
    """

    def __init__(self, items: Sequence, read: Callable[..., Tensor]) -> None:
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Tensor) -> Lazy | Tensor:
        """The samples of a mask `[N]`, still unread, or those of some numbers, as a tensor.

        Raises:
            DataError: one of them cannot be read.
        """
        if index.dtype == torch.bool:
            return Lazy([self.items[i] for i in index.nonzero().flatten()], self.read)
        try:
            return torch.stack([self.read(self.items[i]) for i in index])
        except ValueError as error:
            raise DataError(str(error)) from error


class Samples(NamedTuple):
    """Inputs with their class labels.

    Attributes:
        x: the samples `[N, *]`: images uint8 or float `[N, C, H, W]`; sequences of images or of
            event counts (int16) `[N, T, C, H, W]`; series `[N, T, F]`, NaN after the end of a
            shorter one.
        y: class of each, int64 `[N]`.
    """

    x: Tensor | Lazy
    y: Tensor


class Dataset(NamedTuple):
    """A data set, split once and for all.

    Attributes:
        train: samples to learn from.
        test: samples kept out of training.
        classes: number of classes.
        validation: samples kept out of training too, by which settings and epochs are chosen; None
            where nothing is held out.
    """

    train: Samples
    test: Samples
    classes: int
    validation: Samples | None = None


def split(samples: Samples, *, test_per_class: int, seed: int = SPLIT_SEED) -> Dataset:
    """Draw the same number of test samples from every class.

    Args:
        samples: all samples, with classes 0 ... C-1.
        test_per_class: how many of each class become test samples.
        seed: of the draw. Default: `SPLIT_SEED`.

    Returns:
        Both parts, each in the order of the input.

    Raises:
        ValueError: a class has no more than test_per_class samples.
    """
    counts = samples.y.bincount()
    if counts.numel() == 0 or counts.min() <= test_per_class:
        raise ValueError(
            f"test_per_class must leave training samples in every class; got {test_per_class} "
            f"of {counts.tolist()}"
        )
    return Dataset(*_drawn(samples, [test_per_class] * len(counts), seed), len(counts))


def hold_out(dataset: Dataset, share: float, seed: int = SPLIT_SEED) -> Dataset:
    """Take the same share of every class out of the training samples, for validation.

    Args:
        dataset: without validation samples.
        share: of the training samples, 0 to 1; 0 holds nothing out.
        seed: of the draw. Default: `SPLIT_SEED`.

    Raises:
        ValueError: the share is no share, or leaves nothing to train on or to validate with.
    """
    check_share(validation=share)
    if share == 0:
        return dataset
    sizes = [round(share * count) for count in dataset.train.y.bincount().tolist()]
    if not 0 < sum(sizes) < len(dataset.train.y):
        raise ValueError(
            f"validation must leave samples on both sides; got {share} of {len(dataset.train.y)}"
        )
    train, validation = _drawn(dataset.train, sizes, seed)
    return dataset._replace(train=train, validation=validation)


def limited(dataset: Dataset, most: int | None, seed: int = SPLIT_SEED) -> Dataset:
    """At most so many training samples, the same share of every class; None keeps all.

    Args:
        dataset: without validation samples.
        most: number of training samples that are kept, up to rounding in each class.
        seed: of the draw. Default: `SPLIT_SEED`.
    """
    if most is None or most >= len(dataset.train.y):
        return dataset
    check_whole("limit", most)
    share = most / len(dataset.train.y)
    sizes = [round(share * count) for count in dataset.train.y.bincount().tolist()]
    return dataset._replace(train=_drawn(dataset.train, sizes, seed)[1])


def _drawn(samples: Samples, sizes: Sequence[int], seed: int) -> tuple[Samples, Samples]:
    """What is left, and the drawn samples, ``sizes`` of each class."""
    order = torch.randperm(len(samples.y), generator=torch.Generator().manual_seed(seed))
    drawn = torch.zeros(len(samples.y), dtype=torch.bool)
    for label, size in enumerate(sizes):
        drawn[order[samples.y[order] == label][:size]] = True
    left, taken = (Samples(samples.x[part], samples.y[part]) for part in (~drawn, drawn))
    return left, taken
