"""The command ``fit``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from snnkernels.cli._options import MOST_SEED, CommandError, needs, whole
from snnkernels.train.runs import finish

HELP = """Train a network by a recipe: ``python -m snnkernels fit --config recipe.yaml``.

Every option may stand in the recipe or on the command line, which wins; ``--help`` lists them.
"""
PASS_ON = True  # words that argparse does not know are for the parser below


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Leave the parser as it is: the types of the training classes say all options."""


def run(args: argparse.Namespace) -> int:
    """Build what the recipe names, and train it."""
    with needs("train"):
        import jsonargparse

        from snnkernels.train.batches import InMemoryData
        from snnkernels.train.module import SpikingClassifier, fit
    parser = jsonargparse.ArgumentParser(
        prog="python -m snnkernels fit", description=HELP, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="a recipe, as YAML")
    parser.add_argument(
        "--seed", type=whole(0, MOST_SEED), default=0, help="of the weights (default: 0)"
    )
    parser.add_argument(
        "--epochs", type=whole(), required=True, help="passes over the training samples"
    )
    parser.add_class_arguments(SpikingClassifier, "module")
    parser.add_class_arguments(InMemoryData, "data")
    given = {"module", "data", "epochs", "settings", "show", "callbacks"}
    parser.add_function_arguments(fit, skip=given)
    words = " ".join(args.rest) or "without a word"
    try:
        recipe = parser.parse_args(args.rest)
    except argparse.ArgumentError as error:
        raise CommandError(f"{words}: {error}", status=2) from error
    apart = {"config", "directory", "fresh"}
    settings = {k: str(v) for k, v in vars(recipe.as_flat()).items() if k not in apart}
    torch.manual_seed(recipe.seed)
    try:
        made = parser.instantiate(recipe)
        made.module.optimizer(made.module.parameter_groups())  # its options, before any work
    except (TypeError, ValueError, RuntimeError) as error:
        raise CommandError(f"{words}: {error}", status=2) from error
    history, complete = fit(
        made.module,
        made.data,
        directory=made.directory,
        epochs=made.epochs,
        fresh=made.fresh,
        settings=settings,
    )
    if not complete:
        return 130
    print(f"{history.epochs[-1]['val_accuracy']:.1%} of the test samples are right.")
    print(f"Weights: {finish(Path(made.directory))}")
    return 0
