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
        ValueError: wave is not floating point `[samples]` with samples > 0, coefficients > bands,
            or window or hop shorter than half a sample.
    """
    if wave.ndim != 1 or len(wave) == 0 or not wave.is_floating_point():
        raise ValueError(
            f"wave must be floating point [samples], at least one; got {wave.dtype} "
            f"{list(wave.shape)}"
        )
    if not 0 < coefficients <= bands:
        raise ValueError(f"coefficients must be 1 to bands = {bands}; got {coefficients!r}")
    size, step = round(window * rate), round(hop * rate)
    for name, seconds, samples in (("window", window, size), ("hop", hop, step)):
        if samples < 1:
            raise ValueError(
                f"{name} must be at least one sample of rate = {rate}; got {seconds!r} seconds"
            )
    spectrum = torch.stft(
        wave,
        size,
        step,
        window=torch.hann_window(size, dtype=wave.dtype, device=wave.device),
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.abs().square() / size
    level = (mel_filters(size, bands, rate).to(power) @ power).clamp_min(FLOOR).log()
    return (cosine_transform(coefficients, bands).to(power) @ level).T


def mel_filters(size: int, bands: int, rate: int) -> Tensor:
    """Triangles of height 1 between 0 and rate / 2, evenly spaced on the mel scale.

    Args:
        size: samples of the window; its spectrum has size // 2 + 1 bins, the last of which lies
            at rate / 2 only where size is even.
        bands: number of triangles.
        rate: samples per second.

    Returns:
        Weights `[bands, size // 2 + 1]`.
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    mel = torch.linspace(0, top, bands + 2, dtype=torch.float32)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = torch.arange(size // 2 + 1, dtype=torch.float32) * (rate / size)
    low, centre, high = (edges[k : k + bands, None] for k in range(3))
    rise, fall = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return torch.minimum(rise, fall).clamp_min(0)


def cosine_transform(coefficients: int, bands: int) -> Tensor:
    """The first rows of the orthonormal cosine transform of type 2, `[coefficients, bands]`."""
    k, n = (torch.arange(m, dtype=torch.float32) for m in (coefficients, bands))
    rows = torch.cos(math.pi / bands * (n + 0.5) * k[:, None]) * math.sqrt(2 / bands)
    rows[0] /= math.sqrt(2)
    return rows
