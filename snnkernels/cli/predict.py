"""The command ``predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from snnkernels.cli import _measure
from snnkernels.core.files import write_whole

HELP = """Write a trained network's answer to every test sample: ``--config RECIPE`` as for ``fit``.

``predictions.csv`` in the recipe's directory has the label, the answer and the score of each class.
"""
PASS_ON = True  # words that argparse does not know are for the parser of the recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Leave the parser as it is: the types of the recipe say all options."""


def run(args: argparse.Namespace) -> int:
    """Compute the scores and write them."""
    recipe, module, data, trainer = _measure.trained("predict", HELP, args.rest)
    from snnkernels.train.fit import quiet

    with quiet():
        labels, scores = (
            torch.cat(part) for part in zip(*trainer.predict(module, data), strict=True)
        )
    lines = [",".join(["label", "answer", *(f"score_{k}" for k in range(scores.shape[1]))])]
    for label, row in zip(labels.tolist(), scores, strict=True):
        lines.append(",".join([str(label), str(int(row.argmax())), *map(str, row.tolist())]))
    path = Path(recipe.directory) / "predictions.csv"
    write_whole(path, ("\n".join(lines) + "\n").encode())
    print(f"{len(labels):,} answers in {path}")
    return 0
