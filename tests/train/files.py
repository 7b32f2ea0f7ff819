"""Small data sets in the official formats."""

from __future__ import annotations

import gzip
import math
import struct
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SETS = {"train": 100, "t10k": 20}  # samples of each part


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bytes `[count, 28, 28]`: a bar at a place of its own for each of ten classes, and labels."""
    labels = np.arange(count) % 10
    x = np.random.default_rng(seed).integers(0, 40, (count, 28, 28))
    for image, label in zip(x, labels, strict=True):
        image[4:24, 4 + 2 * label : 7 + 2 * label] += 200
    return x.astype(np.uint8), labels.astype(np.uint8)


def idx(folder: Path, zipped: bool = False) -> Path:
    """The four files of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in SETS.items():
        x, y = digits(count)
        for name, magic, values in (("images-idx3", 2051, x), ("labels-idx1", 2049, y)):
            sizes = struct.pack(f">{values.ndim}I", *values.shape)
            content = struct.pack(">I", magic) + sizes + values.tobytes()
            path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


def cifar_rows(count: int, labels: int, seed: int = 0) -> bytes:
    """Rows of ``labels`` bytes, all the number of the row modulo 10, and an image."""
    rng = np.random.default_rng(seed)
    return b"".join(
        bytes([k % 10] * labels) + rng.integers(0, 256, 3072, np.uint8).tobytes()
        for k in range(count)
    )


def cifar10(folder: Path) -> Path:
    """The binary version of CIFAR-10."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(1, 6):
        (folder / f"data_batch_{k}.bin").write_bytes(cifar_rows(20, 1, k))
    (folder / "test_batch.bin").write_bytes(cifar_rows(20, 1))
    return folder


def cifar100(folder: Path) -> Path:
    """The binary version of CIFAR-100."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        (folder / f"{name}.bin").write_bytes(cifar_rows(40, 2))
    return folder


def pictures(folder: Path, clips: bool = False, classes: int = 10, train: int = 4) -> Path:
    """Pictures in folders of their classes, or clips of them."""
    for part, count in (("train", train), ("test", 1)):
        for label in range(classes):
            for k in range(count):
                place = folder / part / f"class{label:03d}"
                frames = [place / f"{k}.png"]
                if clips:
                    frames = [place / f"clip{k}" / f"{i:03d}.png" for i in range(3 + k)]
                for i, frame in enumerate(frames):
                    frame.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (30, 20), (10 * label, 20 * i, 0)).save(frame)
    return folder


def events(count: int, pixels: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random events in ascending order of time, microseconds."""
    rng = np.random.default_rng(seed)
    return {
        "t": np.sort(rng.integers(0, 300_000, count)),
        "x": rng.integers(0, pixels, count),
        "y": rng.integers(0, pixels, count),
        "p": rng.integers(0, 2, count),
    }


def n_mnist(folder: Path) -> Path:
    """Recordings of N-MNIST: 5 bytes an event."""
    for part, count in (("Train", 4), ("Test", 2)):
        for label in range(10):
            for k in range(count):
                e = events(200, 34, 10 * k + label)
                path = folder / part / str(label) / f"{k:05d}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                high = e["p"] << 7 | e["t"] >> 16
                columns = (e["x"], e["y"], high, e["t"] >> 8 & 255, e["t"] & 255)
                path.write_bytes(np.stack(columns, 1).astype(np.uint8).tobytes())
    return folder


def dvs_gesture(folder: Path) -> Path:
    """Recordings of DVS128 Gesture, as tonic provides them: columns x, y, p, t in milliseconds."""
    for part, users in (("ibmGestureTrain", (1, 2)), ("ibmGestureTest", (24,))):
        for user in users:
            for label in range(11):
                e = events(300, 128, user * 20 + label)
                path = folder / part / f"user{user:02d}_lab" / f"{label}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.stack([e["x"], e["y"], e["p"], e["t"] // 1000], 1).astype(float))
    return folder


def cifar10_dvs(folder: Path) -> Path:
    """Recordings of CIFAR10-DVS, as tonic provides them."""
    import dv_processing as dv

    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    for label, name in enumerate(names):
        for k in range(10):
            path = folder / name / f"cifar10_{name}_{k}.aedat4"
            path.parent.mkdir(parents=True, exist_ok=True)
            config = dv.io.MonoCameraWriter.EventOnlyConfig("DVS", (128, 128))
            writer = dv.io.MonoCameraWriter(str(path), config)
            store = dv.EventStore()
            e = events(100, 128, 10 * label + k)
            for t, x, y, p in zip(e["t"], e["x"], e["y"], e["p"], strict=True):
                store.push_back(int(t), int(x), int(y), bool(p))
            writer.writeEvents(store)
            del writer
    return folder


RATE = 8000


def tone(frequency: float, seconds: float = 0.2) -> torch.Tensor:
    """A sine."""
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * RATE)) / RATE)


def write_wave(path: Path, samples: torch.Tensor, channels: int = 1) -> None:
    """A recording of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        pcm = (samples * 32767).round().to(torch.int16).repeat_interleave(channels)
        file.writeframes(pcm.numpy().tobytes())


def spoken_digits(folder: Path) -> Path:
    """Ten tones for ten digits, two training samples and one test sample of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        for index in (0, 5, 10):
            samples = tone(300 + 300 * digit, 0.1 + 0.02 * index)
            write_wave(folder / f"{digit}_someone_{index}.wav", samples, 1 + index % 2)
    return folder


def tidigits(folder: Path) -> Path:
    """Tones for the eleven digits of TIDIGITS, by three speakers, and a longer string."""
    for part, speakers in (("train", ("ae", "aj")), ("test", ("bh",))):
        for speaker in speakers:
            place = folder / part / "man" / speaker
            place.mkdir(parents=True)
            for k, name in enumerate("123456789oz"):
                write_wave(place / f"{name}a.wav", tone(300 + 250 * k))
            write_wave(place / "39oa.wav", tone(300))
    return folder


def auslan(folder: Path) -> Path:
    """Signs of AusLan: 22 numbers a line, tabs between them."""
    rng = np.random.default_rng(0)
    for day in range(1, 5):
        for sign in range(95):
            path = folder / f"tctodd{day}" / f"sign{sign:02d}-1.tsd"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = sign + rng.standard_normal((8 + sign % 5, 22))
            path.write_text("".join("\t".join(f"{v:.4f}" for v in row) + "\n" for row in rows))
    return folder
