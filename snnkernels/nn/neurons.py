"""Neurons written as steps, for `snnkernels.fuse` and `snnkernels.Neuron`; each is its own how-to.

A step takes the input of one time step, the states before it and the parameters, and returns the
spikes and the states after it. Parameters are numbers, or tensors where they learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.core.spike import spike
from snnkernels.core.surrogates import Laplace, Sigmoid, Surrogate, Triangle


def lif(
    x: Tensor,
    v: Tensor,
    *,
    decay: float | Tensor = 0.5,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | Tensor = 0.0,
    surrogate: Surrogate = Triangle(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire, with the bits of `snnkernels.lif` with ``detach_reset=True``.

    ``h = decay v + x``, ``s = [h >= v_threshold]``, ``v = v_reset`` where s, else h.
    """
    h = decay * v + x
    s = spike(h - v_threshold, surrogate)
    return s, torch.where(s.detach() > 0, v_reset, h)


def alif(
    x: Tensor,
    v: Tensor,
    a: Tensor,
    *,
    decay: float | Tensor = 0.9,
    adapt_decay: float | Tensor = 0.97,
    beta: float | Tensor = 1.8,
    v_threshold: float | Tensor = 1.0,
    surrogate: Surrogate = Triangle(height=0.3),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor]:
    """Adaptive threshold (Bellec et al. 2018, eq. 1-2; Yin et al. 2021).

    ``h = decay v + x``, ``s = [h >= v_threshold + beta a]``, ``v = h - v_threshold s``,
    ``a = adapt_decay a + (1 - adapt_decay) s``.
    """
    h = decay * v + x
    s = spike(h - (v_threshold + beta * a), surrogate)
    return s, h - v_threshold * s, adapt_decay * a + (1 - adapt_decay) * s


