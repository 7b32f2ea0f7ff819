"""What the commands share: a parser, types of options, and mistakes that are said in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from snnkernels.backends import available_backends

MOST_SEED = 2**63 - 1  # of PyTorch's generators


class CommandError(Exception):
    """What keeps a command from its work; it is said in one line.

    Args:
        message: names the file or option.
        status: with which the process ends. Default: 1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class WrongValueError(argparse.ArgumentTypeError, ValueError):
    """A value that an option does not take: argparse knows the one base, jsonargparse the other."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says a mistake in one line and ends with status 2."""

    def error(self, message: str) -> None:
        """Name the option, its value and what is allowed, without the usage of all options."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def whole(least: int = 1, most: int | None = None) -> Callable[[str | int], int]:
    """The type of an option that takes a whole number.

    Args:
        least: the smallest that is allowed. Default: 1.
        most: the largest, or None. Default: None.
    """
    allowed = f">= {least}" if most is None else f"from {least} to {most}"

    def parse(text: str | int) -> int:
        try:
            number = int(str(text))
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise WrongValueError(f"must be a whole number {allowed}; got {text!r}")
        return number

    return parse


def positive(text: str) -> float:
    """The type of an option that takes a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise WrongValueError(f"must be a number > 0; got {text!r}")
    return number


def add_run_options(parser: argparse.ArgumentParser, *, out: str, epochs: int, seed: str) -> None:
    """The options of every training.

    Args:
        parser: of the command.
        out: default of the folder of the results.
        epochs: default of the passes over the training samples.
        seed: what the seed is of.
    """
    backends = list(available_backends("cpu"))
    if torch.cuda.is_available():
        backends += [name for name in available_backends("cuda") if name not in backends]
    parser.add_argument(
        "--out", type=Path, default=Path(out), help=f"folder of the results (default {out})"
    )
    parser.add_argument(
        "--epochs", type=whole(), default=epochs, help=f"passes over the data (default {epochs})"
    )
    parser.add_argument(
        "--seed", type=whole(0, MOST_SEED), default=0, help=f"of {seed} (default 0)"
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=["auto", *backends],
        help="of neurons and filters while training (default auto)",
    )
    parser.add_argument("--fresh", action="store_true", help="drop what is there, start anew")


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: name the extra of snnkernels that brings what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"needs more than torch ({error}): pip install 'snnkernels[{extra}]'"
        ) from error
