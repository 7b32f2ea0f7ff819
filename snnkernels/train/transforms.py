"""What is done to a batch before the network sees it; modules, so that a device runs them.

What chance does, it does in training alone. Samples are `[N, C, H, W]`, or sequences
`[N, T, C, H, W]`, in which all frames of a sample are treated alike, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnkernels.core.checks import check_positive, check_whole
from snnkernels.train.data.samples import Samples

_CHUNK = 1000  # samples at once, of which statistics are taken


def as_float(x: Tensor) -> Tensor:
    """Bytes as 0 ... 1, other whole numbers, such as event counts, as they are; float32."""
    if x.is_floating_point():
        return x
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation, channel by channel.

    Args:
        mean: of each channel.
        deviation: of each channel.

    Shape:
        x `[N, *, C, H, W]`, output the same.
    """

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return (x - self.mean) / self.deviation


def normalise(
    samples: Samples, mean: list[float] | None = None, deviation: list[float] | None = None
) -> Normalise:
    """`Normalise` by numbers that are given or, where they are not, the training samples'.

    Args:
        samples: the training samples, `[N, *, C, H, W]`.
        mean: of each channel, in the units of `as_float`. Default: None.
        deviation: of each channel. Default: None.

    Raises:
        ValueError: one of the two without the other, or other lengths than the channels.
    """
    if (mean is None) != (deviation is None):
        raise ValueError(
            f"mean and deviation must both be given or both be None; got {mean!r}, {deviation!r}"
        )
    channels = samples.x[torch.tensor([0])].shape[-3]
    if mean is None:
        mean, deviation = statistics(samples)
    if not len(mean) == len(deviation) == channels:
        raise ValueError(
            f"mean and deviation must have one number for each of {channels} channels; "
            f"got {mean!r} and {deviation!r}"
        )
    check_positive(**{f"deviation[{k}]": value for k, value in enumerate(deviation)})
    return Normalise(mean, deviation)


def statistics(samples: Samples) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of `[N, *, C, H, W]`."""
    count, total, square = 0, 0.0, 0.0
    for part in torch.arange(len(samples.y)).split(_CHUNK):
        x = as_float(samples.x[part]).transpose(0, -3).flatten(1).double()
        count, total, square = count + x.shape[1], total + x.sum(1), square + x.square().sum(1)
    mean = total / count
    deviation = (square / count - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), deviation.clamp_min(1e-6).tolist()


class Flip(nn.Module):
    """Mirror half of the samples, left to right."""

    def forward(self, x: Tensor) -> Tensor:
        """Mirror in training."""
        if not self.training:
            return x
        chosen = torch.rand(len(x), device=x.device) < 0.5
        return torch.where(chosen.view(-1, *(1,) * (x.ndim - 1)), x.flip(-1), x)


class Crop(nn.Module):
    """Shift each sample by up to ``padding`` pixels; zeros come in from the edges.

    Args:
        padding: the most pixels, in each direction. Default: 4.
    """

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        check_whole("padding", padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Shift in training."""
        if not self.training:
            return x
        n, (height, width) = len(x), x.shape[-2:]
        wide = functional.pad(x.flatten(1, -3), (self.padding,) * 4)
        start = torch.randint(2 * self.padding + 1, (2, n, 1), device=x.device)
        rows = start[0] + torch.arange(height, device=x.device)
        columns = start[1] + torch.arange(width, device=x.device)
        sample, channel = (torch.arange(k, device=x.device) for k in wide.shape[:2])
        cut = wide[
            sample.view(-1, 1, 1, 1),
            channel.view(-1, 1, 1),
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return cut.view(x.shape)


class GaussianNoise(nn.Module):
    """Add normal numbers, other ones for every value.

    Args:
        deviation: of the noise.
        unit: keep the result within 0 ... 1, as input codes ask for. Default: False.
    """

    def __init__(self, deviation: float, unit: bool = False) -> None:
        super().__init__()
        check_positive(deviation=deviation)
        self.deviation, self.unit = deviation, unit

    def forward(self, x: Tensor) -> Tensor:
        """Add in training."""
        if not self.training:
            return x
        x = x + self.deviation * torch.randn_like(x)
        return x.clamp(0, 1) if self.unit else x


TRANSFORMS: dict[str, Callable[..., nn.Module]] = {
    "normalise": normalise,
    "flip": Flip,
    "crop": Crop,
    "noise": GaussianNoise,
}


class Inputs(nn.Module):
    """Everything that stands between a batch and the network.

    Args:
        transforms: run one after the other.
        code: from `[N, *]` to `[T, N, *]`, see `snnkernels.nn.encode`; None shows images as they
            are, and sequences `[N, T, C, H, W]` with time first. Default: None.

    Shape:
        x of any dtype, see `as_float`; output float32 `[N, *]` or `[T, N, *]`.
    """

    def __init__(self, transforms: Sequence[nn.Module], code: nn.Module | None = None) -> None:
        super().__init__()
        self.transforms = nn.Sequential(*transforms)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        """Transform and encode."""
        x = self.transforms(as_float(x))
        if self.code is not None:
            return self.code(x)
        return x.transpose(0, 1) if x.ndim == 5 else x
