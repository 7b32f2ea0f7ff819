"""Modules whose class was swapped for one that runs over time in one pass.

Only the class changes: the object, its parameters, buffers, hooks, state and the keys of its
state_dict are what they were.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from snnkernels.convert.report import Entry

if TYPE_CHECKING:
    from snnkernels.convert.adapter import Adapter

LINK = "_snnkernels"  # the attribute of a fused module that holds its Link


class Kept(Exception):
    """A call stays with the library's own code; the message says why, without a capital."""


@dataclass
class Link:
    """What a fused module knows of `snnkernels.accelerate`.

    Attributes:
        adapter: of its class.
        entry: its line of the report.
        backend: as the user named it.
        allow_fp32_state: whether half-precision input runs with states in float32.
    """

    adapter: Adapter
    entry: Entry
    backend: str
    allow_fp32_state: bool


def link(module: nn.Module) -> Link | None:
    """The link of a module that runs fused; None for any other."""
    return vars(module).get(LINK)


def attach(module: nn.Module, new: Link) -> None:
    """Link a module that a network of `run_over_time` runs; its class stays as it is."""
    vars(module)[LINK] = new


def answer(module: nn.Module, library: Callable, *args, **kwargs):
    """What a linked module gives for all time steps, by ``library`` where it cannot run fused."""
    here = link(module)
    counted = not torch.compiler.is_compiling()
    try:
        found = here.adapter.call(module, *args, **kwargs)
    except Kept as reason:
        if counted:
            here.entry.kept[str(reason)] += 1
        return library(*args, **kwargs)
    if counted:
        here.entry.fused += 1
    return found


def original_class(module: nn.Module) -> type:
    """The library's class of a module, fused or not."""
    return type(module).__bases__[1] if isinstance(module, _Fused) else type(module)


def fuse_class(module: nn.Module, new: Link) -> None:
    """Swap the class of a module."""
    vars(module)[LINK] = new
    module.__class__ = _fused_class(type(module), new.adapter.over_time)


def restore_class(module: nn.Module) -> Link | None:
    """Give a fused module its own class back; returns its link."""
    if not isinstance(module, _Fused):
        return None
    module.__class__ = original_class(module)
    return vars(module).pop(LINK, None)


class _Fused:
    """First base of every class of fused modules."""

    def __reduce_ex__(self, protocol):
        made, arguments, *rest = super().__reduce_ex__(protocol)
        if made is not copyreg.__newobj__:
            return made, arguments, *rest
        return _made_anew, (original_class(self), self._over_time, *arguments[1:]), *rest


def _made_anew(kind: type, over_time: str, *arguments) -> nn.Module:
    new = kind.__new__(kind, *arguments)
    new.__class__ = _fused_class(kind, over_time)
    return new


@cache  # as many as there are classes of neurons
def _fused_class(kind: type, over_time: str) -> type:
    def call(self, *args, **kwargs):
        library = getattr(super(fused, self), over_time)
        if link(self) is None:  # a copy that its library made in its own way
            return library(*args, **kwargs)
        return answer(self, library, *args, **kwargs)

    members = {over_time: call, "_over_time": over_time}
    members |= {"__module__": kind.__module__, "__doc__": kind.__doc__}
    if hasattr(kind, "__deepcopy__"):

        def copy(self, memo):
            new = super(fused, self).__deepcopy__(memo)
            vars(new)[LINK] = deepcopy(link(self), memo)
            return new

        members["__deepcopy__"] = copy
    fused = type(f"Fused{kind.__name__}", (_Fused, kind), members)
    return fused
