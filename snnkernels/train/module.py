"""Training with Lightning: the module and the run.

Needs ``pip install 'snnkernels[train]'``; nothing that ``import snnkernels`` loads imports this.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import cos, inf, pi
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Accuracy, MeanMetric, Metric

from snnkernels.core.checks import check_choice, check_whole
from snnkernels.core.files import check_folder
from snnkernels.core.state import State
from snnkernels.nn._stateful import StatefulLayer, detach, reset
from snnkernels.nn.losses import layer_penalties
from snnkernels.nn.synapses import IIRSynapse
from snnkernels.train import runs
from snnkernels.train.batches import InMemoryData
from snnkernels.train.callbacks import History, ProgressBar, Resumable


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
        carry_state: let layers with ``stateful=True`` start each training batch of an epoch where
            the last one ended, without its graph; so all batches must have one size, which must
            divide the samples. By default, and in validation always, every batch starts from zero.

    Raises:
        ValueError: an unknown loss or schedule, a warmup outside 0 ... 1, a negative weight, a
            number of classes < 1, or a learning rate <= 0.
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
        carry_state: bool = False,
    ) -> None:
        super().__init__()
        check_whole("classes", classes)
        if not 0 <= regulariser < inf:
            raise ValueError(f"regulariser must be a weight >= 0; got {regulariser!r}")
        check_choice("loss", loss, tuple(LOSSES))
        check_choice("schedule", schedule, tuple(SCHEDULES))
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup must be a share of the steps, 0 to 1; got {warmup!r}")
        if filter_lr is not None and not 0 < filter_lr < inf:
            raise ValueError(f"filter_lr must be None or a learning rate > 0; got {filter_lr!r}")
        self.network = network
        self.loss = LOSSES[loss]
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.regulariser = regulariser
        self.filter_lr = filter_lr
        self.carry_state = carry_state
        self._carried: dict[str, State | None] = {}  # of training, while samples are validated
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
        """Begin new sums and states; not called where an epoch is taken up in the middle."""
        self._reset_meters("train")
        reset(self.network)

    def on_validation_epoch_start(self) -> None:
        """Begin new sums, and put the states of training aside."""
        self._reset_meters("val")
        self._carried = self._states()

    def on_validation_epoch_end(self) -> None:
        """Bring the states of training back."""
        self._set_states(self._carried)
        self._carried = {}

    def on_fit_end(self) -> None:
        """Leave no state behind that the next call of the network would start from."""
        if not self.carry_state:
            reset(self.network)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the carried states: they are no part of ``state_dict``."""
        if self.carry_state:
            checkpoint["states"] = {
                name: state and state.detach() for name, state in self._states().items()
            }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on from them."""
        for name, state in checkpoint.get("states", {}).items():
            here = state and State(*(p if p is None else p.to(self.device) for p in state))
            self._set_states({name: here})

    def _states(self) -> dict[str, State | None]:
        layers = self.network.named_modules()
        return {name: m.state for name, m in layers if isinstance(m, StatefulLayer)}

    def _set_states(self, states: dict[str, State | None]) -> None:
        for name, state in states.items():
            self.network.get_submodule(name).state = state

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
        start = detach if self.carry_state and phase == "train" else reset
        start(self.network)
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
    """What the learning rate is multiplied with at ``step`` (0-based) of ``steps``."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return SCHEDULES[schedule]((step - rise) / max(1, steps - rise))


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there; reads as Lightning does."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options=None) -> None:
        """Write one; `snnkernels.core.files.write_whole` says what a failure leaves."""
        runs.save(Path(path), checkpoint)


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
        ValueError: epochs < 1.
        OSError: the directory cannot be written, or its disk is full; what was written stays whole.
        OtherRunError: the directory holds an unfinished run with other settings.
        RunError: the checkpoint in the directory is damaged, or of another network.
    """
    check_whole("epochs", epochs)
    directory = Path(directory)
    history = History()
    resumable = Resumable(directory, {"epochs": epochs, **(settings or {})})
    check_folder(directory)
    if fresh:
        resumable.path.unlink(missing_ok=True)
    found = resumable.found(module)
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
            plugins=[WholeCheckpoints()],
        )
        checkpoint = str(resumable.path) if found else None
        try:
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
    complete = len(history.epochs) == epochs
    if show and not complete:
        print(f"Stopped after {len(history.steps)} steps. The same command goes on from there.")
    return history, complete


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
