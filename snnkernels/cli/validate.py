"""The command ``validate``."""

from __future__ import annotations

import argparse

from snnkernels.cli import _measure

HELP = (
    """Measure a trained network on its validation samples: ``--config RECIPE`` as for ``fit``."""
)
PASS_ON = True  # words that argparse does not know are for the parser of the recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Leave the parser as it is: the types of the recipe say all options."""


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    return _measure.measure("validate", HELP, args.rest)
