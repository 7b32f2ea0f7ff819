"""What a module with memory knows of the chunk that `snnkernels.checkpoint_time` runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass
class Chunk:
    """The part of a sequence that one module runs, and what it hands from part to part.

    Attributes:
        first: how many steps of the sequence came before.
        start: state that the part begins with, or None for zero. Carries a gradient.
        end: state after it; None until the module has run.
        drawn: random numbers that hold for the whole sequence, drawn in the first part.
        penalty: of a regulariser, the mean over the part.
        repeated: whether a backward pass runs the part again.
    """

    first: int = 0
    start: NamedTuple | None = None
    end: NamedTuple | None = None
    drawn: Tensor | None = None
    penalty: Tensor | None = None
    repeated: bool = False

    def begin(self, name: str) -> NamedTuple | None:
        """The state to start from, which a chunk has once.

        Args:
            name: of the layer that asks, for the error.
        """
        if self.end is not None and not self.repeated:
            raise RuntimeError(
                f"checkpoint_time carries one state of {name} from chunk to chunk, but it runs "
                "more than once in a chunk: use a layer of its own for each place, and no loop "
                "over step()"
            )
        return self.start


class InChunks:
    """A module whose output depends on earlier steps, or on which steps of a sequence it sees.

    A module that cannot be run in chunks has an attribute ``needs_all_steps`` that says why.
    """

    _chunk: Chunk | None = None  # while checkpoint_time runs

    @property
    def _steps_before(self) -> int:
        """Steps of the sequence before those that the module is called with."""
        return 0 if self._chunk is None else self._chunk.first

    def _state_before(self) -> NamedTuple | None:
        """The state that a sequence starts from."""
        return None

    def _leave(self, state: NamedTuple | None, penalty: Tensor | None) -> None:
        """Keep what a run of a whole sequence leaves."""
