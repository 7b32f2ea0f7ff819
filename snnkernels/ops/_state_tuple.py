"""The state of a fused neuron: a named tuple with the names that the step gives its states."""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache


class _Detach:
    __slots__ = ()

    def detach(self):
        """The same values, cut from the graph (truncated back-propagation through time)."""
        return self._make(part.detach() for part in self)

    def __reduce__(self):
        return _rebuild, (self._fields, tuple(self))


@lru_cache(maxsize=256)
def state_type(names: tuple[str, ...]) -> type:
    """The class of a state with these parts."""
    return type("State", (_Detach, namedtuple("State", names)), {"__slots__": ()})


def _rebuild(names: tuple[str, ...], parts: tuple) -> tuple:
    return state_type(names)(*parts)
