"""Training with Lightning: the module, the data and the run.

Needs ``pip install 'snnkernels[train]'``; nothing that ``import snnkernels`` loads imports this.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Accuracy, MeanMetric, Metric

from snnkernels.nn.losses import layer_penalties
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train.callbacks import History, ProgressBar, Resumable
from snnkernels.train.data import DATASETS, Dataset


def adamw(lr: float = 2e-3) -> OptimizerCallable:
    """Makes AdamW optimizers in PyTorch's one-kernel form, which on a CPU is the quick one."""
    return partial(torch.optim.AdamW, lr=lr, fused=True)


ADAMW = adamw()


def mse_loss(rates: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of firing rates `[N, C]` to the one-hot label, summed over classes."""
    target = functional.one_hot(labels, rates.shape[1]).to(rates.dtype)
    return functional.mse_loss(rates, target) * rates.shape[1]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_loss,
    "cross_entropy": functional.cross_entropy,
}


class SpikingClassifier(L.LightningModule):
    """Train a network that gives one score per class, such as the firing rates of output neurons.

    Logs loss and accuracy of every epoch as train_loss, train_accuracy (while the weights change),
    val_loss and val_accuracy. What a loss and a score are may be said anew in `evaluate`.

    Args:
        network: from samples `[N, *]` to scores `[N, classes]`.
        classes: number of classes. Default: 10.
        loss: "mse" between scores and the one-hot label, which suits firing rates, or
            "cross_entropy" with the scores as logits. Default: "mse".
        optimizer: makes the optimizer from the parameters. Default: AdamW with lr = 2e-3.
        schedule: of the learning rate after the warm-up, updated at every step: "constant", or
            "linear" or "cosine" down to zero at the last step. Default: "cosine".
        warmup: share of all steps in which the learning rate rises linearly. Default: 0.1.
        regulariser: weight in the loss of the potential regularisers of the network's layers, see
            `snnkernels.nn.losses.layer_penalties`; 0 leaves them out. Default: 0.
        filter_lr: learning rate of the coefficients of `IIRSynapse`, each of which acts on every
            spike of its input; they have no weight decay then. Default: None, that of the weights.

    Raises:
        ValueError: an unknown loss or schedule, a warmup outside 0 ... 1, or a negative weight.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int = 10,
        loss: Literal["mse", "cross_entropy"] = "mse",
        optimizer: OptimizerCallable = ADAMW,
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup: float = 0.1,
        regulariser: float = 0.0,
        filter_lr: float | None = None,
    ) -> None:
        super().__init__()
        if not regulariser >= 0:
            raise ValueError(f"regulariser must be a weight >= 0; got {regulariser!r}")
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup must be a share of the steps, 0 to 1; got {warmup!r}")
        self.network = network
        self.loss = LOSSES[loss]
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.regulariser = regulariser
        self.filter_lr = filter_lr
        self.meters = nn.ModuleDict(
            {
                f"{phase}_{name}": metric
                for phase in ("train", "val")
                for name, metric in (
                    ("loss", MeanMetric()),
                    ("accuracy", Accuracy(task="multiclass", num_classes=classes)),
                )
            }
        )
        for meter in self.meters.values():
            # An epoch that is taken up in the middle goes on with the sums of its first part.
            meter.persistent(True)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of one batch."""
        return self._measure("train", batch)

    def on_train_epoch_start(self) -> None:
        """Begin new sums; not called where an epoch is taken up in the middle."""
        self._reset_meters("train")

    def on_validation_epoch_start(self) -> None:
        """Begin new sums."""
        self._reset_meters("val")

    def _reset_meters(self, phase: str) -> None:
        for name, meter in self.meters.items():
            if name.startswith(phase):
                meter.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Loss and accuracy on samples that are not trained on."""
        self._measure("val", batch)

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch, and a score of every class `[N, classes]`, None where not measured."""
        scores = self(x)
        return self.loss(scores, y), scores

    def _measure(self, phase: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss, scores = self.evaluate(*batch)
        if self.regulariser:
            loss = loss + self.regulariser * layer_penalties(self.network)
        measured = {"loss": (loss.detach(),)}
        if scores is not None:
            measured["accuracy"] = (scores.detach(), batch[1])
        for name, values in measured.items():
            meter: Metric = self.meters[f"{phase}_{name}"]
            meter.update(*values)
            self.log(f"{phase}_{name}", meter, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> dict:
        """The optimizer, and its learning rate as a function of the step."""
        optimizer = self.optimizer(self.parameter_groups())
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        factor = partial(rate_factor, steps=steps, schedule=self.schedule, warmup=self.warmup)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def parameter_groups(self) -> list[dict]:
        """All parameters, the synapses' apart where they have a learning rate of their own."""
        synapses = [m for m in self.network.modules() if isinstance(m, IIRSynapse)]
        filters = [] if self.filter_lr is None else [p for m in synapses for p in m.parameters()]
        apart = {id(p) for p in filters}
        groups = [{"params": [p for p in self.parameters() if id(p) not in apart]}]
        if filters:
            groups.append({"params": filters, "lr": self.filter_lr, "weight_decay": 0.0})
        return groups


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + cos(pi * progress)) / 2,
}


