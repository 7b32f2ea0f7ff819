"""Synapses as recursive filters, and the encoder for time series (Fang et al.)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnkernels.backends import check_name
from snnkernels.core.checks import check_positive, check_whole
from snnkernels.core.state import State
from snnkernels.nn._stateful import StatefulLayer
from snnkernels.nn.lif import LIF
from snnkernels.ops.iir import iir


def dual_exponential(tau_m: float, tau_s: float) -> tuple[list[float], list[float]]:
    """Coefficients (alpha, beta) of a difference of two exponentials (Fang et al., eq. 4c).

    The printed alpha[2] lacks the sign in its exponent, without which the filter is unstable.

    Args:
        tau_m: time constant of the decay, in steps.
        tau_s: time constant of the rise, in steps; another value than tau_m.
    """
    check_positive(tau_m=tau_m, tau_s=tau_s)
    if tau_m == tau_s:
        raise ValueError(
            f"tau_s must differ from tau_m, else nothing is left; got {tau_s!r} twice. "
            "The limit of equal time constants is alpha_function"
        )
    m, s = math.exp(-1 / tau_m), math.exp(-1 / tau_s)
    return [m + s, -m * s], [0.0, m - s]


def alpha_function(tau: float) -> tuple[list[float], list[float]]:
    """Coefficients (alpha, beta) of t / tau * exp(-t / tau) (Fang et al., after eq. 5).

    Args:
        tau: time constant in steps; the response is highest after as many.
    """
    check_positive(tau=tau)
    a = math.exp(-1 / tau)
    return [2 * a, -a * a], [0.0, a / tau]


def exponential(tau: float) -> tuple[list[float], list[float]]:
    """Coefficients (alpha, beta) of exp(-t / tau).

    Args:
        tau: time constant in steps.
    """
    check_positive(tau=tau)
    return [math.exp(-1 / tau)], [1.0]


def delay(steps: int) -> tuple[list[float], list[float]]:
    """Coefficients (alpha, beta) of an axon with a delay of ``steps`` (beta[q] of eq. 5d).

    Args:
        steps: 0 passes the input on.
    """
    check_whole("steps", steps, 0)
    return [], [0.0] * steps + [1.0]


class IIRSynapse(StatefulLayer):
    r"""A recursive filter on spikes, with coefficients that learn: `snnkernels.iir` as a layer.

    .. math:: f_t = \sum_{p=1}^{P} \alpha_p f_{t-p} + \sum_{q=0}^{Q} \beta_q x_{t-q}

    It stands before the weights, one filter per input, shared by its synapses.

    Args:
        alpha: feedback coefficients, `[P]` or `[C, P]`; see also `dual_exponential`,
            `alpha_function`, `exponential` and `delay` of this class.
        beta: input coefficients, `[Q + 1]` or `[C, Q + 1]`.
        learn: make them parameters. Default: True.
        channels: size of dim 2 of the input where each channel has a filter of its own; None keeps
            one filter for the layer. Default: None.
        stateful: start each call where the last one ended. Default: False.
        backend: as in `LIF`. Default: "auto".

    Warns:
        UserWarning: once, where a pole of the filter lies outside the unit circle, so that its
            response grows without bound: at the start, or when ``train()`` or ``eval()`` is called.

    Shape:
        x `[T, N, *]`, time first, f the same. One step `[N, *]` goes to `step`.
    """

    def __init__(
        self,
        alpha: Tensor | Sequence[float],
        beta: Tensor | Sequence[float],
        *,
        learn: bool = True,
        channels: int | None = None,
        stateful: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(stateful, channels)
        check_name(backend)
        self.backend = backend
        self._filters(alpha, beta, learn)
        self._warn_if_unstable(self.alpha)

    @classmethod
    def dual_exponential(cls, tau_m: float, tau_s: float, **options) -> IIRSynapse:
        """A difference of two exponentials; time constants in steps (eq. 4c)."""
        return cls(*dual_exponential(tau_m, tau_s), **options)

    @classmethod
    def alpha_function(cls, tau: float, **options) -> IIRSynapse:
        """T / tau * exp(-t / tau), tau in steps."""
        return cls(*alpha_function(tau), **options)

    @classmethod
    def exponential(cls, tau: float, **options) -> IIRSynapse:
        """exp(-t / tau), tau in steps."""
        return cls(*exponential(tau), **options)

    @classmethod
    def delay(cls, steps: int, **options) -> IIRSynapse:
        """An axon with a delay of ``steps``."""
        return cls(*delay(steps), **options)

    def _run(self, x: Tensor, carry: bool) -> Tensor:
        start = self._start(x, carry)
        start = None if start is None else start.synapse
        f, state = iir(x, self.alpha, self.beta, start, backend=self.backend)
        self._end(State(synapse=state), x, carry)
        return f

    @torch.no_grad()
    def kernel(self, steps: int) -> Tensor:
        """The response to one spike at step 0, `[steps]` or `[steps, C]`, on the CPU."""
        alpha, beta = self.alpha.detach().cpu(), self.beta.detach().cpu()
        channels = max(c.shape[0] if c.ndim > 1 else 1 for c in (alpha, beta))
        x = torch.zeros(steps, 1, channels)
        x[:1] = 1
        f, _ = iir(x, alpha, beta)
        return f[:, 0] if channels > 1 or alpha.ndim > 1 else f[:, 0, 0]

    def train(self, mode: bool = True) -> IIRSynapse:
        """As in every module; looks at the poles on the way."""
        self._warn_if_unstable(self.alpha)
        return super().train(mode)

    def extra_repr(self) -> str:
        shown = ", ".join(f"{n}={list(getattr(self, n).shape)}" for n in ("alpha", "beta"))
        return f"{shown}, learn={self._shown('alpha') == 'learned'}"


class CurrentEncoder(nn.Module):
    """Turns a time series into spikes: a current-based LIF neuron per series (Fang et al., 5.3).

    Input adds to a current that decays, the current charges the potential, which is reset to zero
    at a spike. With ``both_signs`` each series has a second neuron for its negative.

    Args:
        tau_current: time constant of the current, in steps. Default: 2.
        tau: time constant of the potential, in steps. Default: 10.
        v_threshold: Default: 1.
        gain: factor on the current. Default: 1.
        both_signs: also encode ``-x``, after x along the last dimension. Default: True.
        stateful: start each call where the last one ended. Default: False.
        backend: as in `LIF`. Default: "auto".

    Shape:
        x `[T, N, F]`; spikes `[T, N, 2 F]`, or `[T, N, F]` without ``both_signs``. One step
        `[N, F]` goes to `step`.
    """

    def __init__(
        self,
        *,
        tau_current: float = 2.0,
        tau: float = 10.0,
        v_threshold: float = 1.0,
        gain: float = 1.0,
        both_signs: bool = True,
        stateful: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_positive(tau_current=tau_current, tau=tau)
        self.both_signs = both_signs
        self.neuron = LIF(
            decay=math.exp(-1 / tau),
            v_threshold=v_threshold,
            synapse=exponential(tau_current),
            gain=gain,
            stateful=stateful,
            backend=backend,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode `[T, N, F]`."""
        return self.neuron(self._signs(x))

    def step(self, x_t: Tensor) -> Tensor:
        """Encode one step `[N, F]` of a stream, carrying the state, stateful or not."""
        return self.neuron.step(self._signs(x_t))

    def _signs(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], -1) if self.both_signs else x