def adlif(
    x: Tensor,
    u: Tensor,
    w: Tensor,
    z: Tensor,
    *,
    alpha: float | Tensor = 0.9,
    beta: float | Tensor = 0.95,
    a: float | Tensor = 0.5,
    b: float | Tensor = 1.0,
    v_threshold: float | Tensor = 1.0,
    surrogate: Surrogate = Laplace(height=0.4, width=0.2),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adaptive LIF in the Euler form (Bittar & Garner 2022; Baronig et al. 2025, eq. 4-7).

    The current w follows u and z of the step before: ``w' = beta w + (1 - beta)(a u + b z)``,
    ``u' = alpha u + (1 - alpha)(x - w)``, ``z' = [u' > v_threshold]``, ``u' = 0`` where z'. The
    reset is cut from the gradient.
    """
    h = alpha * u + (1 - alpha) * (x - w)
    s = spike(h - v_threshold, surrogate, strict=True)
    return s, h * (1 - s.detach()), beta * w + (1 - beta) * (a * u + b * z), s


def se_adlif(
    x: Tensor,
    u: Tensor,
    w: Tensor,
    *,
    alpha: float | Tensor = 0.9,
    beta: float | Tensor = 0.95,
    a: float | Tensor = 0.5,
    b: float | Tensor = 1.0,
    v_threshold: float | Tensor = 1.0,
    surrogate: Surrogate = Laplace(height=0.4, width=0.2),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor]:
    """Adaptive LIF in the symplectic Euler form (Baronig et al. 2025, SE-adLIF).

    As `adlif`, but w follows the new u, after its reset, and the new spikes, which keeps the
    oscillation of u and w stable: ``w = beta w + (1 - beta)(a u + b s)``.
    """
    u = alpha * u + (1 - alpha) * (x - w)
    s = spike(u - v_threshold, surrogate, strict=True)
    u = u * (1 - s.detach())
    return s, u, beta * w + (1 - beta) * (a * u + b * s)


def brf(
    x: Tensor,
    u: Tensor,
    v: Tensor,
    q: Tensor,
    *,
    omega: float | Tensor = 10.0,
    b_offset: float | Tensor = 1.0,
    dt: float = 0.01,
    refractory_decay: float | Tensor = 0.9,
    v_threshold: float | Tensor = 1.0,
    surrogate: Surrogate = Triangle(height=0.3),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Balanced resonate-and-fire (Higuchi et al. 2024, eq. 5-10).

    ``b = p(omega) - b_offset - q`` with ``p = (-1 + sqrt(1 - (dt omega)^2)) / dt`` keeps the
    oscillator from diverging; ``u' = u + dt (b u - omega v + x)``, ``v' = v + dt (omega u + b v)``,
    ``s = [u' > v_threshold + q]``, ``q' = refractory_decay q + s``. omega is in rad/s, below 1/dt.
    """
    p = (-1 + (1 - (dt * omega) ** 2) ** 0.5) / dt
    b = p - b_offset - q
    new_u = u + dt * (b * u - omega * v + x)
    new_v = v + dt * (omega * u + b * v)
    s = spike(new_u - v_threshold - q, surrogate, strict=True)
    return s, new_u, new_v, refractory_decay * q + s


def qif(
    x: Tensor,
    v: Tensor,
    *,
    tau: float | Tensor = 2.0,
    a0: float | Tensor = 1.0,
    v_c: float | Tensor = 0.8,
    v_rest: float | Tensor = 0.0,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | Tensor = -0.1,
    surrogate: Surrogate = Sigmoid(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """Quadratic integrate-and-fire (Gerstner et al. 2014, eq. 5.16).

    ``h = v + (x + a0 (v - v_rest)(v - v_c)) / tau``, reset to v_reset.
    """
    h = v + (x + a0 * (v - v_rest) * (v - v_c)) / tau
    s = spike(h - v_threshold, surrogate)
    return s, (1 - s) * h + s * v_reset


def eif(
    x: Tensor,
    v: Tensor,
    *,
    tau: float | Tensor = 2.0,
    delta: float | Tensor = 1.0,
    v_rheobase: float | Tensor = 0.8,
    v_rest: float | Tensor = 0.0,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | Tensor = -0.1,
    surrogate: Surrogate = Sigmoid(),  # noqa: B008
) -> tuple[Tensor, Tensor]:
    """Exponential integrate-and-fire (Fourcaud-Trocmé et al. 2003; Gerstner et al. 2014, eq. 5.6).

    ``h = v + (x + v_rest - v + delta exp((v - v_rheobase) / delta)) / tau``, reset to v_reset.
    """
    h = v + (x + v_rest - v + delta * torch.exp((v - v_rheobase) / delta)) / tau
    s = spike(h - v_threshold, surrogate)
    return s, (1 - s) * h + s * v_reset


def izhikevich(
    x: Tensor,
    v: Tensor,
    w: Tensor,
    *,
    tau: float | Tensor = 2.0,
    tau_w: float | Tensor = 2.0,
    a0: float | Tensor = 1.0,
    v_c: float | Tensor = 0.8,
    a: float | Tensor = 0.0,
    b: float | Tensor = 0.1,
    v_rest: float | Tensor = 0.0,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | Tensor = -0.1,
    surrogate: Surrogate = Sigmoid(),  # noqa: B008
) -> tuple[Tensor, Tensor, Tensor]:
    """Quadratic integrate-and-fire with a recovery current (Izhikevich 2003).

    ``h = v + (x + a0 (v - v_rest)(v - v_c) - w) / tau``, reset to v_reset, then with the new
    spikes ``w = w + (a (h - v_rest) - w) / tau_w + b s``.
    """
    h = v + (x + a0 * (v - v_rest) * (v - v_c) - w) / tau
    s = spike(h - v_threshold, surrogate)
    w = w + (a * (h - v_rest) - w) / tau_w + b * s
    return s, (1 - s) * h + s * v_reset, w


def ilif(
    x: Tensor,
    v: Tensor,
    *,
    decay: float | Tensor = 0.25,
    v_threshold: float | Tensor = 1.0,
    levels: int = 4,
) -> tuple[Tensor, Tensor]:
    """Multi-level spikes: integers from 0 to ``levels`` (Luo et al. 2024, SpikeYOLO's I-LIF).

    ``h = decay v + x``, ``s = round(clip(h / v_threshold, 0, levels))``, ``v = h - v_threshold s``;
    the derivative of s is that of the clip. `to_binary_steps` makes binary spikes of s.
    """
    h = decay * v + x
    y = (h / v_threshold).clamp(0, levels)
    s = y + (y.round() - y).detach()
    return s, h - v_threshold * s


def to_binary_steps(s: Tensor, levels: int) -> Tensor:
    """Integer spikes as that many binary spikes: what hardware that adds single spikes runs.

    A step of s becomes ``levels`` steps, of which the first s are 1: every linear layer, applied to
    each of them and summed up, gives what it gives for s.

    Args:
        s: integers from 0 to levels, `[T, *]`, any floating dtype.
        levels: D.

    Returns:
        `[T * levels, *]` of 0 and 1, in s's dtype; step ``t * levels + k`` is ``s[t] > k``.

    Example:
        >>> import torch
        >>> to_binary_steps(torch.tensor([[2.0], [0.0]]), 3).squeeze(1).tolist()
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    if type(levels) is not int or levels < 1:
        raise ValueError(f"levels must be a whole number >= 1; got {levels!r}")
    below = torch.arange(levels, device=s.device).view(1, levels, *[1] * (s.ndim - 1))
    return (s.unsqueeze(1) > below).to(s.dtype).flatten(0, 1)


STEPS = {
    "lif": lif,
    "alif": alif,
    "adlif": adlif,
    "se_adlif": se_adlif,
    "brf": brf,
    "qif": qif,
    "eif": eif,
    "izhikevich": izhikevich,
    "ilif": ilif,
}
