"""Drop-in layers over `snnkernels.lif`: input and output are `[T, N, *]`, time first."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnkernels.ops import DEFAULT_SURROGATE, lif
from snnkernels.state import State
from snnkernels.surrogates import Surrogate
from snnkernels.time_parallel import largest_pole


class StatefulLayer(nn.Module):
    """What all layers with a memory share: the carried state and the coefficients.

    The state is no part of ``state_dict``; ``.to(device)`` moves it, and it stays float32.
    """

    def __init__(self, stateful: bool, channels: int | None) -> None:
        super().__init__()
        if channels is not None and (type(channels) is not int or channels < 1):
            raise ValueError(f"channels must be None or a whole number >= 1; got {channels!r}")
        self.stateful = stateful
        self.channels = channels
        self.state: State | None = None

    def _coefficient(self, name: str, value: float | Tensor, learn: bool) -> None:
        """Keep ``value`` as a parameter, a buffer or a plain number, under ``name``."""
        if not isinstance(value, Tensor) and not learn and self.channels is None:
            setattr(self, name, float(value))
            return
        tensor = torch.as_tensor(value, dtype=torch.float32).detach().clone()
        if self.channels is not None:
            if tensor.ndim and tensor.shape != (self.channels,):
                raise ValueError(
                    f"{name} must be a number or [channels] = [{self.channels}]; "
                    f"got shape {list(tensor.shape)}"
                )
            tensor = tensor.expand(self.channels).clone()
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def _filter(self, name: str, value: Tensor | Sequence[float], learn: bool) -> None:
        """Keep the coefficients of a filter, `[lags]` or `[channels, lags]`, under ``name``."""
        tensor = torch.as_tensor(value, dtype=torch.float32).detach().clone()
        if self.channels is not None:
            if tensor.ndim > 1 and tensor.shape[0] != self.channels:
                raise ValueError(
                    f"{name} must be [lags] or [channels, lags] with {self.channels} channels; "
                    f"got shape {list(tensor.shape)}"
                )
            tensor = tensor.expand(self.channels, -1).clone()
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    @torch.no_grad()
    def _warn_if_unstable(self, alpha: Tensor) -> None:
        """Report, once, a pole outside the unit circle."""
        if getattr(self, "_unstable", False) or not alpha.isfinite().all():
            return
        largest = largest_pole(alpha)
        if largest > 1 + 1e-6:
            self._unstable = True
            warnings.warn(
                f"{type(self).__name__}: the filter has a pole at |z| = {largest:.4g}, outside the "
                "unit circle: its response grows without bound",
                stacklevel=3,
            )

    def reset(self) -> None:
        """Forget the carried state: the next call starts from zero."""
        self.state = None

    def detach(self) -> None:
        """Keep the carried state, cut from the graph of the calls that made it."""
        if self.state is not None:
            self.state = self.state.detach()

    def _start(self, step: torch.Size) -> State | None:
        """The carried state, checked against the shape of one step of the input."""
        if self.state is None:
            return None
        part = next(p for p in self.state if p is not None)
        shape = part.shape[part.ndim - len(step) :]  # a filter's state has its lags in front
        if shape != step:
            raise ValueError(
                f"x has steps of shape {list(step)}, the carried state {list(shape)}: "
                "call reset() before another batch size"
            )
        return self.state

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.state is not None:
            part = next(p for p in self.state if p is not None)
            device = fn(part[:0]).device  # the device, but never a narrower dtype
            self.state = State(*(p if p is None else p.to(device) for p in self.state))
        return self

    def __getstate__(self) -> dict:
        kept = dict(self.__dict__)
        if self.state is not None:
            kept["state"] = self.state.detach()  # a graph can be neither copied nor pickled
        return kept


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
            forward pass leaves it in ``penalty``, a scalar with a gradient, which
            `snnkernels.losses.layer_penalties` sums up over a network. Default: None.
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
        x `[T, N, *]`, s the same; s has x's dtype and memory format.

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
            self.gain = 1.0  # the plain neuron, also where there are channels
        if trace_decay is None:
            self.trace_decay = None
        else:
            self._coefficient("trace_decay", trace_decay, learn_trace_decay)
        self.has_synapse = synapse is not None
        if self.has_synapse:
            if not isinstance(synapse, (tuple, list)) or len(synapse) != 2:
                raise TypeError(f"synapse must be None or a pair (alpha, beta); got {synapse!r}")
            self._filter("alpha", synapse[0], learn_synapse)
            self._filter("beta", synapse[1], learn_synapse)
        self.options = {
            "v_reset": v_reset,
            "reset": reset,
            "detach_reset": detach_reset,
            "refractory": refractory,
            "surrogate": surrogate,
            "record": record,
            "regulariser": regulariser,
            "backend": backend,
        }
        self.penalty: Tensor | None = None
        self(torch.zeros(0, 1, channels or 1))  # an unknown option is an error here, not later
        self.penalty = None
        if self.has_synapse:
            self._warn_if_unstable(self.alpha)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Run T steps.

        Args:
            x: input current `[T, N, *]`.

        Returns:
            s, or (s, h) with ``record="h"``.
        """
        return self._run(x, self.stateful)

    def train(self, mode: bool = True) -> LIF:
        """As in every module; looks at the poles of the synapse on the way."""
        if self.has_synapse:
            self._warn_if_unstable(self.alpha)
        return super().train(mode)

    def step(self, x_t: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Run one step of a stream, carrying the state whether or not the layer is stateful.

        Args:
            x_t: input current of one step `[N, *]`.

        Returns:
            s_t, or (s_t, h_t) with ``record="h"``.
        """
        out = self._run(x_t.unsqueeze(0), True)
        return out.squeeze(0) if isinstance(out, Tensor) else tuple(o.squeeze(0) for o in out)

    def _run(self, x: Tensor, carry: bool) -> Tensor | tuple[Tensor, Tensor]:
        start = self._start(x.shape[1:]) if carry else None
        s, state, *more = lif(
            x,
            start,
            decay=self.decay,
            v_threshold=self.v_threshold,
            synapse=(self.alpha, self.beta) if self.has_synapse else None,
            gain=self.gain,
            trace_decay=self.trace_decay,
            **self.options,
        )
        if carry and x.shape[0]:
            self.state = state
        if self.options["regulariser"] is not None:
            self.penalty = more.pop()
        return (s, *more) if more else s

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "penalty": None}

    def extra_repr(self) -> str:
        shown = {"channels": self.channels, **self.options}
        for name in ("decay", "v_threshold", "gain", "trace_decay"):
            value = getattr(self, name)
            shown[name] = "learned" if isinstance(value, nn.Parameter) else value
        defaults = {"channels": None, "v_reset": 0.0, "detach_reset": False, "refractory": 0}
        defaults |= {
            "record": None,
            "regulariser": None,
            "backend": "auto",
            "gain": 1.0,
            "trace_decay": None,
        }
        if self.has_synapse:
            shown["synapse"] = "learned" if isinstance(self.alpha, nn.Parameter) else "fixed"
        return ", ".join(
            f"{k}={v}" for k, v in shown.items() if k not in defaults or v != defaults[k]
        )


class LeakyReadout(StatefulLayer):
    """An output layer that integrates and never fires.

    .. math:: v_t = a v_{t-1} + x_t

    Args:
        decay: the leak, a number or one value per channel; 1 does not leak. Default: 1.
        output: "last" gives the potential after the last step (Stöckl's networks), "mean" the mean
            potential over the steps. Default: "last".
        learn_decay: make decay a parameter. Default: False.
        channels: size of dim 2 where decay is kept per channel. Default: None.
        stateful: go on where the last call ended. Default: False.
        backend: as in `LIF`. Default: "auto".

    Shape:
        x `[T, N, *]`, output `[N, *]`, float32 (float64 for float64 input).
    """

    def __init__(
        self,
        *,
        decay: float | Tensor = 1.0,
        output: str = "last",
        learn_decay: bool = False,
        channels: int | None = None,
        stateful: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(stateful, channels)
        if output not in ("last", "mean"):
            raise ValueError(f"output must be 'last' or 'mean'; got {output!r}")
        self._coefficient("decay", decay, learn_decay)
        self.output = output
        self.backend = backend
        self(torch.zeros(0, 1, channels or 1))

    def forward(self, x: Tensor) -> Tensor:
        """Integrate `[T, N, *]` to `[N, *]`."""
        start = self._start(x.shape[1:]) if self.stateful else None
        _, state, *h = lif(
            x,
            start,
            decay=self.decay,
            v_threshold=float("inf"),
            reset="none",
            record="h" if self.output == "mean" else None,
            backend=self.backend,
        )
        if self.stateful and x.shape[0]:
            self.state = state
        return h[0].mean(0) if h else state.v

    def extra_repr(self) -> str:
        decay = "learned" if isinstance(self.decay, nn.Parameter) else self.decay
        return f"decay={decay}, output={self.output!r}"


class OverTime(nn.Module):
    """Apply a module without memory to all time steps at once, by folding T into the batch.

    For convolutions, linear layers, norms and pooling. Memory format is kept: a channels_last
    convolution gives a channels_last sequence.

    Args:
        *modules: run one after the other.

    Shape:
        x `[T, N, *]`; the modules see `[T * N, *]`.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        if not modules:
            raise ValueError("OverTime needs at least one module; got none")
        self.module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules on every step."""
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def reset(model: nn.Module) -> None:
    """Forget the carried state of every neuron layer in a model."""
    for module in model.modules():
        if isinstance(module, StatefulLayer):
            module.reset()


def detach(model: nn.Module) -> None:
    """Cut the carried state of every neuron layer in a model from its graph."""
    for module in model.modules():
        if isinstance(module, StatefulLayer):
            module.detach()
