"""Train a network by a recipe: ``python -m snnkernels fit --config recipe.yaml``.

Every option may stand in the recipe or on the command line, which wins; ``--help`` lists them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

PASS_ON = True  # words that argparse does not know are for the parser below


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None here: types and docstrings of the training classes say them all."""


def run(args: argparse.Namespace) -> int:
    """Build what the recipe names, and train it."""
    try:
        from jsonargparse import ArgumentParser

        from snnkernels.train.callbacks import OtherRunError, finish
        from snnkernels.train.module import InMemoryData, SpikingClassifier, fit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"training needs more than torch ({error}): pip install 'snnkernels[train]'"
        ) from error
    parser = ArgumentParser(prog="python -m snnkernels fit", description=__doc__)
    parser.add_argument("--config", action="config", help="a recipe, as YAML")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_class_arguments(SpikingClassifier, "module")
    parser.add_class_arguments(InMemoryData, "data")
    parser.add_function_arguments(fit, skip={"module", "data", "settings", "show", "callbacks"})
    recipe = parser.parse_args(args.rest)
    apart = {"config", "directory", "fresh"}
    settings = {k: str(v) for k, v in vars(recipe.as_flat()).items() if k not in apart}
    torch.manual_seed(recipe.seed)
    made = parser.instantiate(recipe)
    try:
        history, complete = fit(
            made.module,
            made.data,
            directory=made.directory,
            epochs=made.epochs,
            fresh=made.fresh,
            settings=settings,
        )
    except OtherRunError as error:
        print(error, file=sys.stderr)
        return 1
    if not complete:
        print(f"Stopped after {len(history.steps)} steps. The same command goes on from there.")
        return 130
    print(f"{history.epochs[-1]['val_accuracy']:.1%} of the test samples are right.")
    print(f"Weights: {finish(Path(made.directory))}")
    return 0
