"""Data sets from small files in the official formats, and what is said of damaged ones."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs snnkernels[train]")
pytest.importorskip("PIL", reason="needs snnkernels[train]")

from snnkernels.train import data  # noqa: E402
from snnkernels.train.data.images import cifar10, cifar100, image_folder, mnist  # noqa: E402
from snnkernels.train.data.sequences import moved, synthetic_sequences  # noqa: E402
from snnkernels.train.data.series import auslan, tidigits  # noqa: E402
from tests.train import files  # noqa: E402

# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    train, test, classes, held_out = mnist(files.idx(tmp_path, zipped))
    assert classes == 10 and held_out is None
    for part, count in ((train, 100), (test, 20)):
        x, y = files.digits(count)
        assert part.x.dtype == torch.uint8 and part.x.shape == (count, 1, 28, 28)
        assert torch.equal(part.x[:, 0], torch.from_numpy(x))
        assert part.y.tolist() == y.tolist()


def test_cifar_files(tmp_path):
    train, test, classes, _ = cifar10(files.cifar10(tmp_path / "10"))
    assert classes == 10 and train.x.shape == (100, 3, 32, 32) and len(test.y) == 20
    row = (tmp_path / "10" / "data_batch_2.bin").read_bytes()[3073:6146]
    assert train.y[21] == row[0] and train.x[21].flatten().tolist() == list(row[1:])
    train, test, classes, _ = cifar100(files.cifar100(tmp_path / "100"))
    assert classes == 100 and train.x.shape == test.x.shape == (40, 3, 32, 32)
    row = (tmp_path / "100" / "train.bin").read_bytes()[3074:6148]
    assert train.y[1] == row[1] and train.x[1].flatten().tolist() == list(row[2:])


def test_picture_folders(tmp_path):
    train, test, classes, _ = image_folder(files.pictures(tmp_path), size=16)
    assert classes == 10 and train.x.shape == (40, 3, 16, 16) and test.y.tolist() == [*range(10)]
    assert train.x[:, 0].flatten(1).amax(1).tolist() == (10 * train.y).tolist()
    shutil.rmtree(tmp_path / "test" / "class003")
    with pytest.raises(ValueError, match=r"same classes in train and test.*class003"):
        image_folder(tmp_path)


def test_clips(tmp_path):
    train, test, classes, _ = data.DATASETS["frame_folder"](
        files.pictures(tmp_path, clips=True, classes=3), steps=3, size=8
    )
    assert classes == 3 and len(train.x) == 12
    clips = train.x[torch.tensor([0, 3, 11])]
    assert clips.shape == (3, 3, 3, 8, 8) and clips.dtype == torch.uint8
    assert clips[0, :, 1].amax((1, 2)).tolist() == [0, 20, 40]  # of 3 frames all
    assert clips[1, :, 1].amax((1, 2)).tolist() == [20, 60, 100]  # of 6 each second
    assert clips[2, 0, 0].max() == 20
    held_out = data.hold_out(data.Dataset(train, test, classes), 0.25)
    assert len(held_out.train.x) == 9 and len(held_out.validation.x) == 3
    (tmp_path / "test" / "class001" / "file.txt").touch()
    with pytest.raises(ValueError, match="file.txt must be a folder"):
        data.DATASETS["frame_folder"](tmp_path)


def damaged(path, change):
    content = path.read_bytes()
    path.write_bytes(change(content))


IDX, IDX_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("make", "read", "name", "change", "said"),
    [
        (files.idx, mnist, IDX, lambda c: c[:-1], r"must hold 78400 values.*got 78399"),
        (files.idx, mnist, IDX, lambda c: b"\0\0\x08\1" + c[4:], "begin with bytes 0 0 8 3"),
        (files.idx, mnist, IDX, lambda c: b"", r"begin with bytes 0 0 8 3.*in 0 bytes"),
        (files.idx, mnist, IDX_LABELS, lambda c: c[:-3] + b"\x0a12", "label of sample 17.*got 10"),
        (files.idx, mnist, IDX_LABELS, lambda c: c[:7] + b"\1" + c[8:9], "20 images.*1 labels"),
        (files.cifar10, cifar10, "data_batch_3.bin", lambda c: c[:-10], "3063 bytes into row 19"),
        (files.cifar10, cifar10, "test_batch.bin", lambda c: b"\x0b" + c[1:], "sample 0.*got 11"),
        (files.cifar100, cifar100, "train.bin", lambda c: c[:3074] + b"\x14" + c[3075:],
         "sample 1 must be 0 to 19; got 20"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_place(tmp_path, make, read, name, change, said):
    damaged(make(tmp_path) / name, change)
    with pytest.raises(ValueError, match=said) as told:
        read(tmp_path)
    assert name in str(told.value)


def test_a_damaged_archive_and_picture_are_named(tmp_path):
    path = files.idx(tmp_path / "idx", zipped=True) / f"{IDX}.gz"
    for change in (lambda c: c[:-20], lambda c: gzip.compress(b"x")[:5], lambda c: b"PK" + c):
        whole = path.read_bytes()
        damaged(path, change)
        with pytest.raises(ValueError, match=f"{IDX}.gz is damaged"):
            mnist(path.parent)
        path.write_bytes(whole)
    path = files.pictures(tmp_path / "pictures") / "train" / "class000" / "0.png"
    damaged(path, lambda c: c[:40])
    with pytest.raises(ValueError, match="0.png is no picture"):
        image_folder(tmp_path / "pictures")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mnist", {}, r"train-images-idx3-ubyte or .*\.gz; not found.*yann"),
        ("fashion_mnist", {}, "fashion-mnist"),
        ("cifar10", {}, r"data_batch_1.bin; not found.*cs.toronto.edu"),
        ("cifar100", {}, "train.bin"),
        ("image_folder", {}, "train must hold a folder of samples for each class"),
        ("frame_folder", {}, "train must hold"),
    ],
)
def test_a_set_that_is_not_there_says_where_it_comes_from(tmp_path, name, options, said):
    with pytest.raises(FileNotFoundError, match=said) as told:
        data.DATASETS[name](tmp_path / "nowhere", **options)
    assert "nowhere" in str(told.value)


# --- parts ---------------------------------------------------------------------------------------


def test_parts_are_apart():
    x = torch.arange(100)
    dataset = data.Dataset(
        data.Samples(x, x % 4), data.Samples(torch.arange(100, 110), torch.zeros(10).long()), 4
    )
    parts = data.hold_out(dataset, 0.2)
    assert parts.validation.y.bincount().tolist() == [5] * 4 and len(parts.train.y) == 80
    assert not set(parts.train.x.tolist()) & set(parts.validation.x.tolist())
    assert parts.test is dataset.test
    assert torch.equal(parts.validation.x, data.hold_out(dataset, 0.2).validation.x)
    assert data.hold_out(dataset, 0.0) is dataset
    few = data.limited(dataset, 12)
    assert few.train.y.bincount().tolist() == [3] * 4 and few.test is dataset.test
    with pytest.raises(ValueError, match=r"validation must be a number in \[0, 1\); got 1"):
        data.hold_out(dataset, 1)
    with pytest.raises(ValueError, match="validation must leave samples.*0.001 of 100"):
        data.hold_out(dataset, 0.001)


# --- sequences -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A bright square left of the middle in every image, and one pixel above it."""
    x = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    x[:, :, 10:18, 4:12] = 200
    return data.Samples(x, torch.arange(40) % 10)


