"""The layer `Neuron`: any neuron that is written as a step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from snnkernels.backends import available_backends, load
from snnkernels.core.checks import is_number
from snnkernels.nn._stateful import StatefulLayer
from snnkernels.ops.fuse import fuse


class Neuron(StatefulLayer):
    """A layer of neurons that a step describes: `snnkernels.fuse` with its parameters and state.

    Args:
        step: see `snnkernels.fuse`; kept as ``function``.
        state: where the states start: a number for each. Default: zeros.
        inputs: how many inputs the step has. Default: 1.
        outputs: see `snnkernels.fuse`. Default: 1.
        learn: names of the parameters of the step that are learned. Default: none.
        channels: keep the learned parameters per channel, size of dim 2 of the input. Default:
            None, one value per layer.
        shape: keep them per neuron of a sample, sizes of dims 2 and up. Default: None.
        stateful: start each call where the last one ended, until `reset`; a change of the batch
            size is an error then. Default: False.
        backend: "auto" or a name, see `snnkernels.available_backends`. Default: "auto".
        **parameters: of the step, where its defaults do not hold: numbers, tensors, or options
            such as a surrogate. A number that is not learned stays a Python number, which
            PyTorch computes with in double precision: ``1 - 0.9`` may differ by one unit in the
            last place from ``1 - alpha`` of a learned alpha of 0.9.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown name, a wrong shape, or a step that cannot be traced.

    Shape:
        x `[T, N, *]`, or a tuple of them where the step has several inputs; the outputs the same.

    Example:
        >>> import torch, snnkernels
        >>> from snnkernels.nn.neurons import se_adlif
        >>> layer = snnkernels.Neuron(se_adlif, learn=("alpha", "a", "b"), channels=16)
        >>> layer(torch.rand(8, 2, 16)).shape
        torch.Size([8, 2, 16])
    """

    def __init__(
        self,
        step: Callable,
        *,
        state: Sequence[float] | None = None,
        inputs: int = 1,
        outputs: int | Sequence[str] = 1,
        learn: Sequence[str] = (),
        channels: int | None = None,
        shape: Sequence[int] | None = None,
        stateful: bool = False,
        backend: str = "auto",
        **parameters: float | Tensor | Hashable,
    ) -> None:
        super().__init__(stateful, channels)
        self.neuron = fuse(step, inputs=inputs, outputs=outputs)
        self.function = step
        self.backend = backend
        names = self.neuron.parameters
        self._refuse_names(names)
        values = {**names, **parameters}
        unknown = [n for n in (*parameters, *learn) if n not in names]
        if unknown:
            raise ValueError(f"the step has no parameter {unknown[0]!r}; it has {', '.join(names)}")
        missing = [n for n, value in values.items() if value is inspect.Parameter.empty]
        if missing:
            raise ValueError(f"the step needs a value for {', '.join(missing)}")
        if channels is not None and shape is not None:
            raise ValueError("channels and shape are both set; learned values have one shape")
        size = (channels,) if channels is not None else () if shape is None else tuple(shape)
        for name, value in values.items():
            self._parameter(name, value, name in learn, size)
        self._first = self._first_state(state)
        self.equations()  # what cannot be traced is an error here, not later

    def _refuse_names(self, names) -> None:
        taken = set(dir(nn.Module())) | set(self.__dict__) | set(dir(type(self)))
        taken |= set(inspect.signature(type(self).__init__).parameters)
        clash = sorted(taken.intersection(names))
        if clash:
            raise ValueError(
                f"parameters of the step must not be named {', '.join(clash)}: a layer or its "
                "arguments have that name"
            )

    def _parameter(self, name: str, value: object, learned: bool, size: tuple[int, ...]) -> None:
        """Keep a parameter of the step: what is learned, a tensor, a number, or an option."""
        if not learned and not isinstance(value, Tensor):
            if is_number(value):
                self._number(name, value)
            else:
                setattr(self, name, value)
            return
        if not is_number(value) and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a number or a tensor to be learned; got {value!r}")
        tensor = torch.as_tensor(value, dtype=torch.float32)
        if learned and size and tensor.shape != size:
            if tensor.ndim:
                raise ValueError(
                    f"{name} must be a number or of shape {list(size)}; got {list(tensor.shape)}"
                )
            tensor = tensor.expand(size)
        self._keep(name, tensor, learned)

    def _first_state(self, state: Sequence[float] | None) -> tuple[float, ...] | None:
        names = self.neuron.state_names
        if state is None:
            return None
        numbers = [type(part) in (int, float) for part in state]
        if len(state) != len(names) or not all(numbers):
            raise ValueError(
                f"state must be a number for each of {', '.join(names)}; got {state!r}"
            )
        return tuple(map(float, state))

    def _parameters_now(self) -> dict:
        return {name: getattr(self, name) for name in self.neuron.parameters}

    def step(self, x_t: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Run one step of a stream, carrying the state whether or not the layer is stateful.

        Args:
            x_t: input of one step `[N, *]`, or a tuple of them.

        Returns:
            The output of the step, or a tuple of them.
        """
        x_t = (x_t,) if isinstance(x_t, Tensor) else x_t
        out = self._run(tuple(x.unsqueeze(0) for x in x_t), True)
        return out.squeeze(0) if isinstance(out, Tensor) else tuple(o.squeeze(0) for o in out)

    def _run(self, x, carry: bool):
        first = x if isinstance(x, Tensor) else x[0]
        start = self._start(first, carry)
        *out, state = self.neuron(
            x,
            self._first if start is None else start,
            backend=self.backend,
            **self._parameters_now(),
        )
        self._end(state, first, carry)
        return tuple(out) if len(out) > 1 else out[0]

    def equations(self) -> str:
        """The step as it was traced, one equation a line."""
        return self.neuron.equations(self._parameters_now())[1]

    def extra_repr(self) -> str:
        program, text = self.neuron.equations(self._parameters_now())
        learned = ", ".join(name for name, _ in self.named_parameters()) or "nothing"
        name = getattr(self.function, "__name__", repr(self.function))
        lines = [name, *text.splitlines(), f"learned: {learned}", f"backend {self.backend}"]
        if "cpp" in available_backends():
            lines.append(f"on the CPU with cpp: {load('cpp_program').how(program)}")
        return "\n".join([*lines, "elsewhere, and with torch: instruction by instruction"])
