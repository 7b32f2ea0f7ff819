"""Mel-frequency cepstral coefficients, the features of spoken words (Davis, Mermelstein 1980)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FLOOR = 1e-8  # of a mel band's power, so that silence has a logarithm


def mfcc(
    wave: Tensor,
    rate: int,
    *,
    coefficients: int = 20,
    bands: int = 40,
    window: float = 0.032,
    hop: float = 0.016,
) -> Tensor:
    """Short-time spectrum, power in mel bands, logarithm, cosine transform.

    Args:
        wave: one channel, `[samples]`, float, full scale 1.
        rate: samples per second.
        coefficients: how many are kept; the first one is the level. Default: 20.
        bands: triangular filters between 0 and rate / 2. Default: 40.
        window: length of the Hann window, in seconds. Default: 0.032.
        hop: distance of two frames, in seconds. Default: 0.016.

    Returns:
        `[frames, coefficients]`; frames lie around 0, hop, 2 hop ... until the end of the wave.

    Raises:
        ValueError: wave is not `[samples]` with samples > 0, or coefficients > bands.
    """
    if wave.ndim != 1 or len(wave) == 0:
        raise ValueError(f"wave must be [samples], at least one; got {list(wave.shape)}")
    if not 0 < coefficients <= bands:
        raise ValueError(f"coefficients must be 1 to bands = {bands}; got {coefficients!r}")
    size = round(window * rate)
    spectrum = torch.stft(
        wave,
        size,
        round(hop * rate),
        window=torch.hann_window(size),
        pad_mode="constant",
        return_complex=True,
    )
    power = mel_filters(size // 2 + 1, bands, rate) @ spectrum.abs().square() / size
    return (cosine_transform(coefficients, bands) @ power.clamp_min(FLOOR).log()).T


def mel_filters(bins: int, bands: int, rate: int) -> Tensor:
    """Triangles of height 1, evenly spaced on the mel scale, as weights `[bands, bins]`."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    frequency = torch.linspace(0, rate / 2, bins)
    low, centre, high = (edges[k : k + bands, None] for k in range(3))
    rise, fall = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return torch.minimum(rise, fall).clamp_min(0)


def cosine_transform(coefficients: int, bands: int) -> Tensor:
    """The first rows of the orthonormal cosine transform of type 2, `[coefficients, bands]`."""
    k, n = torch.arange(coefficients)[:, None], torch.arange(bands)
    rows = torch.cos(math.pi / bands * (n + 0.5) * k) * math.sqrt(2 / bands)
    rows[0] /= math.sqrt(2)
    return rows
