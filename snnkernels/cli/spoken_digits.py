"""The command ``spoken-digits``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from snnkernels.cli import _series
from snnkernels.train.data.series import NAMES, spoken_digits

HELP = """Tell ten spoken digits apart, with trained or fixed synapse filters or an LSTM.

The recordings are yours: a folder of files DIGIT_SPEAKER_INDEX.wav, as in the Free Spoken Digit
Dataset. ``--study`` trains all three networks with three seeds. Ctrl-C stops; the same command goes
on from there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The recipe's options."""
    parser.add_argument("folder", type=Path, help=f"of recordings {NAMES}")
    _series.add_arguments(parser, out="runs/spoken-digits", epochs=15, batch=64)


def run(args: argparse.Namespace) -> int:
    """Train and show."""
    load = partial(spoken_digits, args.folder)
    return _series.run(args, "Spoken digits", load, {"folder": str(args.folder.resolve())}, {})
