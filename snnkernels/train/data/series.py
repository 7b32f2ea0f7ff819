"""Time series: samples `[N, T, F]` with NaN after the end of a shorter one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.train.data.samples import Dataset, Samples
from snnkernels.train.mfcc import mfcc


def japanese_vowels() -> Dataset:
    """Which of nine men says two vowels: 270 and 370 series of 12 cepstral coefficients.

    The split is the authors'. Each coefficient is shifted and scaled to mean 0 and variance 1 in
    the training samples. Source: Kudo, Toyama, Shimbo: Multidimensional curve classification using
    passing-through regions, Pattern Recognition Letters 20, 1999; the files are those that the
    package sktime carries. They are read without importing it, which takes many seconds.

    Returns:
        x float32 `[270, 29, 12]` and `[370, 29, 12]`; series have 7 to 29 steps.

    Raises:
        ModuleNotFoundError: sktime is not installed, or carries the files elsewhere.
    """
    package = find_spec("sktime")
    folder = Path(*package.submodule_search_locations) if package else Path()
    files = [
        folder / "datasets" / "data" / "JapaneseVowels" / f"JapaneseVowels_{part}.ts"
        for part in ("TRAIN", "TEST")
    ]
    if package is None or not all(file.is_file() for file in files):
        raise ModuleNotFoundError(
            "Japanese Vowels come with the package sktime, "
            + (f"but {files[0]} is not there" if package else "which is not installed")
            + "; install it with: pip install 'snnkernels[data]'"
        )
    parts = [_read_ts(file) for file in files]
    steps = max(len(series) for part, _ in parts for series in part)
    return _scaled([Samples(pad(part, steps), torch.tensor(y) - 1) for part, y in parts], 9)


def _read_ts(path: Path) -> tuple[list[Tensor], list[int]]:
    """Series `[steps, F]` and numbers of their classes from a file in sktime's text format."""
    series, labels = [], []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.strip() == "@data":
            break
    for line in lines:  # features separated by colons, steps by commas, the class at the end
        *features, label = line.split(":")
        series.append(torch.tensor([[float(v) for v in f.split(",")] for f in features]).T)
        labels.append(int(label))
    return series, labels


NAMES = "DIGIT_SPEAKER_INDEX.wav, such as 7_jackson_32.wav"
TEST_INDICES = 5  # recordings of a speaker and digit with a lower index are test samples


class Recording(NamedTuple):
    """One spoken digit.

    Attributes:
        wave: float32 `[samples]`, full scale 1; several channels are averaged.
        rate: samples per second.
        digit: what is said.
        is_test: whether its index is below `TEST_INDICES`.
        path: of its file.
    """

    wave: Tensor
    rate: int
    digit: int
    is_test: bool
    path: Path


def recordings(folder: str | Path) -> Iterator[Recording]:
    """Recordings of single spoken digits, as in the Free Spoken Digit Dataset, in order of names.

    Args:
        folder: holds the recordings, named DIGIT_SPEAKER_INDEX.wav.

    Raises:
        ModuleNotFoundError: soundfile is not installed.
        FileNotFoundError: the folder is not there, or holds no .wav files.
        ValueError: a file with another name or without sound, or no training or test samples.
    """
    paths = sorted(Path(folder).glob("*.wav"))
    if not paths:
        raise FileNotFoundError(f"folder must hold recordings {NAMES}; found none in {folder}")
    counts = [0, 0]
    for path in paths:
        name = re.fullmatch(r"(\d)_(.+)_(\d+)\.wav", path.name)
        if name is None:
            raise ValueError(f"recordings must be named {NAMES}; got {path}")
        wave, rate = _read_wave(path)
        is_test = int(name[3]) < TEST_INDICES
        counts[is_test] += 1
        yield Recording(wave, rate, int(name[1]), is_test, path)
    if not all(counts):
        raise ValueError(
            f"folder must hold recordings with indices below {TEST_INDICES} (test) and others "
            f"(training); got {counts[1]} and {counts[0]} in {folder}"
        )


def _read_wave(path: Path) -> tuple[Tensor, int]:
    """The mean of the channels, float32 `[samples]`, and samples per second."""
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as error:  # OSError: without its C library
        raise ModuleNotFoundError(
            f"recordings are read with the package soundfile, which did not load ({error}); "
            "install it with: pip install 'snnkernels[data]'"
        ) from error
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise _unusable(path, error) from error
    return torch.from_numpy(wave).mean(1), rate


def _coefficients(wave: Tensor, rate: int, path: Path) -> Tensor:
    """`mfcc` of a recording; an error names its file."""
    try:
        return mfcc(wave, rate)
    except ValueError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no recording that can be used: {error}")


def spoken_digits(folder: str | Path, *, frames: int = 50) -> Dataset:
    """Recordings of single spoken digits as `snnkernels.train.mfcc`, 20 coefficients every 16 ms.

    The split is that of the Free Spoken Digit Dataset: indices 0 to 4 of each speaker and digit are
    test samples. Coefficients have mean 0 and variance 1 in the training samples.

    Args:
        folder: holds the recordings, named DIGIT_SPEAKER_INDEX.wav; several channels are averaged.
        frames: at most so many of a recording; the rest is left out. Default: 50, which is 0.8 s.

    Returns:
        x float32 `[N, frames, 20]`.

    Raises:
        ModuleNotFoundError: soundfile is not installed.
        FileNotFoundError: the folder is not there, or holds no .wav files.
        ValueError: a file with another name or without sound, or no training or test samples.
    """
    parts: tuple[tuple[list, list], tuple[list, list]] = ([], []), ([], [])
    for recording in recordings(folder):
        x, y = parts[recording.is_test]
        x.append(_coefficients(recording.wave, recording.rate, recording.path)[:frames])
        y.append(recording.digit)
    return _scaled([Samples(pad(x, frames), torch.tensor(y)) for x, y in parts], 10)


