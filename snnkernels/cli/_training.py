"""What the commands that follow a recipe share: their options, and mistakes in one line."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields

from snnkernels.cli._options import CommandError, needs

HOW = """Every key may stand in the recipe or on the command line, which wins, as in
  --config recipe.yaml --epochs 3 --network.steps 5 --optimizer.lr 1e-3
A part is a name with options, in YAML {name: sgd, lr: 0.1}; wrong options are answered with those
that there are. The names, beside classes of one's own as package.module.Name:
"""


def parse(command: str, about: str, words: list[str], add: Callable | None = None):
    """Read the recipe and the other options of a command.

    Args:
        command: its name.
        about: what it does.
        words: of the command line.
        add: adds options of the command's own to the parser. Default: None.

    Returns:
        The `snnkernels.train.recipe.Recipe`, and the command's own options.

    Raises:
        CommandError: a word or a key of the recipe that is not known or not allowed.
    """
    with needs("train"):
        import jsonargparse

        from snnkernels.train.recipe import Recipe

    class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Leaves the lines of the description as they are."""

    parser = jsonargparse.ArgumentParser(
        prog=f"python -m snnkernels {command}",
        description=f"{about}\n{HOW}{_names()}",
        formatter_class=Formatter,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a recipe, as YAML")
    if add is not None:
        add(parser)
    parser.add_class_arguments(Recipe)
    with mistakes(words):
        options = parser.parse_args(words)
        made = parser.instantiate(options)
        keys = [field.name for field in fields(Recipe)]
        return Recipe(**{key: made.pop(key) for key in keys}), made


@contextmanager
def mistakes(words: list[str]) -> Iterator[None]:
    """Say what is wrong with a recipe together with the words of the command line."""
    with needs("train"):
        from snnkernels.train.data.samples import DataError
        from snnkernels.train.parts import RecipeError
    try:
        yield
    except DataError as error:
        raise CommandError(str(error)) from error
    except (argparse.ArgumentError, RecipeError) as error:
        said = " ".join(words) or "without a word"
        raise CommandError(f"{said}: {error}", status=2) from error


def _names() -> str:
    """The names that each part of a recipe takes, a paragraph of lines for each."""
    from snnkernels import models
    from snnkernels.train import recipe

    names = {
        "network": (*models.names(), "a string of layers such as 64C3-P2-256-10"),
        "data": recipe.DATASETS,
        "transforms": recipe.TRANSFORMS,
        "code": recipe.CODES,
        "loss": recipe.LOSSES,
        "optimizer": recipe.OPTIMIZERS,
        "schedule": recipe.SCHEDULES,
    }
    return "\n".join(
        textwrap.fill(f"  {part}: {', '.join(known)}", 78, subsequent_indent="    ")
        for part, known in names.items()
    )
