"""The parts of a recipe: a name and options, made into what they name."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any


class RecipeError(ValueError):
    """A part of a recipe that is not known, or an option of it that is not allowed."""


def make(
    kind: str,
    table: Mapping[str, Callable],
    part: str | Mapping[str, Any],
    *,
    later: Sequence[str] = (),
    **given: Any,
) -> Any:
    """Make a part of a recipe.

    Args:
        kind: what it is, for errors: "network", "loss" ...
        table: the names that are known. A name with a dot in it is taken for a class or function of
            another package, such as "my_package.MyNet".
        part: ``{"name": ..., option: value, ...}``, or the name alone.
        later: parameters that are given when the result is called, such as "params" of an
            optimizer: the result is then a `functools.partial`.
        **given: values of parameters that the recipe does not set; those that the named thing does
            not have are left out.

    Returns:
        What the name stands for, called with the options.

    Raises:
        RecipeError: an unknown name or option, an option of the wrong type, or a missing one.
    """
    options = {"name": part} if isinstance(part, str) else dict(part)
    if "name" not in options:
        raise RecipeError(f"{kind} must have a name, one of {', '.join(table)}; got {part!r}")
    name = options.pop("name")
    return call(f"{kind} {name}", find(kind, table, name), options, later=later, **given)


def find(kind: str, table: Mapping[str, Callable], name: str) -> Callable:
    """What a name stands for.

    Raises:
        RecipeError: nothing is known by that name.
    """
    if name in table:
        return table[name]
    module, _, attribute = str(name).rpartition(".")
    problem = ""
    if module:
        try:
            return getattr(import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError) as error:
            problem = f" ({error})"
    raise RecipeError(
        f"{kind} must be one of {', '.join(table)}, or package.module.Name; got {name!r}{problem}"
    )


def call(
    where: str,
    function: Callable,
    options: Mapping[str, Any],
    *,
    later: Sequence[str] = (),
    **given: Any,
) -> Any:
    """Call a function or class with the options of a recipe, each checked against its type.

    Args:
        where: what it is, for errors.
        function: to be called.
        options: of the recipe. An option that takes an object of a class is written
            ``{class_path: package.Class, init_args: {...}}``.
        later: as in `make`.
        **given: as in `make`.

    Raises:
        RecipeError: an unknown or missing option, or one of the wrong type.
    """
    import jsonargparse

    parameters = inspect.signature(function).parameters
    given = {name: value for name, value in given.items() if name in parameters}
    skip = {*given, *later}
    allowed = [name for name in parameters if name not in skip]
    for option in options:
        if option not in allowed:
            raise RecipeError(
                f"{where} has no option {option!r}; its options: {', '.join(allowed) or 'none'}"
            )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    is_class = inspect.isclass(function)
    add = parser.add_class_arguments if is_class else parser.add_function_arguments
    add(function, skip=skip, fail_untyped=False)
    try:
        parsed = parser.instantiate(parser.parse_object(dict(options)))
    except (ArgumentError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from error
    # Defaults stay the function's own: those that are objects do not come whole out of the parser.
    made = partial(function, **{name: parsed[name] for name in options}, **given)
    if later:
        return made
    try:
        return made()
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error