DIGITS = "123456789oz"  # of TIDIGITS: "oh" and "zero" are classes of their own
TIDIGITS_FROM = "tidigits/train and tidigits/test of https://catalog.ldc.upenn.edu/LDC93S10"


def tidigits(folder: str | Path, *, frames: int = 90) -> Dataset:
    """Single digits of TIDIGITS as `snnkernels.train.mfcc`, 20 coefficients every 16 ms.

    The split is the set's. Strings of several digits are left out. Coefficients have mean 0 and
    variance 1 in the training samples.

    Args:
        folder: holds ``train/GROUP/SPEAKER/DIGIT.wav`` and ``test/...``, named 1a.wav, oa.wav,
            zb.wav and so on, in a format that soundfile reads (SPHERE, WAV).
        frames: at most so many of a recording. Default: 90, as in Fang et al., sec. 5.3.

    Returns:
        x float32 `[N, frames, 20]`; classes 0 to 10 are 1 ... 9, oh, zero.

    Raises:
        ModuleNotFoundError: soundfile is not installed.
        FileNotFoundError: the folder holds no single digits.
        ValueError: a file that is no recording.
    """
    parts = []
    for part in ("train", "test"):
        paths = sorted(
            path
            for path in (Path(folder) / part).rglob("*")
            if re.fullmatch(r"[1-9oz][ab]\.wav", path.name.lower())
        )
        if not paths:
            raise FileNotFoundError(
                f"folder must hold {part}/GROUP/SPEAKER/DIGIT.wav; found none in {folder}. Put "
                f"there {TIDIGITS_FROM}"
            )
        x = [_coefficients(*_read_wave(path), path)[:frames] for path in paths]
        y = torch.tensor([DIGITS.index(path.name[0].lower()) for path in paths])
        parts.append(Samples(pad(x, frames), y))
    return _scaled(parts, len(DIGITS))


AUSLAN_FROM = (
    "the folders tctodd1 ... tctodd9 of https://archive.ics.uci.edu/dataset/115 (Australian Sign "
    "Language signs, high quality)"
)
AUSLAN_CHANNELS = 22
AUSLAN_TEST = 3  # of the nine days on which the signs were recorded, the last ones


def auslan(folder: str | Path, *, steps: int = 60) -> Dataset:
    """Signs of Australian Sign Language: 22 channels of two gloves (Kadous 2002).

    95 signs, 27 times each, on nine days; the last three days are the test samples. Channels have
    mean 0 and variance 1 in the training samples.

    Args:
        folder: holds ``tctodd1/SIGN-N.tsd`` to ``tctodd9/...``, lines of 22 numbers.
        steps: at most so many of a sign, whose mean is 57 in the set. Default: 60.

    Returns:
        x float32 `[N, steps, 22]`; classes in the order of their names.

    Raises:
        FileNotFoundError: the folder does not hold recordings of more than three days.
        ValueError: a file with other lines, which is named with the line.
    """
    paths = sorted(Path(folder).glob("tctodd*/*.tsd"))
    days = sorted({path.parent.name for path in paths})
    if len(days) <= AUSLAN_TEST:
        raise FileNotFoundError(
            f"folder must hold tctodd1/SIGN-N.tsd to tctodd9/...; found {len(paths)} files of "
            f"{len(days)} days in {folder}. Put there {AUSLAN_FROM}"
        )
    names = sorted({path.stem.rpartition("-")[0] for path in paths})
    parts = []
    for chosen in (days[:-AUSLAN_TEST], days[-AUSLAN_TEST:]):
        of_part = [path for path in paths if path.parent.name in chosen]
        y = torch.tensor([names.index(path.stem.rpartition("-")[0]) for path in of_part])
        parts.append(Samples(pad([_read_tsd(path)[:steps] for path in of_part], steps), y))
    return _scaled(parts, len(names))


def _read_tsd(path: Path) -> Tensor:
    """Lines of numbers, `[steps, 22]`."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines()):
        try:
            values = [float(value) for value in line.split()]
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: {error}") from error
        if len(values) != AUSLAN_CHANNELS:
            raise ValueError(
                f"{path}, line {number + 1}: must be {AUSLAN_CHANNELS} numbers; got {len(values)}"
            )
        rows.append(values)
    if not rows:
        raise ValueError(f"{path} is empty")
    return torch.tensor(rows)


def pad(series: Sequence[Tensor], steps: int) -> Tensor:
    """Series `[up to steps, F]` as one tensor `[N, steps, F]`, with NaN after the end of each."""
    x = torch.full((len(series), steps, series[0].shape[1]), float("nan"))
    for row, values in zip(x, series, strict=True):
        row[: len(values)] = values
    return x


def _scaled(parts: Sequence[Samples], classes: int) -> Dataset:
    """Features with mean 0 and variance 1 in the training samples, the first part."""
    known = parts[0].x[~parts[0].x[..., 0].isnan()]
    mean, deviation = known.mean(0), known.std(0)
    train, test = (Samples((part.x - mean) / deviation, part.y) for part in parts)
    return Dataset(train, test, classes)
