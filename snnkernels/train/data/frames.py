"""Videos as folders of pictures, such as UCF-101 and HMDB-51 after their frames were extracted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from snnkernels.core.checks import check_wholes
from snnkernels.train.data.images import class_folders, read_picture
from snnkernels.train.data.samples import Dataset, Lazy, Samples


def frame_folder(folder: str | Path, *, steps: int = 10, size: int = 112) -> Dataset:
    """Clips, each a folder of pictures; T of them, evenly spaced, are read when asked for.

    UCF-101 (https://www.crcv.ucf.edu/data/UCF101.php) and HMDB-51
    (https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database) come as videos
    with lists of training and test clips: extract the frames of each clip, in the order of their
    names, to a folder of its own.

    Args:
        folder: holds ``train/CLASS/CLIP/*`` and ``test/CLASS/CLIP/*``, the same classes in both.
        steps: T frames of a clip; a shorter clip repeats some. Default: 10.
        size: pixels of a side; pictures are cut to a square and scaled. Default: 112.

    Returns:
        x uint8 `[N, T, 3, size, size]`, read lazily.

    Raises:
        FileNotFoundError: a folder is not there.
        ValueError: other classes in one part than in the other, or a clip that is no folder
            with frames.
    """
    check_wholes(steps=steps, size=size)
    parts, classes = class_folders(Path(folder))
    for clip in (clip for clips, _ in parts for clip in clips):
        if not clip.is_dir() or not any(clip.iterdir()):
            raise ValueError(f"{clip} must be a folder with the frames of a clip")
    read = partial(read_clip, steps=steps, size=size)
    return Dataset(*(Samples(Lazy(clips, read), y) for clips, y in parts), classes=classes)


def read_clip(clip: Path, steps: int, size: int) -> Tensor:
    """T frames of a clip, evenly spaced, uint8 `[T, 3, size, size]`."""
    paths = sorted(clip.iterdir())
    chosen = ((torch.arange(steps) + 0.5) * len(paths) / steps).long()
    return torch.stack([read_picture(paths[k], size) for k in chosen])
