"""Samples in memory, in batches; needs ``pip install 'snnkernels[train]'``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import lightning as L
import torch
from torch import Tensor

from snnkernels.core.checks import check_whole
from snnkernels.train.data import Dataset, Lazy


class Batches:
    """Batches of samples in memory, which take up an epoch where a checkpoint left it.

    Args:
        x: samples `[N, *]`.
        y: labels `[N]`.
        batch_size: samples a batch; the last one may be smaller.
        order: gives the order of the samples `[N]`; asked once an epoch, at its first batch.
            Default: as they come.
        start: batches that the first epoch leaves out. Default: 0.
        process: which of several processes this is; each has other samples of a batch that is as
            many times as large. Samples at the end that do not divide are left out. Default: 0.
        processes: how many there are. Default: 1.
    """

    def __init__(
        self,
        x: Tensor | Lazy,
        y: Tensor,
        batch_size: int,
        order: Callable[[], Tensor] | None = None,
        start: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        check_whole("batch_size", batch_size)
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.order = order or partial(torch.arange, len(y))
        self.position = self._start = start
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return -(-(len(self.y) // self.processes) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order()[: len(self.y) // self.processes * self.processes]
        chunks = order[self.process :: self.processes].split(self.batch_size)
        start, self._start = self._start, 0
        for index in range(start, len(chunks)):
            self.position = index + 1
            yield self.x[chunks[index]], self.y[chunks[index]]

    def state_dict(self) -> dict[str, int]:
        """The number of batches of this epoch that were handed out."""
        return {"position": self.position % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out the batches that were handed out before."""
        self._start = state["position"]


class InMemoryData(L.LightningDataModule):
    """A data set of `snnkernels.train.data` in batches.

    With several processes each trains on samples of its own, see `Batches`, and all of them look at
    all validation and test samples.

    Args:
        dataset: the samples.
        batch_size: training samples a step, of each process. Default: 64.
        seed: of the order of training samples. Default: 0.

    Raises:
        ValueError: a batch size or seed that is not allowed.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        check_whole("batch_size", batch_size)
        check_whole("seed", seed, 0)
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._start = 0
        self._train: Batches | None = None

    def train_dataloader(self) -> Batches:
        """All training samples in a new order every epoch."""
        self._train = Batches(
            *self.dataset.train,
            self.batch_size,
            self._shuffled,
            self._start,
            process=self.trainer.global_rank,
            processes=self.trainer.world_size,
        )
        self._start = 0
        return self._train

    def val_dataloader(self) -> Batches:
        """The validation samples; the test samples where none are held out."""
        return Batches(*(self.dataset.validation or self.dataset.test), 250)

    def test_dataloader(self) -> Batches:
        """The test samples."""
        return Batches(*self.dataset.test, 250)

    predict_dataloader = test_dataloader

    # Lightning hands a loader its state too late where a learning-rate schedule has asked for the
    # number of steps before, so the data module keeps it as well.
    def state_dict(self) -> dict[str, int]:
        """The place in the epoch."""
        return self._train.state_dict() if self._train else {"position": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from that place."""
        self._start = state["position"]

    def _shuffled(self) -> Tensor:
        """A permutation that depends on the seed and the epoch alone."""
        seed = (self.seed * 100_003 + self.trainer.current_epoch) % 2**63
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.dataset.train.y), generator=generator)
