"""The layer `LIF`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from snnkernels.backends import check_name
from snnkernels.core.state import State
from snnkernels.core.surrogates import Surrogate
from snnkernels.nn._stateful import StatefulLayer, in_backward
from snnkernels.ops._checks import (
    MAX_SYNAPSE_ORDER,
    check_orders,
    check_pair,
    check_policy,
    check_regulariser,
)
from snnkernels.ops.lif import DEFAULT_SURROGATE, lif


class LIF(StatefulLayer):
    r"""A layer of leaky integrate-and-fire neurons: `snnkernels.lif` with its parameters and state.

    .. math::
        h_t = a v_{t-1} + x_t, \quad s_t = [h_t \ge \theta], \quad
        v_t = \text{reset}(h_t, s_t)

    Args:
        decay: a number, or one value per channel. Default: 0.5.
        v_threshold: a number, or one value per channel. Default: 1.
        v_reset: potential after a spike, for the hard reset. Default: 0.
        reset: "hard", "soft", "none" or "trace". Default: "hard".
        detach_reset: cut the gradient through the spike in the reset. Default: False.
        refractory: steps without spikes after a spike. Default: 0.
        surrogate: the derivative of the spike. Default: ``Triangle()``.
        record: "h" makes the layer return ``(s, h)``. Default: None.
        synapse: (alpha, beta) of a filter in front, of order <= 2, each `[lags]` or
            `[channels, lags]`, see `snnkernels.lif`. Default: None.
        gain: factor on the (filtered) input, a number or one value per channel. Default: 1.
        trace_decay: with ``reset="trace"``, a number or one value per channel. Default: None.
        regulariser: (tolerance, shift) of the penalty on potentials, see `snnkernels.lif`. Each
            forward pass leaves it in ``penalty``, a scalar with a gradient, until
            `snnkernels.nn.losses.layer_penalties` takes it away, or `reset`, ``train()``,
            ``eval()`` or ``to()`` drops it. Default: None.
        backend: "auto" or a name, see `snnkernels.available_backends`. Default: "auto".
        learn_decay: make decay a parameter. Default: False.
        learn_threshold: make v_threshold a parameter. Default: False.
        learn_synapse: make the filter's coefficients parameters. Default: False.
        learn_gain: make gain a parameter. Default: False.
        learn_trace_decay: make trace_decay a parameter. Default: False.
        channels: size of dim 2 of the input where decay and v_threshold are kept per channel;
            None keeps one value per layer. Default: None.
        stateful: start each call where the last one ended, until `reset`; a change of the batch
            size is an error then. Default: False.

    Shape:
        x `[T, N, *]`, time first, s the same; s has x's dtype and memory format. One step
        `[N, *]` goes to `step`: a call would take its samples for steps.

    Example:
        >>> import torch, snnkernels
        >>> layer = snnkernels.LIF(decay=0.9, learn_decay=True)
        >>> layer(torch.rand(8, 2, 16)).shape
        torch.Size([8, 2, 16])
    """

    def __init__(
        self,
        *,
        decay: float | Tensor = 0.5,
        v_threshold: float | Tensor = 1.0,
        v_reset: float = 0.0,
        reset: str = "hard",
        detach_reset: bool = False,
        refractory: int = 0,
        surrogate: Surrogate = DEFAULT_SURROGATE,
        record: str | None = None,
        synapse: tuple[Tensor | Sequence[float], Tensor | Sequence[float]] | None = None,
        gain: float | Tensor = 1.0,
        trace_decay: float | Tensor | None = None,
        regulariser: tuple[float, float] | None = None,
        backend: str = "auto",
        learn_decay: bool = False,
        learn_threshold: bool = False,
        learn_synapse: bool = False,
        learn_gain: bool = False,
        learn_trace_decay: bool = False,
        channels: int | None = None,
        stateful: bool = False,
    ) -> None:
        super().__init__(stateful, channels)
        self._coefficient("decay", decay, learn_decay)
        self._coefficient("v_threshold", v_threshold, learn_threshold)
        if isinstance(gain, Tensor) or learn_gain or gain != 1.0:
            self._coefficient("gain", gain, learn_gain)
        else:
            self._number("gain", 1.0)  # the plain neuron, also where there are channels
        if trace_decay is None:
            self.trace_decay = None
        else:
            self._coefficient("trace_decay", trace_decay, learn_trace_decay)
        self.has_synapse = synapse is not None
        if self.has_synapse:
            check_pair(synapse)
            self._filters(*synapse, learn_synapse)
            check_orders("synapse ", self.alpha, self.beta, MAX_SYNAPSE_ORDER)
        refractory, v_reset = check_policy(
            reset=reset,
            refractory=refractory,
            detach_reset=detach_reset,
            v_reset=v_reset,
            surrogate=surrogate,
            record=record,
            has_trace_decay=trace_decay is not None,
        )
        check_name(backend)
        self.options = {
            "v_reset": v_reset,
            "reset": reset,
            "detach_reset": detach_reset,
            "refractory": refractory,
            "surrogate": surrogate,
            "record": record,
            "regulariser": check_regulariser(regulariser),
            "backend": backend,
        }
        self.penalty: Tensor | None = None
        if self.has_synapse:
            self._warn_if_unstable(self.alpha)

    def train(self, mode: bool = True) -> LIF:
        """As in every module; looks at the poles of the synapse on the way."""
        self.penalty = None
        if self.has_synapse:
            self._warn_if_unstable(self.alpha)
        return super().train(mode)

    def reset(self) -> None:
        """Forget the carried state and the penalty: the next call starts from zero."""
        super().reset()
        self.penalty = None

    def _run(self, x: Tensor, carry: bool) -> Tensor | tuple[Tensor, Tensor]:
        s, state, *more = lif(
            x,
            self._start(x, carry),
            decay=self.decay,
            v_threshold=self.v_threshold,
            synapse=(self.alpha, self.beta) if self.has_synapse else None,
            gain=self.gain,
            trace_decay=self.trace_decay,
            **self.options,
        )
        self._end(state, x, carry)
        if self.options["regulariser"] is not None:
            self._keep_penalty(more.pop())
        return (s, *more) if more else s

    def _leave(self, state: State | None, penalty: Tensor | None) -> None:
        super()._leave(state, penalty)
        if penalty is not None:
            self._keep_penalty(penalty)

    def _keep_penalty(self, penalty: Tensor) -> None:
        if self._chunk is not None:
            self._chunk.penalty = penalty
        elif not in_backward():
            self.penalty, self._penalty_learns = penalty, penalty.requires_grad
        elif penalty.requires_grad and not self._penalty_learns:
            raise RuntimeError(
                "regulariser: a checkpoint with use_reentrant=True runs the layer without "
                "gradients, so that its penalty has none; take use_reentrant=False"
            )

    def _apply(self, fn, recurse: bool = True):
        self.penalty = None
        return super()._apply(fn, recurse)

    def _kept(self) -> dict:
        return {**super()._kept(), "penalty": None}

    def extra_repr(self) -> str:
        shown = {"channels": self.channels, **self.options}
        shown |= {name: self._shown(name) for name in ("decay", "v_threshold", "gain")}
        shown["trace_decay"] = self._shown("trace_decay")
        if self.has_synapse:
            shown["synapse"] = "learned" if self.alpha.requires_grad else "fixed"
        return ", ".join(f"{k}={v}" for k, v in shown.items() if v != _DEFAULTS.get(k, ...))


# What goes without saying.
_DEFAULTS = {
    "channels": None,
    "v_reset": 0.0,
    "detach_reset": False,
    "refractory": 0,
    "record": None,
    "regulariser": None,
    "backend": "auto",
    "gain": 1.0,
    "trace_decay": None,
}
