"""Checks of arguments: the error names the argument, what came and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Raise a ValueError that names the argument, the value and the choices."""
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {allowed}; got {value!r}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise a ValueError unless ``value`` is a whole number of at least ``least``."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")


def check_wholes(**values: object) -> None:
    """Raise a ValueError unless every value is a whole number >= 1."""
    for name, value in values.items():
        check_whole(name, value)


def check_positive(**values: object) -> None:
    """Raise a ValueError unless every value is a number > 0."""
    for name, value in values.items():
        if not is_number(value) or not value > 0:
            raise ValueError(f"{name} must be a number > 0; got {value!r}")


def check_share(**values: object) -> None:
    """Raise a ValueError unless every value is a number in [0, 1)."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a number in [0, 1); got {value!r}")


def check_size(value: object, multiple: int, least: int = 1) -> None:
    """Raise a ValueError unless ``size`` suits a network that pools it by ``multiple``."""
    check_whole("size", value, max(least, multiple))
    if value % multiple:
        raise ValueError(f"size must be a multiple of {multiple} pixels; got {value}")


def is_number(value: object) -> bool:
    """Whether a value is a real number, of Python or of numpy, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)
