"""What layers with a memory share, and `reset` and `detach` of all of them in a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_whole
from snnkernels.core.state import State
from snnkernels.nn._chunks import InChunks
from snnkernels.nn._numbers import NumbersInStateDict
from snnkernels.ops._checks import check_number, check_values
from snnkernels.ops._time_chunks import largest_pole


def in_backward() -> bool:
    """Whether this runs inside a backward pass, as the forward of a checkpoint does again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _repeats_a_recorded_call() -> bool:
    """Whether a checkpoint with ``use_reentrant=False`` runs this again: it hooks saved tensors."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class StatefulLayer(InChunks, NumbersInStateDict):
    """What all layers with a memory share: the carried state and the coefficients.

    The state is no part of ``state_dict``; ``.to(device)`` moves it, and it stays float32. The
    coefficients are, those that are plain numbers too; a checkpoint without these, as earlier
    versions wrote them, leaves them as they are. A copy and a pickle have the state without its
    graph.
    """

    def __init__(self, stateful: bool, channels: int | None) -> None:
        super().__init__()
        if channels is not None:
            check_whole("channels", channels)
        self.stateful = stateful
        self.channels = channels
        self.state: State | None = None
        self._calls = 0  # that a backward pass may repeat, since the last reset or detach
        self._start_of_call: State | None = None  # of the first of them

    def _coefficient(self, name: str, value: float | Tensor, learn: bool) -> None:
        """Keep ``value`` as a parameter, a buffer or a plain number, under ``name``."""
        if not isinstance(value, Tensor):
            value = check_number(name, value)
            if not learn and self.channels is None:
                self._number(name, value)
                return
        tensor = torch.as_tensor(value, dtype=torch.float32)
        check_values(name, tensor, tensor)
        if tensor.numel() == 1:
            tensor = tensor.reshape(() if self.channels is None else 1)
        elif not tensor.shape[0] == tensor.numel() == self.channels:
            allowed = "" if self.channels is None else f" or [channels] = [{self.channels}]"
            raise ValueError(
                f"{name} must be a number{allowed}; got shape {list(tensor.shape)} with "
                f"channels={self.channels}"
            )
        if self.channels is not None:
            tensor = tensor.reshape(-1).expand(self.channels)
        self._keep(name, tensor, learn)

    def _filters(
        self, alpha: Tensor | Sequence[float], beta: Tensor | Sequence[float], learn: bool
    ) -> None:
        """Keep the coefficients of a filter, each `[lags]` or `[channels, lags]`."""
        channels = None if self.channels is None else {self.channels}
        for name, value, least in (("alpha", alpha, 0), ("beta", beta, 1)):
            try:
                tensor = torch.as_tensor(value, dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} must be a tensor or a sequence of numbers; got {value!r}"
                ) from error
            check_values(name, tensor, tensor)
            shape = list(tensor.shape)
            if tensor.ndim not in (1, 2) or shape[-1] < least:
                raise ValueError(
                    f"{name} must be [lags] or [channels, lags], lags >= {least}; got shape {shape}"
                )
            if tensor.ndim == 2:
                channels = channels or {shape[0]}
                if shape[0] not in channels:
                    raise ValueError(
                        f"{name} must be [lags] or [channels, lags] with {channels.pop()} "
                        f"channels; got shape {shape}"
                    )
            if self.channels is not None:
                tensor = tensor.expand(self.channels, -1)
            self._keep(name, tensor, learn)

    def _keep(self, name: str, tensor: Tensor, learn: bool) -> None:
        tensor = tensor.detach().clone()
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    def _shown(self, name: str) -> object:
        """A coefficient as ``repr`` shows it: no look at values, which a device may hold."""
        value = getattr(self, name)
        if not isinstance(value, Tensor):
            return value
        return "learned" if isinstance(value, nn.Parameter) or value.requires_grad else "fixed"

    @torch.no_grad()
    def _warn_if_unstable(self, alpha: Tensor) -> None:
        """Report, once, a pole outside the unit circle."""
        if getattr(self, "_unstable", False) or alpha.is_meta or not alpha.isfinite().all():
            return
        largest = largest_pole(alpha)
        if largest > 1 + 1e-6:
            self._unstable = True
            warnings.warn(
                f"{type(self).__name__}: the filter has a pole at |z| = {largest:.4g}, outside the "
                "unit circle: its response grows without bound",
                stacklevel=3,
            )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Run T steps of a sequence `[T, N, *]`."""
        return self._run(x, self.stateful)

    def step(self, x_t: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Run one step of a stream, carrying the state whether or not the layer is stateful.

        Args:
            x_t: input of one step `[N, *]`.

        Returns:
            The step `[N, *]` of what the layer gives for a sequence.
        """
        out = self._run(x_t.unsqueeze(0), True)
        return out.squeeze(0) if isinstance(out, Tensor) else tuple(o.squeeze(0) for o in out)

    def _run(self, x: Tensor, carry: bool) -> Tensor | tuple[Tensor, Tensor]:
        """Run `[T, N, *]`, from and to the carried state where ``carry``."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the carried state: the next call starts from zero."""
        self.state = self._start_of_call = None
        self._calls = 0

    def detach(self) -> None:
        """Keep the carried state, cut from the graph of the calls that made it."""
        if self.state is not None:
            self.state = self.state.detach()
        self._start_of_call, self._calls = None, 0

    def _repeated_start(self) -> State | None:
        """Where the call started that a checkpoint runs again, or an error."""
        if self._calls == 1 and _repeats_a_recorded_call():
            return self._start_of_call
        raise RuntimeError(
            f"{type(self).__name__} carries its state and cannot tell which of its calls "
            "activation checkpointing runs again: use use_reentrant=False and detach() or reset() "
            "the layer between its calls, or hand the state over as an argument and a result of "
            "what is checkpointed (snnkernels.lif, snnkernels.iir)"
        )

    def _start(self, x: Tensor, carry: bool) -> State | None:
        """The state to start x from; x and state must fit the layer and each other."""
        channels = "*" if self.channels is None else f"{self.channels}, *"
        if x.ndim < 2 or (self.channels is not None and x.shape[2:3] != (self.channels,)):
            raise ValueError(
                f"x must be [T, N, {channels}]; got {list(x.shape)}. "
                f"A single step [N, {channels}] goes to step()"
            )
        state = self._carried(carry)
        if state is None:
            return None
        step = x.shape[1:]
        part = next(p for p in state if p is not None)
        shape = part.shape[part.ndim - len(step) :]  # a filter's state has its lags in front
        if shape != step:
            raise ValueError(
                f"x has steps of shape {list(step)}, the carried state {list(shape)}: "
                "call reset() before another batch size"
            )
        return state

    def _carried(self, carry: bool) -> State | None:
        """The state of earlier steps, if there were any."""
        if self._chunk is not None:
            return self._chunk.begin(type(self).__name__)
        if not carry:
            return None
        if in_backward():
            return self._repeated_start()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._calls += 1
            self._start_of_call = self.state if self._calls == 1 else None
        return self.state

    def _state_before(self) -> State | None:
        return self._carried(self.stateful)

    def _leave(self, state: State | None, penalty: Tensor | None) -> None:
        if self.stateful and not in_backward():
            self.state = state

    def _end(self, state: State, x: Tensor, carry: bool) -> None:
        """Keep the state after x, unless x is run again."""
        if self._chunk is not None:
            self._chunk.end = state
        elif carry and x.shape[0] and not in_backward():
            self.state = state

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.state is not None:
            part = next(p for p in self.state if p is not None)
            device = fn(part[:0]).device  # the device, but never a narrower dtype
            self.state = self.state._make(p if p is None else p.to(device) for p in self.state)
        return self

    def _kept(self) -> dict:
        """The attributes of a copy: a graph can be neither copied nor pickled."""
        state = None if self.state is None else self.state.detach()
        return {**self.__dict__, "state": state, "_start_of_call": None, "_calls": 0}

    def __getstate__(self) -> dict:
        return self._kept()

    def __deepcopy__(self, memo: dict) -> StatefulLayer:
        # Not by __getstate__, which torch.nn.utils.parametrize replaces by an error.
        twin = memo[id(self)] = self.__new__(type(self))
        twin.__dict__ = copy.deepcopy(self._kept(), memo)
        return twin


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
