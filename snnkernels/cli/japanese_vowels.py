"""The command ``japanese-vowels``."""

from __future__ import annotations

import argparse

from snnkernels.cli import _series
from snnkernels.train.data.series import japanese_vowels

HELP = """Tell nine speakers by two Japanese vowels, with trained or fixed filters or an LSTM.

The series come with the package sktime. ``--study`` trains all three networks with three seeds.
Ctrl-C stops; the same command goes on from there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's options."""
    _series.add_arguments(parser, out="runs/japanese-vowels", epochs=30, batch=32)


def run(args: argparse.Namespace) -> int:
    """Train and show."""
    return _series.run(args, "Japanese Vowels", japanese_vowels, {}, {"hold": 4})
