"""What layers with a memory share, and `reset` and `detach` of all of them in a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnkernels.core.state import State
from snnkernels.ops._time_chunks import largest_pole


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
