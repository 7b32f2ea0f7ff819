"""Surrogate gradients: what stands in for the derivative of the spike in the backward pass.

Each surrogate is a small frozen dataclass. It gives ds/dh as a function f of ``u = h -
v_threshold``, in the units of h. The kernels hold the same formulas in ``csrc/neuron.h`` and
``backends/triton/equations.py``; what stands here is the reference and must keep its order of
operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from snnkernels.core.call import as_tensor


def _divide(numerator: float, denominator: Tensor) -> Tensor:
    # `number / tensor` multiplies by a reciprocal and rounds twice; the kernels divide once.
    return as_tensor(numerator, denominator.dtype, denominator.device) / denominator


@dataclass(frozen=True)
class Surrogate:
    """Base of all surrogates.

    Those that the kernels of `lif` have are listed in ``SURROGATES`` and known there by ``code``.
    """

    code: ClassVar[int]

    def __post_init__(self) -> None:
        """Check that every number is finite and positive."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(
                    f"{type(self).__name__}: {field.name} must be a number, got {value!r}"
                )
            if not 0 < value < math.inf:  # no call of math's, which torch.compile would not trace
                raise ValueError(
                    f"{type(self).__name__}: {field.name} must be finite and > 0, got {value!r}"
                )

    def constants(self) -> tuple[float, float]:
        """The two numbers that the kernels take, in the order of ``csrc/neuron.h``."""
        raise NotImplementedError

    def _peak(self, default: float) -> float:
        return default if self.height is None else self.height

    def derivative(self, u: Tensor) -> Tensor:
        """f(u), elementwise: the surrogate of ds/dh.

        Args:
            u: any shape, float32 or float64, ``h - v_threshold``.

        Returns:
            Shape and dtype of ``u``.
        """
        raise NotImplementedError

    def primitive(self, u: Tensor) -> Tensor:
        """The integral of f from minus infinity: the smooth stand-in for the spike itself.

        Its step is the area of f, not always 1. Used to check
        gradients numerically.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Triangle(Surrogate):
    """``f(u) = height * max(0, 1 - |u| / width)`` (Bellec et al. 2018; Esser et al. 2016).

    Attributes:
        height: the peak, at the threshold. Default: 1.
        width: half the base, in the units of h; a width relative to the threshold is written
            ``width=1.05 * v_threshold``. Default: 1.
    """

    height: float = 1.0
    width: float = 1.0
    code: ClassVar[int] = 0

    def constants(self) -> tuple[float, float]:
        return self.height, 1.0 / self.width

    def derivative(self, u: Tensor) -> Tensor:
        m = 1.0 - u.abs() * (1.0 / self.width)
        return torch.where(m > 0, m, 0.0) * self.height

    def primitive(self, u: Tensor) -> Tensor:
        z = (u / self.width).clamp(-1, 1)
        return self.height * self.width * (0.5 + z - 0.5 * z * z.abs())


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """``f(u) = height if |u| < width else 0`` (Wu et al. 2018, STBP).

    Attributes:
        height: the value near the threshold. Default: 1.
        width: half the base, in the units of h. Default: 0.5.
    """

    height: float = 1.0
    width: float = 0.5
    code: ClassVar[int] = 1

    def constants(self) -> tuple[float, float]:
        return self.height, self.width

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.width).to(u.dtype) * self.height

    def primitive(self, u: Tensor) -> Tensor:
        return self.height * (u.clamp(-self.width, self.width) + self.width)


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """``f(u) = exp(-u^2 / (2 sigma^2)) / (sigma sqrt(2 pi))``, the normal density.

    Samadzadeh et al. (STS-ResNet) use ``sigma=1/6``; Fang et al. (IIR-SNN, eq. 18-19) reach the
    same density from the derivative of erfc.

    Attributes:
        sigma: the standard deviation, in the units of h. Default: 0.5.
        height: the peak, at the threshold. Default: that of the density, whose area is 1.
    """

    sigma: float = 0.5
    height: float | None = None
    code: ClassVar[int] = 2

    def constants(self) -> tuple[float, float]:
        peak = 1.0 / (self.sigma * math.sqrt(2.0 * math.pi))
        return self._peak(peak), -0.5 / (self.sigma * self.sigma)

    def derivative(self, u: Tensor) -> Tensor:
        peak, rate = self.constants()
        return torch.exp((u * u) * rate) * peak

    def primitive(self, u: Tensor) -> Tensor:
        area = self.constants()[0] * self.sigma * math.sqrt(2.0 * math.pi)
        return area * (0.5 * torch.erfc(-u / (self.sigma * math.sqrt(2.0))))


@dataclass(frozen=True)
class ATan(Surrogate):
    """``f(u) = (alpha / 2) / (1 + (pi/2 alpha u)^2)`` (Fang et al. 2021; SpikingJelly's ATan).

    Attributes:
        alpha: steepness, per unit of h. Default: 2.
        height: the peak, at the threshold. Default: alpha / 2, for an area of 1.
    """

    alpha: float = 2.0
    height: float | None = None
    code: ClassVar[int] = 3

    def constants(self) -> tuple[float, float]:
        return self._peak(0.5 * self.alpha), 0.5 * math.pi * self.alpha

    def derivative(self, u: Tensor) -> Tensor:
        peak, rate = self.constants()
        z = u * rate
        return _divide(peak, 1.0 + z * z)

    def primitive(self, u: Tensor) -> Tensor:
        area = self.constants()[0] / (0.5 * self.alpha)
        return area * (torch.atan(0.5 * math.pi * self.alpha * u) / math.pi + 0.5)


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """``f(u) = alpha sigma(alpha u) (1 - sigma(alpha u))``, the slope of the logistic function.

    Attributes:
        alpha: steepness, per unit of h. Default: 4.
        height: the peak, at the threshold. Default: alpha / 4, for an area of 1.
    """

    alpha: float = 4.0
    height: float | None = None
    code: ClassVar[int] = 4

    def constants(self) -> tuple[float, float]:
        return 4.0 * self._peak(0.25 * self.alpha), -self.alpha

    def derivative(self, u: Tensor) -> Tensor:
        scale, rate = self.constants()
        p = _divide(1.0, 1.0 + torch.exp(u * rate))
        return (p * scale) * (1.0 - p)

    def primitive(self, u: Tensor) -> Tensor:
        return self.constants()[0] / self.alpha * torch.sigmoid(self.alpha * u)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """``f(u) = height / (1 + alpha |u|)^2`` (Zenke & Ganguli 2018, SuperSpike).

    Attributes:
        alpha: steepness, per unit of h. Default: 25.
        height: the peak, at the threshold. Default: 1.
    """

    alpha: float = 25.0
    height: float = 1.0
    code: ClassVar[int] = 5

    def constants(self) -> tuple[float, float]:
        return self.alpha, self.height

    def derivative(self, u: Tensor) -> Tensor:
        d = 1.0 + u.abs() * self.alpha
        return _divide(self.height, d * d)

    def primitive(self, u: Tensor) -> Tensor:
        return self.height * (u / (1.0 + self.alpha * u.abs()) + 1.0 / self.alpha)


@dataclass(frozen=True)
class Laplace(Surrogate):
    """``f(u) = height * exp(-|u| / width)`` (Shrestha & Orchard 2018, SLAYER).

    SLAYER writes ``c exp(-alpha |u|)``: height = c, width = 1 / alpha. For `spike` and `fuse`; the
    kernels of `lif` do not have it.

    Attributes:
        height: the peak, at the threshold. Default: 1.
        width: where it has fallen to 1 / e of it, in the units of h. Default: 0.5.
    """

    height: float = 1.0
    width: float = 0.5

    def derivative(self, u: Tensor) -> Tensor:
        return torch.exp(u.abs() * (-1.0 / self.width)) * self.height

    def primitive(self, u: Tensor) -> Tensor:
        tail = self.height * self.width * torch.exp(-u.abs() / self.width)
        return torch.where(u < 0, tail, 2.0 * self.height * self.width - tail)


SURROGATES: tuple[type[Surrogate], ...] = (
    Triangle,
    Rectangle,
    Gaussian,
    ATan,
    Sigmoid,
    FastSigmoid,
)
