"""Several processes that train one network, see ``lightning.Trainer(strategy="ddp")``."""

from __future__ import annotations

import os
from typing import TypeVar

import lightning as L
from torch import distributed

T = TypeVar("T")


def rank() -> int:
    """Which of the processes this is; known before they have met."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))


def meet() -> None:
    """Wait until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


def gathered(trainer: L.Trainer, own: T) -> list[T]:
    """What every process has, in order; all of them must call this."""
    if trainer.world_size == 1:
        return [own]
    everyone: list = [None] * trainer.world_size
    distributed.all_gather_object(everyone, own)
    return everyone


def own_part(trainer: L.Trainer, everyone: list[T]) -> T:
    """This process's part of what `gathered` gave.

    Raises:
        ValueError: there were fewer processes then.
    """
    if trainer.global_rank >= len(everyone):
        raise ValueError(
            f"a run of {len(everyone)} processes must be taken up by as many; "
            f"got {trainer.world_size}"
        )
    return everyone[trainer.global_rank]