def rate_factor(step: int, *, steps: int, schedule: str, warmup: float) -> float:
    """What the learning rate is multiplied with at a step (0-based) of so many."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return SCHEDULES[schedule]((step - rise) / max(1, steps - rise))


class Batches:
    """Batches of samples in memory, which take up an epoch where a checkpoint left it.

    Args:
        x: samples `[N, *]`.
        y: labels `[N]`.
        batch_size: samples a batch; the last one may be smaller.
        order: gives the order of the samples `[N]`; asked once an epoch, at its first batch.
            Default: as they come.
        start: batches that the first epoch leaves out. Default: 0.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        order: Callable[[], Tensor] | None = None,
        start: int = 0,
    ) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number >= 1; got {batch_size!r}")
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.order = order or partial(torch.arange, len(y))
        self.position = self._start = start

    def __len__(self) -> int:
        return -(-len(self.y) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        chunks = self.order().split(self.batch_size)
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

    Args:
        dataset: its name, a key of `snnkernels.train.data.DATASETS`, or the data set itself.
        batch_size: training samples a step. Default: 64.
        seed: of the order of training samples. Default: 0.
    """

    def __init__(
        self, dataset: str | Dataset = "handwritten_digits", *, batch_size: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        if isinstance(dataset, str) and dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self._start = 0
        self._train: Batches | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load the data, once."""
        if isinstance(self.dataset, str):
            self.dataset = DATASETS[self.dataset]()

    def train_dataloader(self) -> Batches:
        """All training samples in a new order every epoch."""
        self._train = Batches(*self.dataset.train, self.batch_size, self._shuffled, self._start)
        self._start = 0
        return self._train

    def val_dataloader(self) -> Batches:
        """The test samples."""
        return Batches(*self.dataset.test, 250)

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
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.trainer.current_epoch)
        return torch.randperm(len(self.dataset.train.y), generator=generator)


def fit(
    module: SpikingClassifier,
    data: InMemoryData,
    *,
    directory: str | Path,
    epochs: int,
    settings: dict | None = None,
    fresh: bool = False,
    show: bool = True,
    callbacks: Sequence[L.Callback] = (),
) -> tuple[History, bool]:
    """Train, or go on with the run that was stopped in the same directory.

    Args:
        module: what to train; holds the final weights afterwards.
        data: training and test samples.
        directory: where the checkpoint of an unfinished run lies.
        epochs: number of passes over the training samples.
        settings: all that makes this run another one than a run with other settings; a run is only
            taken up with the settings it began with.
        fresh: start anew, whatever lies in the directory. Default: False.
        show: print progress. Default: True.
        callbacks: more of Lightning's. Default: none.

    Returns:
        The history of the whole run, and whether it is complete: False after Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed a second time.
        OtherRunError: the directory holds an unfinished run with other settings.
    """
    history = History()
    resumable = Resumable(directory, {"epochs": epochs, **(settings or {})})
    if fresh:
        resumable.path.unlink(missing_ok=True)
    found = resumable.found()
    if found and show:
        print(f"Taking up the run in {directory}, stopped after {found}; --fresh starts anew.")
    bar = [ProgressBar(history)] if show else []
    with quiet():
        trainer = L.Trainer(
            max_epochs=epochs,
            callbacks=[history, *callbacks, resumable, *bar],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            devices=1,
        )
        checkpoint = str(resumable.path) if found else None
        try:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
    return history, len(history.epochs) == epochs


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's notes about devices and its other products out of the terminal."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 calls what torch 2.13 has renamed; there is nothing to be done here.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
