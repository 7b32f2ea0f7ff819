"""Lightning callbacks: what a run remembers, what it says, and how it stops and goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import lightning as L
import torch
from rich.progress import BarColumn, Progress, TimeRemainingColumn

LAST = "last.ckpt"  # of a run that is not finished
FINISHED = "model.ckpt"


class OtherRunError(ValueError):
    """An unfinished run lies in the directory, with other settings."""


def finish(directory: Path) -> Path:
    """Keep the checkpoint of a complete run under the name that is not taken up; returns it."""
    return (directory / LAST).replace(directory / FINISHED)


class History(L.Callback):
    """Loss of every step and the measures of every epoch; part of the checkpoint.

    Attributes:
        steps: training loss of each optimizer step.
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
        self.steps.append(float(outputs["loss"]))

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
        shares = "".join(
            f"   {title} {last[name]:6.1%}"
            for title, name in (("training", "train_accuracy"), ("test", "val_accuracy"))
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
    once, and the last checkpoint stays. Weights, optimizer, learning rate, order of samples,
    `torch`'s random numbers and the history go on from there, so that a run in two parts ends with
    the weights of one that was never stopped.

    Args:
        directory: where the checkpoint lies.
        settings: what the run was started with; kept in the checkpoint.

    Attributes:
        stopped: whether Ctrl-C ended the run.
    """

    def __init__(self, directory: str | Path, settings: dict | None = None) -> None:
        self.path = Path(directory) / LAST
        self.settings = settings or {}
        self.stopped = False
        self._handler = None

    def found(self) -> str | None:
        """How far the unfinished run came, as words, or None where there is none.

        Raises:
            OtherRunError: it was started with other settings.
        """
        if not self.path.exists():
            return None
        checkpoint = torch.load(self.path, weights_only=True, map_location="cpu")
        theirs = checkpoint["settings"]
        if theirs != self.settings:
            shown = ", ".join(
                f"{name}={theirs.get(name)} (now {self.settings.get(name)})"
                for name in sorted({*theirs, *self.settings})
                if theirs.get(name) != self.settings.get(name)
            )
            raise OtherRunError(
                f"{self.path} is of a run with {shown}: repeat that, start anew with --fresh, "
                "or choose another directory"
            )
        return f"{checkpoint['global_step']} steps, in epoch {checkpoint['epoch'] + 1}"

    # Lightning keeps the handlers that it found before `on_train_start`, and brings them back after
    # an error: ours is set later, so that it does not come back.
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
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
        if self.stopped and not trainer.is_last_batch:
            self._save(trainer)
            trainer.limit_val_batches = 0  # no look at the test samples on the way out
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_last_batch:
            self._save(trainer)
            trainer.should_stop = trainer.should_stop or self.stopped

    def _save(self, trainer: L.Trainer) -> None:
        part = self.path.with_suffix(".part")  # a checkpoint is whole or not there
        trainer.save_checkpoint(part)
        os.replace(part, self.path)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint) -> None:
        checkpoint["settings"] = self.settings
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint) -> None:
        torch.set_rng_state(checkpoint["random"])
