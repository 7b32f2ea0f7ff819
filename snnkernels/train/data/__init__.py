"""Data sets by name, and what they are made of.

A set is a `Dataset` of samples in memory, or read when they are asked for. Sets of files are read
from a folder in their official formats: what is not there is named, with where to get it, and
nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

from snnkernels.train.data.events import event_recordings
from snnkernels.train.data.frames import frame_folder
from snnkernels.train.data.images import IMAGES, handwritten_digits
from snnkernels.train.data.saccades import simulated_saccades
from snnkernels.train.data.samples import (
    SPLIT_SEED,
    Dataset,
    Lazy,
    Samples,
    hold_out,
    limited,
    split,
)
from snnkernels.train.data.sequences import synthetic_sequences
from snnkernels.train.data.series import auslan, japanese_vowels, pad, spoken_digits, tidigits

__all__ = [
    "DATASETS",
    "SPLIT_SEED",
    "Dataset",
    "Lazy",
    "Samples",
    "handwritten_digits",
    "hold_out",
    "japanese_vowels",
    "limited",
    "pad",
    "split",
    "spoken_digits",
]

DATASETS: dict[str, Callable[..., Dataset]] = IMAGES | {
    function.__name__: function
    for function in (
        synthetic_sequences,
        simulated_saccades,
        event_recordings,
        frame_folder,
        japanese_vowels,
        spoken_digits,
        tidigits,
        auslan,
    )
}
