"""Learning rates over a training, as factors of the optimizer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi

from snnkernels.core.checks import is_number

# Of the share of the steps that are done, 0 to 1, and the number of epochs: the factor.
Schedule = Callable[[float, int], float]


def constant() -> Schedule:
    """The same rate throughout."""
    return lambda progress, epochs: 1.0


def linear(floor: float = 0.0) -> Schedule:
    """Falls by equal parts.

    Args:
        floor: the factor at the last step. Default: 0.
    """
    _check_factor("floor", floor, least=0.0)
    return lambda progress, epochs: 1 - (1 - floor) * progress


def cosine(floor: float = 0.0) -> Schedule:
    """Falls as half a cosine.

    Args:
        floor: the factor at the last step. Default: 0.
    """
    _check_factor("floor", floor, least=0.0)
    return lambda progress, epochs: floor + (1 - floor) * (1 + cos(pi * progress)) / 2


def steps(at: Sequence[float] = (0.7, 0.8, 0.9), factor: float = 0.1) -> Schedule:
    """Falls at once at some shares of the training (Vicente-Sola et al., sec. 3.5).

    Args:
        at: shares, in ascending order between 0 and 1. Default: 70, 80 and 90 %.
        factor: of every fall. Default: 0.1.
    """
    _check_factor("factor", factor)
    if list(at) != sorted(at) or not all(is_number(a) and 0 <= a <= 1 for a in at):
        raise ValueError(f"at must be ascending shares from 0 to 1; got {at!r}")
    return lambda progress, epochs: factor ** sum(progress >= a for a in at)


def exponential(rate: float = 0.99, exponent: float = 1.0) -> Schedule:
    """Falls to ``rate ** (e ** exponent)`` in e epochs.

    Stöckl's table 5.8 lists a decay of 0.99 and an exponent of 0.5 and does not say what they act
    on; this is one reading.

    Args:
        rate: of the first epoch. Default: 0.99.
        exponent: of the number of epochs. Default: 1.
    """
    _check_factor("rate", rate)
    if not is_number(exponent) or not exponent > 0:
        raise ValueError(f"exponent must be a number > 0; got {exponent!r}")
    return lambda progress, epochs: rate ** ((progress * epochs) ** exponent)


def _check_factor(name: str, value: float, least: float | None = None) -> None:
    low = is_number(value) and (value > 0 if least is None else value >= least)
    if not low or value > 1:
        allowed = "above 0" if least is None else f"from {least:g}"
        raise ValueError(f"{name} must be a number {allowed} to 1; got {value!r}")


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "steps": steps,
    "exponential": exponential,
}


def rate_factor(
    step: int, *, total: int, schedule: Schedule, warmup: float = 0.0, epochs: int = 1
) -> float:
    """What the learning rate is multiplied with.

    Args:
        step: that is about to be taken, 0 for the first.
        total: number of steps.
        schedule: after the warm-up.
        warmup: share of all steps in which the rate rises linearly. Default: 0.
        epochs: number of epochs. Default: 1.
    """
    rise = round(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return schedule((step - rise) / max(1, total - rise), epochs)
