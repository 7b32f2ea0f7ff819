"""Lightning callbacks: what a run remembers, what it says, and how it stops and goes on."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import lightning as L
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from torch import nn

from snnkernels.train import runs
from snnkernels.train.processes import gathered, own_part
from snnkernels.train.randomness import random_state, set_random_state


class History(L.Callback):
    """Loss of every step and the measures of every epoch; part of the checkpoint.

    Attributes:
        steps: training loss of each optimizer step, of all processes together.
        epochs: one dict an epoch: seconds, train_loss, train_accuracy, val_loss, val_accuracy.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self._seconds = 0.0  # of the part of this epoch that an earlier process ran
        self._begin = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        loss = outputs["loss"].detach()
        if trainer.world_size > 1:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        self.steps.append(float(loss))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_last_batch:
            return  # stopped on the way: the run that takes it up finishes the epoch
        measures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"seconds": self._spent(), **measures})
        self._seconds, self._begin = 0.0, time.perf_counter()

    def _spent(self) -> float:
        return self._seconds + time.perf_counter() - self._begin

    def state_dict(self) -> dict:
        return {"steps": self.steps, "epochs": self.epochs, "seconds": self._spent()}

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])
        self._seconds = state["seconds"]


class ProgressBar(L.Callback):
    """One bar for the whole run, and a line for every epoch that `History` recorded."""

    def __init__(self, history: History) -> None:
        self.history = history
        # transient: what stays in the terminal are the lines
        self.bar = Progress(
            "  {task.description}",
            BarColumn(),
            "{task.percentage:3.0f} %",
            TimeRemainingColumn(),
            "left",
            transient=True,
        )
        self.task = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.task = self.bar.add_task(
            "training",
            total=int(trainer.estimated_stepping_batches),
            completed=trainer.global_step,
        )
        self.bar.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.bar.update(
            self.task,
            completed=trainer.global_step,
            description=f"{self._epoch(trainer)}   loss {self.history.steps[-1]:.4f}",
        )

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.task is not None:
            self.bar.update(self.task, description=f"{self._epoch(trainer)}   test samples")

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_last_batch:
            return
        last = self.history.epochs[-1]
        held = "test" if trainer.datamodule.dataset.validation is None else "validation"
        shares = "".join(
            f"   {title} {last[name]:6.1%}"
            for title, name in (("training", "train_accuracy"), (held, "val_accuracy"))
            if name in last
        )
        self.bar.console.print(
            f"  {self._epoch(trainer)}   loss {last['train_loss']:.4f}{shares}"
            f"   {last['seconds']:5.1f} s",
            highlight=False,
        )

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.bar.stop()

    def on_exception(self, trainer, module, exception: BaseException) -> None:
        self.bar.stop()

    @staticmethod
    def _epoch(trainer: L.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"


class Resumable(L.Callback):
    """Keep ``last.ckpt`` up to date: at the end of every epoch, and where Ctrl-C stops the run.

    The first Ctrl-C ends the run after the step that is being computed; a second one ends it at
    once, and the last checkpoint stays. Weights, optimizer, learning rate, order of samples, the
    history and all random numbers (`snnkernels.train.randomness.random_state`) go on from there, so
    that a run in two parts ends with the weights of one that was never stopped.

    Args:
        directory: where the checkpoint lies.
        settings: what the run was started with; kept in the checkpoint.

    Attributes:
        stopped: whether Ctrl-C ended the run.
    """

    def __init__(self, directory: str | Path, settings: dict | None = None) -> None:
        self.path = Path(directory) / runs.LAST
        self.settings = settings or {}
        self.stopped = False
        self._handler = None
        self._random: dict | None = None  # of the checkpoint that is taken up

    def found(self, module: L.LightningModule) -> str | None:
        """How far the unfinished run came, as words, or None where there is none.

        Args:
            module: what is trained.

        Raises:
            OSError: its checkpoint cannot be read.
            OtherRunError: it was started with other settings.
            RunError: its checkpoint is damaged, or of another network.
        """
        if not self.path.exists():
            return None
        keys = "settings", "random", "meters", "global_step", "epoch"
        checkpoint = runs.load_checkpoint(self.path, module, *keys)
        runs.check_settings(self.path, checkpoint["settings"], self.settings)
        return f"{checkpoint['global_step']} steps, in epoch {checkpoint['epoch'] + 1}"

    # Lightning keeps the handlers that it found before `on_train_start`, and brings them back after
    # an error: ours is set later, so that it does not come back.
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._random is not None:  # now: whatever was drawn on the way here was drawn before too
            set_random_state(module, self._random)
            self._random = None
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._stop)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer, module, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _stop(self, *_) -> None:
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("Stopping after this step; Ctrl-C again to stop at once.")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.world_size > 1:  # a signal reaches the processes in different steps
            self.stopped = trainer.strategy.reduce_boolean_decision(self.stopped, all=False)
        if self.stopped and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
            trainer.limit_val_batches = 0  # no look at the test samples on the way out
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = trainer.should_stop or self.stopped

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint) -> None:
        checkpoint["settings"] = self.settings
        checkpoint["random"] = gathered(trainer, random_state(module))

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint) -> None:
        self._random = own_part(trainer, checkpoint["random"])


class Best(L.Callback):
    """Keep ``best.ckpt``: the weights after the epoch with the best validation accuracy.

    Args:
        directory: where they go.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / runs.BEST
        self.accuracy = -1.0

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics.get("val_accuracy", -1.0))
        if trainer.is_last_batch and trainer.is_global_zero and accuracy > self.accuracy:
            self.accuracy = accuracy
            runs.save(self.path, {"state_dict": module.state_dict()})

    def state_dict(self) -> dict:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict) -> None:
        self.accuracy = state["accuracy"]


class Hybrid(L.Callback):
    """Train a network without spikes and without reset first (Samadzadeh et al., sec. 4.1).

    Args:
        epochs: number of epochs before the neurons fire.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Also where a run is taken up in the middle of an epoch."""
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for network in self.able(module):
            network.pretrain(trainer.current_epoch < self.epochs)

    @staticmethod
    def able(module: nn.Module) -> list[nn.Module]:
        """The networks in a module whose neurons can be told not to fire."""
        return [m for m in module.modules() if hasattr(m, "pretrain")]
