"""A plug-in of pytest that accelerates the neurons of another library in its own tests.

``make peer-tests DIR=...`` runs a checkout's tests without it and with it. Every neuron module is
swapped when it is first called, as `snnkernels.accelerate` swaps those of a network; what it says
at the end is how many calls ran fused, and why others did not.
"""

from __future__ import annotations

from collections import Counter

from torch import nn

from snnkernels.convert.fused import Link, fuse_class, link
from snnkernels.convert.report import Entry
from snnkernels.convert.swap import examine

_entries: list[Entry] = []
_kept: Counter[str] = Counter()  # calls of modules that cannot run fused


def _fuse(module: nn.Module) -> None:
    examined = None if link(module) else examine(type(module).__name__, module)
    if examined is None:
        return
    entry, adapter = examined
    if entry.reason is None and adapter.one_step:
        entry.reason = "one step"
    if entry.reason is not None:
        _kept[f"{entry.kind}: {entry.reason}"] += 1
        return
    fuse_class(module, Link(adapter, entry, "auto", False))
    _entries.append(entry)


def pytest_configure() -> None:
    """Look at each module when it is called."""
    library = nn.Module.__call__

    def call(self, *args, **kwargs):
        _fuse(self)
        return library(self, *args, **kwargs)

    nn.Module.__call__ = call


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what ran fused."""
    kept = sum((entry.kept for entry in _entries), Counter())
    fused = sum(entry.fused for entry in _entries)
    write = terminalreporter.write_line
    write(f"snnkernels: {fused} calls of neurons fused, {(kept + _kept).total()} kept")
    for reason, count in (kept + _kept).most_common():
        write(f"  {count} x {reason[:160]}")
