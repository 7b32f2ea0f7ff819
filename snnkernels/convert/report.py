"""What `snnkernels.accelerate` did with each neuron of a network, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Entry:
    """One neuron module of a network.

    Attributes:
        name: of the module in the network.
        kind: name of its class, before the swap.
        library: that it is from.
        version: of the library.
        options: the arguments of its constructor, as they were when it was accelerated.
        numerics: "same bits" or "within 2 ulp: ..." of spikes and states against the library's own
            code, where it runs fused; None where it is kept.
        reason: why the module is kept as it is; None where it runs fused.
        fused: calls that ran fused.
        kept: calls that a fused module left to the library's own code, by reason.
    """

    name: str
    kind: str
    library: str
    version: str
    options: dict[str, object] = field(default_factory=dict)
    numerics: str | None = None
    reason: str | None = None
    fused: int = 0
    kept: Counter[str] = field(default_factory=Counter)

    @property
    def how(self) -> str:
        """How the module runs, in words."""
        return self.numerics if self.reason is None else f"kept: {self.reason}"

    def lines(self) -> list[str]:
        """The entry as `Report` prints it."""
        options = ", ".join(f"{name}={_shown(value)}" for name, value in self.options.items())
        lines = [f"{self.name or '(the model)'}  {self.kind}({options})", f"    {self.how}"]
        if self.reason is None and (self.fused or self.kept):
            lines[1] += f"; calls fused: {self.fused}, kept: {self.kept.total()}"
        return [*lines, *(f"    kept {n} x: {why}" for why, n in self.kept.items())]


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():.6g}" if value.numel() == 1 else f"tensor {list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return "(" + ", ".join(f"{k}={_shown(v)}" for k, v in value._asdict().items()) + ")"
    if hasattr(value, "__qualname__"):
        return value.__qualname__.partition(".<locals>")[0]
    return str(value)


class Report:
    """What became of a network's neurons: a sequence of `Entry`, readable when printed.

    The counts of calls go on while the network runs.

    Attributes:
        entries: one for each neuron module, in the network's order.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str | int) -> Entry:
        """The entry of a module by its name in the network, or by its number."""
        if isinstance(name, int):
            return self.entries[name]
        found = {entry.name: entry for entry in self.entries}
        if name not in found:
            raise KeyError(f"no neuron {name!r}; the network has {', '.join(found)}")
        return found[name]

    def __str__(self) -> str:
        fused = sum(entry.reason is None for entry in self.entries)
        libraries = sorted({f"{entry.library} {entry.version}" for entry in self.entries})
        head = f"{fused} of {len(self)} neuron modules run fused ({', '.join(libraries)})"
        lines = [line for entry in self.entries for line in entry.lines()]
        return "\n".join([head, *(f"  {line}" for line in lines)])

    __repr__ = __str__