def sequences(digits, kind, seed=0, steps=10):
    return moved(digits, kind, steps, torch.Generator().manual_seed(seed))


def centre(x):
    """Of the light in images `[*, H, W]`, from the middle, in pixels right and down."""
    place = torch.arange(28.0) - 13.5
    total = x.double().sum((-2, -1))
    return [(x.double().sum(dim) * place).sum(-1) / total for dim in (-2, -1)]


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_sequences_are_the_seeds(digits, kind):
    x, y = sequences(digits, kind)
    assert x.shape == (40, 10, 1, 28, 28) and x.dtype == torch.uint8
    assert torch.equal(y % 10, digits.y)
    assert y.bincount(minlength=20).tolist() == ([4] * 10 + [0] * 10 if kind == 4 else [2] * 20)
    again, other = sequences(digits, kind), sequences(digits, kind, seed=1)
    assert torch.equal(again.x, x) and torch.equal(again.y, y)
    assert not torch.equal(other.x, x)


@pytest.mark.parametrize(("kind", "start"), [(1, 0.0), (3, 0.5)])
def test_zooms(digits, kind, start):
    x, y = sequences(digits, kind)
    pixels = [round(28 * (start + (1 - start) * (k + 1) / 10)) for k in range(10)]
    scales = torch.tensor(pixels).double() / 28
    light = x.double().sum((2, 3, 4)) / (200 * 64)
    right = centre(x[:, :, 0])[0] / -6  # the square's middle is 6 pixels left of the image's
    for direction, expected in ((y < 10, scales), (y >= 10, scales.flip(0))):
        # a picture of an odd size lies half a pixel off the middle of an even one
        assert (right[direction] - expected).abs().max() < 0.6 / 6
        assert (light[direction] - expected**2).abs().max() < 0.02
    full = torch.where(y[:, None, None, None] < 10, x[:, -1], x[:, 0])
    assert torch.equal(full, digits.x)


