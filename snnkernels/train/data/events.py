"""Event-camera recordings as frames, read with the package tonic; nothing is downloaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snnkernels.core.checks import check_choice, check_positive, check_whole
from snnkernels.train.data.samples import Dataset, Lazy, Samples, split

SLICES = ("time", "window", "count")
TEST_SHARE = 10  # of a set without test samples: one in so many


class Recordings(NamedTuple):
    """A set of recordings.

    Attributes:
        reader: its class in ``tonic.datasets``.
        pixels: of a side of the sensor.
        classes: number of them.
        files: what the folder must hold.
        source: where it comes from.
        parts: whether training and test recordings come apart.
    """

    reader: str
    pixels: int
    classes: int
    files: str
    source: str
    parts: bool = True


RECORDINGS = {
    "n_mnist": Recordings(
        *("NMNIST", 34, 10, "Train/DIGIT/*.bin and Test/DIGIT/*.bin"),
        "train.zip and test.zip of https://www.garrickorchard.com/datasets/n-mnist",
    ),
    "dvs_gesture": Recordings(
        *("DVSGesture", 128, 11, "ibmGestureTrain/USER/*.npy and ibmGestureTest/USER/*.npy"),
        "the recordings of https://research.ibm.com/interactive/dvsgesture, cut into gestures as "
        "the package tonic provides them",
    ),
    "cifar10_dvs": Recordings(
        *("CIFAR10DVS", 128, 10, "CLASS/*.aedat4"),
        "CIFAR10-DVS (https://doi.org/10.6084/m9.figshare.4724671) as the package tonic provides "
        "it",
        parts=False,
    ),
}


def event_recordings(
    recordings: Literal["n_mnist", "dvs_gesture", "cifar10_dvs"],
    folder: str | Path,
    *,
    steps: int = 10,
    slices: Literal["time", "window", "count"] = "time",
    every: float | None = None,
    size: int | None = None,
) -> Dataset:
    """Recordings of event cameras: N-MNIST, DVS128 Gesture, CIFAR10-DVS.

    The events of a frame are summed. CIFAR10-DVS comes without test recordings: one in ten of each
    class is drawn for them, the same ones always.

    Args:
        recordings: "n_mnist" (Orchard et al. 2015), "dvs_gesture" (Amir et al. 2017) or
            "cifar10_dvs" (Li et al. 2017).
        folder: of the recordings, unpacked. Errors say what it must hold.
        steps: T frames. Default: 10.
        slices: what a frame is. "time": one of T equal parts of the recording's time; "window":
            ``every`` milliseconds; "count": ``every`` events or, with None, one of T equal parts of
            the number of events. What a recording has beyond T frames is left out; what it lacks
            are empty frames. Default: "time".
        every: see ``slices``. Default: None.
        size: pixels of a side: the sensor's, or fewer, which sums the events of neighbours.
            Default: None, the sensor's.

    Returns:
        x int16 `[N, T, 2, size, size]`, numbers of events of negative and of positive polarity,
        read when asked for.

    Raises:
        ModuleNotFoundError: tonic or aedat is not installed.
        FileNotFoundError: the folder holds no recordings.
        ValueError: an argument that is not allowed; when it is read, a recording that is damaged.
    """
    check_choice("recordings", recordings, tuple(RECORDINGS))
    kind = RECORDINGS[recordings]
    size = kind.pixels if size is None else size
    check_whole("steps", steps)
    check_whole("size", size)
    check_choice("slices", slices, SLICES)
    if size > kind.pixels:
        raise ValueError(f"size must be at most the sensor's {kind.pixels}; got {size}")
    if (slices == "time" and every is not None) or (slices == "window" and every is None):
        raise ValueError(
            f"every must be given for slices='window' and may be for 'count'; got {every!r} for "
            f"{slices!r}"
        )
    if every is not None:
        check_positive(every=every)
    to_frames = partial(
        frames, steps=steps, slices=slices, every=every, pixels=kind.pixels, size=size
    )
    if kind.parts:
        parts = (_read(kind, Path(folder), to_frames, train=train) for train in (True, False))
        return Dataset(*parts, classes=kind.classes)
    samples = _read(kind, Path(folder), to_frames)
    return split(samples, test_per_class=int(samples.y.bincount().min()) // TEST_SHARE)


def _read(kind: Recordings, folder: Path, to_frames, **part: bool) -> Samples:
    """The recordings of a part, in the order of their paths."""
    try:
        import aedat  # noqa: F401, by which tonic reads CIFAR10-DVS
        import tonic
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"recordings are read with the packages tonic and aedat, which did not load ({error}); "
            "install it with: pip install 'snnkernels[events]'"
        ) from error
    base = getattr(tonic.datasets, kind.reader)
    # tonic looks in a folder of the class's name, and downloads what it takes for missing.
    reader = type(folder.name, (base,), {"_check_exists": lambda self: True})
    found = reader(str(folder.parent), **part)
    order = sorted(range(len(found)), key=lambda i: found.data[i])
    if not order:
        raise FileNotFoundError(
            f"folder must hold {kind.files}; found none in {folder}. Put there {kind.source}"
        )

    def read(i: int) -> Tensor:
        try:
            events, _ = found[i]
            return to_frames(*(torch.tensor(events[name].astype("int64")) for name in "txyp"))
        except (ValueError, IndexError, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{found.data[i]} is damaged: {error}") from error

    y = torch.tensor([found.targets[i] for i in order])
    if int(y.max()) >= kind.classes or int(y.min()) < 0:
        wrong = next(i for i in order if not 0 <= found.targets[i] < kind.classes)
        raise ValueError(
            f"{found.data[wrong]}: class must be 0 to {kind.classes - 1}; "
            f"got {found.targets[wrong]}"
        )
    return Samples(Lazy(order, read), y)


def frames(
    t: Tensor,
    x: Tensor,
    y: Tensor,
    p: Tensor,
    *,
    steps: int,
    slices: str,
    every: float | None,
    pixels: int,
    size: int,
) -> Tensor:
    """Sum events up.

    Args:
        t: times in microseconds, int64 `[events]`, ascending.
        x: columns.
        y: rows.
        p: polarities, 0 or 1.
        steps: see `event_recordings`, as the others.
        slices: "time", "window" or "count".
        every: milliseconds or events of a frame, or None.
        pixels: of a side of the sensor.
        size: of a side of the frames.

    Returns:
        int16 `[T, 2, size, size]`.

    Raises:
        ValueError: an event beyond the sensor, or times that go back.
    """
    outside = ((x < 0) | (x >= pixels) | (y < 0) | (y >= pixels)).nonzero().flatten()
    if len(outside):
        k = int(outside[0])
        raise ValueError(f"event {k} lies at x={int(x[k])}, y={int(y[k])} of {pixels} pixels")
    back = (t.diff() < 0).nonzero().flatten()
    if len(back):
        raise ValueError(f"time goes back after event {int(back[0])}")
    if slices == "count":
        place = torch.arange(len(t))
        frame = place * steps // max(len(t), 1) if every is None else place // int(every)
    else:
        since = t - t[:1]
        if slices == "window":
            frame = (since / (1000 * every)).long()
        else:
            frame = since * steps // (int(since[-1]) + 1) if len(t) else since
    x, y = x * size // pixels, y * size // pixels
    inside = frame < steps
    cell = (((frame * 2 + p) * size + y) * size + x)[inside]
    shape = (steps, 2, size, size)
    return torch.bincount(cell, minlength=torch.Size(shape).numel()).view(shape).to(torch.int16)
