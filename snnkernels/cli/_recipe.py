"""What the recipes' commands share: a training that is done once, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from snnkernels.train import runs


def train(
    module,
    data,
    directory: Path,
    *,
    epochs: int,
    settings: dict,
    fresh: bool = False,
    callbacks: Sequence = (),
) -> dict | None:
    """Train, go on with what was stopped, or read what is complete; ``module`` has its weights.

    Args:
        module: a `snnkernels.train.module.SpikingClassifier`.
        data: a `snnkernels.train.batches.InMemoryData`.
        directory: of the checkpoints and ``result.json``.
        epochs: passes over the training samples.
        settings: all that makes this run another one, as JSON knows it.
        fresh: start anew, whatever lies in the directory. Default: False.
        callbacks: of Lightning. Default: none.

    Returns:
        settings, steps (the loss of each) and epochs (the measures of each), as in
        ``result.json``; None where Ctrl-C stopped the training.

    Raises:
        OSError: a file cannot be read or written.
        RunError: the directory holds a damaged file, or a run with other settings.
    """
    from snnkernels.train.module import fit

    path = directory / runs.RESULT
    if fresh:
        path.unlink(missing_ok=True)
    if not path.exists():
        history, complete = fit(
            module,
            data,
            directory=directory,
            epochs=epochs,
            settings=settings,
            fresh=fresh,
            callbacks=callbacks,
        )
        if not complete:
            return None
        result = {"settings": {"epochs": epochs, **settings}}
        result |= {"threads": torch.get_num_threads()}
        runs.write_json(path, result | {"steps": history.steps, "epochs": history.epochs})
    result = runs.load_result(path)
    runs.check_settings(path, result["settings"], {"epochs": epochs, **settings})
    if (directory / runs.LAST).exists():
        runs.finish(directory)
    checkpoint = runs.load_checkpoint(directory / runs.FINISHED, module)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    return result