@pytest.mark.parametrize("steps", [4, 10])
def test_turns(digits, steps):
    x, y = sequences(digits, 2, steps=steps)
    assert torch.equal(x[:, 0], digits.x)
    right, down = centre(x[:, :, 0])
    # from the left counterclockwise: down first
    angle = torch.rad2deg(torch.atan2(down, -right)) % 360
    expected = torch.arange(steps).double() * 360 / steps
    for direction, turn in ((y < 10, expected), (y >= 10, -expected)):
        off = (angle[direction] - turn + 180) % 360 - 180
        assert off.abs().max() < 1
    if steps == 4:
        assert torch.equal(x[y < 10][:, 1], digits.x[y < 10].rot90(1, (2, 3)))


def test_random_turns(digits):
    x, y = sequences(digits, 5)
    right, down = centre(x[:, :, 0])
    angle = torch.rad2deg(torch.atan2(down, -right)) % 360
    forward, backward = angle[y < 10], 360 - angle[y >= 10]
    both = torch.cat([forward, backward])
    assert (both.diff() > -2).all()  # in one direction
    assert both.mean() == pytest.approx(180, abs=15) and both.std() == pytest.approx(104, abs=10)
    assert both[:, 4].std() > 20  # other angles in every sequence


def test_a_square_hides_a_part(digits):
    x, _ = sequences(digits._replace(x=torch.full_like(digits.x, 9)), 4)
    hidden = x[:, :, 0] == 0
    assert hidden.sum((2, 3)).unique().tolist() == [14 * 14]
    rows, columns = hidden.any(3), hidden.any(2)
    firsts = []
    for lines in (rows, columns):
        assert lines.sum(2).unique().tolist() == [14]
        first = lines.float().argmax(2)
        assert (
            lines.cumsum(2)[torch.arange(40)[:, None], torch.arange(10), first + 13] == 14
        ).all()
        assert first.unique().tolist() == list(range(15))
        firsts.append(first)
    assert (firsts[0].diff() != 0).float().mean() > 0.8  # it moves, from step to step
    assert firsts[0].ne(firsts[1]).float().mean() > 0.8  # in both directions by itself


def test_sequences_of_files(tmp_path):
    images = {"name": "mnist", "folder": str(files.idx(tmp_path))}
    train, test, classes, _ = synthetic_sequences(images, 2, steps=4)
    assert classes == 20 and train.x.shape == (100, 4, 1, 28, 28) and len(test.y) == 20
    with pytest.raises(ValueError, match="kind must be one of 1, 2, 3, 4, 5; got 6"):
        synthetic_sequences(images, 6)
    with pytest.raises(ValueError, match="images must be one of .*mnist.*got 'letters'"):
        synthetic_sequences({"name": "letters"}, 2)
    files.cifar10(tmp_path)
    with pytest.raises(ValueError, match="one channel and ten classes"):
        synthetic_sequences({"name": "cifar10", "folder": str(tmp_path)}, 2)


# --- series --------------------------------------------------------------------------------------


def test_digits_of_tidigits(tmp_path):
    pytest.importorskip("soundfile", reason="needs snnkernels[data]: soundfile")
    train, test, classes, _ = tidigits(files.tidigits(tmp_path), frames=10)
    assert classes == 11 and train.x.shape == (22, 10, 20) and test.x.shape == (11, 10, 20)
    assert test.y.tolist() == [*range(11)] and train.y.bincount().tolist() == [2] * 11
    (tmp_path / "test" / "man" / "bh" / "oa.wav").write_bytes(b"NIST_1A")
    with pytest.raises(ValueError, match="oa.wav is no recording"):
        tidigits(tmp_path)
    with pytest.raises(FileNotFoundError, match="train/GROUP/SPEAKER/DIGIT.wav.*nowhere.*LDC93S10"):
        tidigits(tmp_path / "nowhere")


def test_signs_of_auslan(tmp_path):
    train, test, classes, _ = auslan(files.auslan(tmp_path), steps=10)
    assert classes == 95 and train.x.shape == (95, 10, 22) and test.x.shape == (3 * 95, 10, 22)
    assert train.y.tolist() == [*range(95)] and test.y.bincount().tolist() == [3] * 95
    assert (~train.x[..., 0].isnan()).sum(1).tolist() == [min(8 + k % 5, 10) for k in range(95)]
    path = tmp_path / "tctodd4" / "sign07-1.tsd"
    lines = path.read_text().splitlines()
    for change, said in (("1\t2", "line 3: must be 22 numbers; got 2"), ("a\tb", "line 3: .*'a'")):
        path.write_text("\n".join([*lines[:2], change]))
        with pytest.raises(ValueError, match=f"sign07-1.tsd, {said}"):
            auslan(tmp_path)
    with pytest.raises(FileNotFoundError, match="found 0 files of 0 days.*archive.ics.uci.edu"):
        auslan(tmp_path / "nowhere")
