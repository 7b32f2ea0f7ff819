"""What the recipes' commands share: a training that is done once, and its files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

NEEDS = "the recipe needs more than torch ({}): pip install 'snnkernels[train]'"
RESULT = "result.json"  # of a training that is complete


def add_arguments(parser: argparse.ArgumentParser, *, out: str, epochs: int) -> None:
    """The options of every recipe."""
    parser.add_argument("--out", type=Path, default=Path(out), help=f"results (default {out})")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"default {epochs}")
    parser.add_argument("--backend", default="auto", help="of filters and neurons (default auto)")
    parser.add_argument("--fresh", action="store_true", help="drop what is there, start anew")


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
        data: a `snnkernels.train.module.InMemoryData`.
        directory: of the checkpoints and ``result.json``.
        epochs: passes over the training samples.
        settings: all that makes this run another one, as JSON knows it.
        fresh: start anew, whatever lies in the directory. Default: False.
        callbacks: of Lightning. Default: none.

    Returns:
        settings, steps (the loss of each) and epochs (the measures of each), as in
        ``result.json``; None where Ctrl-C stopped the training.

    Raises:
        OtherRunError: the directory holds a run with other settings.
    """
    from snnkernels.train.callbacks import FINISHED, LAST, OtherRunError, finish
    from snnkernels.train.module import fit

    path = directory / RESULT
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
            print(f"Stopped after {len(history.steps)} steps. The same command goes on from there.")
            return None
        result = {"settings": {"epochs": epochs, **settings}}
        result |= {"threads": torch.get_num_threads()}
        write_json(path, result | {"steps": history.steps, "epochs": history.epochs})
    result = json.loads(path.read_text())
    if result["settings"] != {"epochs": epochs, **settings}:
        raise OtherRunError(
            f"{path} is of a run with {result['settings']}, not {{'epochs': {epochs}, "
            f"{str(settings)[1:]}: choose another --out, or --fresh to lose it"
        )
    if (directory / LAST).exists():
        finish(directory)
    checkpoint = torch.load(directory / FINISHED, weights_only=True, map_location="cpu")
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    return result


def write_json(path: Path, content: dict) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)
