"""Recordings of event cameras as frames, and simulated ones."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs snnkernels[train]")
pytest.importorskip("PIL", reason="needs snnkernels[train]")

from snnkernels.train.data.events import event_recordings, frames  # noqa: E402
from snnkernels.train.data.saccades import events_of, simulated_saccades  # noqa: E402
from tests.train import files  # noqa: E402

needs_events = pytest.mark.skipif(
    not all(map(find_spec, ("tonic", "aedat"))), reason="needs snnkernels[events]"
)


def test_frames_of_equal_time_of_a_window_and_of_equal_numbers():
    t = torch.tensor([1000, 1500, 2000, 5000, 9000, 10999])
    x, y = torch.tensor([0, 1, 2, 3, 0, 3]), torch.tensor([3, 3, 2, 0, 1, 1])
    p = torch.tensor([0, 1, 1, 0, 0, 1])
    options = {"pixels": 4, "size": 4, "every": None}
    out = frames(t, x, y, p, steps=2, slices="time", **options)
    assert out.shape == (2, 2, 4, 4) and out.dtype == torch.int16
    assert out.sum((1, 2, 3)).tolist() == [4, 2]
    assert out.nonzero().tolist() == [
        *([0, 0, 0, 3], [0, 0, 3, 0], [0, 1, 2, 2], [0, 1, 3, 1]),
        *([1, 0, 1, 0], [1, 1, 1, 3]),
    ]
    assert frames(t, x, y, p, steps=3, slices="count", **options).sum((1, 2, 3)).tolist() == [2] * 3
    options["every"] = 4
    assert frames(t, x, y, p, steps=3, slices="window", **options).sum((1, 2, 3)).tolist() == [
        *(3, 1, 2)
    ]
    assert frames(t, x, y, p, steps=3, slices="count", **options).sum((1, 2, 3)).tolist() == [
        *(4, 2, 0)
    ]
    options["size"] = 2
    small = frames(t, x, y, p, steps=1, slices="window", **options)
    assert small[0].tolist() == [[[0, 0], [1, 0]], [[0, 0], [1, 1]]]
    nothing = torch.zeros(0, dtype=torch.int64)
    for slices in ("time", "count", "window"):
        out = frames(*[nothing] * 4, steps=2, slices=slices, **options)
        assert out.shape == (2, 2, 2, 2) and not out.any()


@needs_events
def test_recordings(tmp_path):
    train, test, classes, _ = event_recordings("n_mnist", files.n_mnist(tmp_path / "N"), steps=5)
    assert classes == 10 and len(train.y) == 40 and test.y.tolist() == sorted([*range(10)] * 2)
    e = files.events(200, 34, 10 * 3 + 2)
    out = train.x[torch.tensor([4 * 2 + 3])][0]
    columns = [torch.from_numpy(e[name]) for name in "txyp"]
    expected = frames(*columns, steps=5, slices="time", every=None, pixels=34, size=34)
    assert torch.equal(out, expected) and out.sum() == 200
    folder = files.dvs_gesture(tmp_path / "gestures")
    train, test, classes, _ = event_recordings("dvs_gesture", folder, steps=4, size=32)
    assert classes == 11 and train.y.tolist() == [*range(2), 10, *range(2, 10)] * 2
    assert train.x[torch.tensor([0, 5])].shape == (2, 4, 2, 32, 32)
    assert train.x[torch.tensor([0])].sum() == 300


@needs_events
@pytest.mark.skipif(find_spec("dv_processing") is None, reason="needs dv-processing")
def test_recordings_without_test_samples(tmp_path):
    folder = files.cifar10_dvs(tmp_path)
    train, test, classes, _ = event_recordings(
        "cifar10_dvs", folder, steps=2, slices="count", every=40
    )
    assert classes == 10 and train.y.bincount().tolist() == [9] * 10
    assert test.y.tolist() == [*range(10)]
    assert test.x[torch.tensor([0, 1])].sum((2, 3, 4)).tolist() == [[40, 40]] * 2


@needs_events
def test_damaged_recordings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Train/DIGIT/\*.bin.*nowhere.*garrickorchard"):
        event_recordings("n_mnist", tmp_path / "nowhere")
    folder = files.n_mnist(tmp_path / "N")
    path = folder / "Train" / "0" / "00000.bin"
    for change, said in (
        (lambda c: c[:-2], ""),
        (lambda c: b"\x40" + c[1:], "event 0 lies at x=64"),
    ):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(ValueError, match=f"00000.bin is damaged: .*{said}"):
            event_recordings("n_mnist", folder).train.x[torch.tensor([0])]
        path.write_bytes(whole)
    for options, said in (
        ({"slices": "window"}, "every must be given for slices='window'"),
        ({"every": 2}, "every must be given.*got 2 for 'time'"),
        ({"size": 40}, "size must be at most the sensor's 34; got 40"),
        ({"slices": "window", "every": 0}, "every must be a number > 0; got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            event_recordings("n_mnist", folder, **options)


def test_saccades_are_simulated(tmp_path):
    images = {"name": "mnist", "folder": str(files.idx(tmp_path))}
    train, test, classes, _ = simulated_saccades(images, steps=6, substeps=18)
    assert classes == 10 and train.x.shape == (100, 6, 2, 34, 34) and train.x.dtype == torch.int16
    assert (train.x.sum((2, 3, 4)) > 0).all()
    again = simulated_saccades(images, steps=6, substeps=18)
    assert torch.equal(again.train.x, train.x)
    # the same events, told apart otherwise
    assert torch.equal(
        simulated_saccades(images, steps=3, substeps=18).test.x.sum(1), test.x.sum(1)
    )
    assert (
        simulated_saccades(images, threshold=1.0, substeps=18).train.x.sum() < 0.5 * train.x.sum()
    )


def test_simulated_events_are_those_of_moving_edges():
    bar = torch.zeros(1, 1, 28, 28)
    bar[:, :, :, 12:16] = 1.0
    out = events_of(bar, 3, 6, 0.3, 60)[0]
    on, off = out.sum((0, 2, 3)).tolist()
    assert on > 1000 and on == pytest.approx(off, rel=0.02)  # it comes back to its place
    middle = out[:, :, 10:24].sum(2)
    assert (middle > 0).any((0, 1)).nonzero().flatten().tolist() == [*range(11, 23)]
    # the bar goes left in the first two saccades, and light comes before it goes
    for step in (0, 1):
        on, off = (
            middle[step, p].float() @ torch.arange(34.0) / middle[step, p].sum() for p in (0, 1)
        )
        assert on < off - 3
