"""A plug-in of pytest that accelerates the neurons of another library in its own tests.

``make peer-tests DIR=...`` runs a checkout's tests without it and with it. Every neuron module is
swapped when it is first called, as `snnkernels.accelerate` swaps those of a network; one that is a
single step of time runs that step fused. What it says at the end is how many calls ran fused, and
why others did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import signature

import torch
from torch import Tensor, nn

from snnkernels.convert.fused import Kept, Link, _Fused, fuse_class, link, original_class
from snnkernels.convert.report import Entry
from snnkernels.convert.swap import examine, original

_EXPORTERS = (
    ("sinabs", "to_nir"),
    ("sinabs.nir", "to_nir"),
    ("spikingjelly.activation_based.nir_exchange", "export_to_nir"),
)
_exported: list[nn.Module] = []  # networks that are just being exported
_entries: list[Entry] = []
_kept: Counter[str] = Counter()  # calls of modules that cannot run fused


def _fuse(module: nn.Module) -> None:
    if torch.compiler.is_compiling() or _exported:  # no class is swapped there
        return
    examined = None if link(module) else examine(type(module).__name__, module)
    if examined is None:
        return
    entry, adapter = examined
    if entry.reason is not None:
        _kept[f"{entry.kind}: {entry.reason}"] += 1
        return
    fuse_class(module, Link(adapter, entry, "auto", False))
    if adapter.one_step:
        module.__class__ = _one_step_class(original_class(module))
    _entries.append(entry)


@cache
def _one_step_class(kind: type) -> type:
    """A class whose single step is a call of one step, as `snnkernels.run_over_time` makes it."""
    stepped = type(kind.__name__, (_Fused, kind), {})

    def forward(self, x, *args, **kwargs):
        library = super(stepped, self).forward
        if hasattr(self, "init_hidden") and not self.init_hidden:  # snnTorch keeps what it is given
            given = dict(zip(signature(library).parameters, (x, *args), strict=False)) | kwargs
            self._buffers.update(
                {k: s for k, s in given.items() if k != "input_" and s is not None}
            )
            args, kwargs = (), {}
        here = link(self)
        try:
            found = here.adapter.call(self, x.unsqueeze(0), *args, **kwargs)
        except Kept as reason:
            here.entry.kept[str(reason)] += 1
            return library(x, *args, **kwargs)
        here.entry.fused += 1
        if isinstance(found, Tensor):
            return found.squeeze(0)
        output, *states = found
        steps = (s.squeeze(0) if isinstance(s, Tensor) else s for s in states)  # Norse's are ends
        return output.squeeze(0), *steps

    stepped.forward = forward
    return stepped


def pytest_configure() -> None:
    """Look at each module when it is called."""
    library = nn.Module.__call__

    def call(self, *args, **kwargs):
        _fuse(self)
        return library(self, *args, **kwargs)

    nn.Module.__call__ = call
    for path, name in _EXPORTERS:
        if find_spec(path.partition(".")[0]) is not None:
            module = import_module(path)
            setattr(module, name, _with_original_classes(getattr(module, name)))


def _with_original_classes(exporter: Callable) -> Callable:
    """An exporter that asks for exact types, called as the pages for users say."""

    @wraps(exporter)
    def call(model: nn.Module, *args, **kwargs):
        _exported.append(model)
        try:
            with original(model):
                return exporter(model, *args, **kwargs)
        finally:
            _exported.pop()

    return call


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what ran fused."""
    kept = sum((entry.kept for entry in _entries), Counter())
    fused = sum(entry.fused for entry in _entries)
    write = terminalreporter.write_line
    write(f"snnkernels: {fused} calls of neurons fused, {(kept + _kept).total()} kept")
    for reason, count in (kept + _kept).most_common():
        write(f"  {count} x {reason[:160]}")
