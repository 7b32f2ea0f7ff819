"""The command ``search``."""

from __future__ import annotations

import argparse
from statistics import mean, stdev
from typing import Any

from snnkernels.cli import _training
from snnkernels.cli._options import MOST_SEED, needs, whole

HELP = """Search for settings of a recipe (TPE and Hyperband): ``search --config RECIPE``.

The recipe says in ``space`` what is searched, as in
  space: {network.decay: {low: 0.8, high: 1.0}, optimizer.lr: {low: 1e-3, high: 0.1, log: true}}
Ctrl-C stops; the same command goes on from there, and with more ``--trials`` further.
"""
PASS_ON = True  # words that argparse does not know are for the parser of the recipe
BEST = 6  # trials, of which mean and deviation are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Leave the parser as it is: the types of the recipe say all options."""


def add_space(parser: argparse.ArgumentParser) -> None:
    """The options of a search."""
    parser.add_argument(
        "--space", type=dict[str, dict[str, Any]], default={}, help="what is searched, see above"
    )
    parser.add_argument(
        "--trials", type=whole(), default=30, help="how many are made in all (default: 30)"
    )
    parser.add_argument(
        "--seed", type=whole(0, MOST_SEED), default=0, help="of trials and weights (default: 0)"
    )
    parser.add_argument("--fresh", action="store_true", help="drop what is there, start anew")


def run(args: argparse.Namespace) -> int:
    """Search; print the best trials."""
    recipe, options = _training.parse("search", HELP, args.rest, add_space)
    with needs("search"):
        from snnkernels.train.search import DATABASE, TABLE, search
    with _training.mistakes(args.rest):
        study = search(
            recipe, options.space, trials=options.trials, seed=options.seed, fresh=options.fresh
        )
    if study is None:
        return 130
    done = sorted(
        (
            trial
            for trial in study.trials
            if trial.value is not None and trial.state.name != "PRUNED"
        ),
        key=lambda trial: -trial.value,
    )[:BEST]
    if not done:
        print("No trial reached its last epoch.")
        return 0
    print(f"\nBest of {len(study.trials)} trials: validation {done[0].value:.2%} with")
    print("  " + " ".join(f"--{key} {value}" for key, value in done[0].params.items()))
    for key in done[0].params if len(done) > 1 else ():
        values = [trial.params[key] for trial in done]
        if not isinstance(values[0], str):
            print(f"  the best {len(done)}: {key} {mean(values):.4g} ± {stdev(values):.2g}")
    print(f"All trials: {TABLE} and {DATABASE} in {recipe.directory}")
    return 0
