"""Checks of arguments: the error names the argument, what came and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(name: str, value: object, choices: Sequence) -> None:
    """Raise a ValueError that names the argument, the value and the choices."""
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {allowed}; got {value!r}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise a ValueError unless ``value`` is a whole number of at least ``least``."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")


def check_size(value: object, multiple: int, least: int = 1) -> None:
    """Raise a ValueError unless ``size`` suits a network that pools it by ``multiple``."""
    check_whole("size", value, max(least, multiple))
    if value % multiple:
        raise ValueError(f"size must be a multiple of {multiple} pixels; got {value}")
