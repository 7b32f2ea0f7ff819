"""The command ``fit``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from snnkernels.cli import _training
from snnkernels.cli._options import MOST_SEED, whole
from snnkernels.core.files import write_whole

HELP = """Train a network by a recipe and test it: ``python -m snnkernels fit --config RECIPE``.

Ctrl-C stops; the same command goes on from there. A run that is complete is read, not repeated.
"""
PASS_ON = True  # words that argparse does not know are for the parser of the recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Leave the parser as it is: the types of the recipe say all options."""


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """The options of a command that trains."""
    parser.add_argument(
        "--seeds",
        type=whole(0, MOST_SEED),
        nargs="+",
        default=[0],
        help="of the weights and of the order of the samples; several are a study, each in a "
        "folder of its own (default: 0)",
    )
    parser.add_argument("--fresh", action="store_true", help="drop what is there, start anew")


def run(args: argparse.Namespace) -> int:
    """Train and test once for each seed; print what came out."""
    recipe, options = _training.parse("fit", HELP, args.rest, add_seeds)
    from snnkernels.train.processes import rank
    from snnkernels.train.recipe import run as train

    results = {}
    for seed in options.seeds:
        one = recipe
        if len(options.seeds) > 1:
            one = replace(recipe, directory=str(Path(recipe.directory) / f"seed-{seed}"))
        if rank() == 0:
            print(f"{recipe.network['name']}, seed {seed}, in {one.directory}")
        with _training.mistakes(args.rest):
            result = train(one, seed=seed, fresh=options.fresh)
        if result is None:
            return 130
        results[seed] = result
    if rank() == 0:
        table = _table(results)
        print(f"\n{table}")
        write_whole(Path(recipe.directory) / "study.md", f"{table}\n".encode())
    return 0


def _table(results: dict[int, dict]) -> str:
    """Accuracies in per cent, as Markdown: a row for each seed, and mean ± standard deviation."""
    rows = {
        f"seed {seed}": [
            100 * result["epochs"][-1]["val_accuracy"],
            100 * max(epoch["val_accuracy"] for epoch in result["epochs"]),
            100 * result["test"]["test_accuracy"],
        ]
        for seed, result in results.items()
    }
    lines = [
        "| | validation, last epoch (%) | validation, best epoch (%) | test (%) |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} |" for name, values in rows.items()
    ]
    if len(rows) > 1:
        spread = [f"{mean(c):.2f} ± {stdev(c):.2f}" for c in zip(*rows.values(), strict=True)]
        lines.append(f"| mean ± deviation | {' | '.join(spread)} |")
    return "\n".join(lines)
