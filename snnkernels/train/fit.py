"""A training from its start, or from where it was stopped, to its end.

Needs ``pip install 'snnkernels[train]'``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from snnkernels.core.checks import check_whole
from snnkernels.core.files import check_folder
from snnkernels.train import runs
from snnkernels.train.batches import InMemoryData
from snnkernels.train.callbacks import History, ProgressBar, Resumable
from snnkernels.train.module import SpikingClassifier
from snnkernels.train.processes import meet, rank


@dataclass(frozen=True)
class TrainerOptions:
    """How a training runs: options of ``lightning.Trainer``, which says more about each.

    Args:
        accelerator: "auto", "cpu", "gpu" ... Default: "auto".
        devices: number of processes, each with a device of its own. Default: 1.
        strategy: "ddp" trains on several devices; every one gets batches of the recipe's size, and
            the gradients are averaged. Default: "auto".
        precision: "16-mixed" and "bf16-mixed" are automatic mixed precision. Default: "32-true".
        gradient_clip_val: largest norm of all gradients together, or None. Default: None.
        log: what measures are written to besides ``result.json``: "csv" or "tensorboard" files in
            the directory of the run, or None. Default: None.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "64-true"] = "32-true"
    gradient_clip_val: float | None = None
    log: Literal["csv", "tensorboard"] | None = None

    def make(self, directory: Path, **options) -> L.Trainer:
        """A trainer of this library's way: no files and no words that it did not ask for.

        Args:
            directory: of the run.
            **options: more of ``lightning.Trainer``.
        """
        logger = False
        if self.log is not None:
            from lightning.pytorch import loggers

            kind = {"csv": loggers.CSVLogger, "tensorboard": loggers.TensorBoardLogger}[self.log]
            logger = kind(directory, name=self.log)
        return L.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            strategy=self.strategy,
            precision=self.precision,
            gradient_clip_val=self.gradient_clip_val,
            logger=logger,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            plugins=[WholeCheckpoints()],
            **options,
        )


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
    trainer: TrainerOptions | None = None,
) -> tuple[History, bool]:
    """Train, or go on with the run that was stopped in the same directory.

    Args:
        module: what to train; holds the final weights afterwards.
        data: its samples.
        directory: where the checkpoint of an unfinished run lies.
        epochs: number of passes over the training samples.
        settings: all that makes this run another one than a run with other settings; a run is only
            taken up with the settings it began with.
        fresh: start anew, whatever lies in the directory. Default: False.
        show: print progress. Default: True.
        callbacks: more of Lightning's. Default: none.
        trainer: on what it runs. Default: one device, float32.

    Returns:
        The history of the whole run, and whether it is complete: False where Ctrl-C or a callback
        stopped it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed a second time.
        ValueError: epochs < 1.
        OSError: the directory cannot be written, or its disk is full; what was written stays whole.
        OtherRunError: the directory holds an unfinished run with other settings.
        RunError: the checkpoint in the directory is damaged, or of another network.
    """
    check_whole("epochs", epochs)
    directory = Path(directory)
    show = show and rank() == 0
    history = History()
    resumable = Resumable(directory, {"epochs": epochs, **(settings or {})})
    check_folder(directory)
    if fresh and rank() == 0:
        resumable.path.unlink(missing_ok=True)
    found = resumable.found(module)
    if found and show:
        print(f"Taking up the run in {directory}, stopped after {found}; --fresh starts anew.")
    bar = [ProgressBar(history)] if show else []
    with quiet():
        made = (trainer or TrainerOptions()).make(
            directory, max_epochs=epochs, callbacks=[history, *callbacks, resumable, *bar]
        )
        checkpoint = str(resumable.path) if found else None
        try:
            made.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
    complete = len(history.epochs) == epochs
    if show and resumable.stopped and not complete:
        print(f"Stopped after {len(history.steps)} steps. The same command goes on from there.")
    return history, complete


def fit_once(
    module: SpikingClassifier,
    data: InMemoryData,
    *,
    directory: Path,
    epochs: int,
    settings: dict,
    fresh: bool = False,
    **options,
) -> dict | None:
    """Train, go on with what was stopped, or read what is complete; ``module`` has its weights.

    Args:
        module: what to train.
        data: its samples.
        directory: of the checkpoints and ``result.json``.
        epochs: passes over the training samples.
        settings: all that makes this run another one, as JSON knows it.
        fresh: start anew, whatever lies in the directory. Default: False.
        **options: more of `fit`.

    Returns:
        settings, steps (the loss of each) and epochs (the measures of each), as in
        ``result.json``; None where the training was stopped.

    Raises:
        OSError: a file cannot be read or written.
        RunError: the directory holds a damaged file, or a run with other settings.
    """
    path = directory / runs.RESULT
    if fresh and rank() == 0:
        path.unlink(missing_ok=True)
    if not path.exists():
        history, complete = fit(
            module,
            data,
            directory=directory,
            epochs=epochs,
            settings=settings,
            fresh=fresh,
            **options,
        )
        if not complete:
            return None
        result = {"settings": {"epochs": epochs, **settings}}
        result |= {"threads": torch.get_num_threads()}
        if rank() == 0:
            runs.write_json(path, result | {"steps": history.steps, "epochs": history.epochs})
            runs.finish(directory)
        meet()
    result = runs.load_result(path)
    runs.check_settings(path, result["settings"], {"epochs": epochs, **settings})
    if (directory / runs.LAST).exists():
        runs.finish(directory)  # an earlier process came no further
    checkpoint = runs.load_checkpoint(directory / runs.FINISHED, module)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    return result


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
