"""`Adapter`: what a library's file tells about its neuron modules, and how they run then.

A library has a line in `snnkernels.convert.swap.LIBRARIES` and a file of its name beside this one,
which is imported when a network has its modules and the installed version is one that is tested.
The file gives ``find(module)`` and subclasses of `Adapter`. ``find`` returns an instance of one of
them where the module can run fused; where it cannot, the reason as a sentence without a capital;
and None where it is no neuron. It is given a module whose class is swapped or not:
`original_class` is the library's.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import is_dataclass
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkernels.backends import choose
from snnkernels.convert.fused import LINK, Kept, Link, link, original_class
from snnkernels.core.derivatives import is_transformed
from snnkernels.core.program import parse
from snnkernels.core.trace import trace
from snnkernels.ops._program import run as run_program

# PyTorch, C++ and a GPU may round these in their last place each in their own way.
_INEXACT = ("exp", "log", "tanh", "sigmoid", "sin", "cos", "pow", "sqrt")
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training"}
_MOST_TRACES = 512


class Step(NamedTuple):
    """A traced step.

    Attributes:
        program: the canonical text.
        numbers: values of its slots.
        used: of each tensor that was passed, whether it has a gradient.
        numerics: how near its spikes and states are to the library's, in words.
    """

    program: str
    numbers: tuple[float, ...]
    used: tuple[bool, ...]
    numerics: str


class Adapter:
    """How one kind of a library's neuron modules runs over time.

    An adapter has no state of its own: it is about a class of modules, and each method is given
    the module. Its step is traced, once for equal options; so the library's own code decides the
    numbers.

    Subclasses give:

    * ``over_time``, the name of the method of the module that runs over time and is replaced:
      default "forward";
    * `step`, one step of the module, by the module's own code, and `states`, how many it has;
    * `call`, which answers a call of ``over_time``: takes the states from where the library keeps
      them, calls `run`, and puts the new ones there;
    * ``inputs`` and ``outputs``, how many the step has: default 1;
    * ``changing``, names of attributes that the step does not read and that change from call to
      call, such as a recording; a step that sets any other is kept;
    * ``one_step``, whether the library's module is called once for each step, so that only
      `snnkernels.run_over_time` runs it: default False;
    * where the defaults do not hold, `tensors` and `assign` (values that the step reads and that
      are tensors but neither parameters nor buffers), and `options` (what the report shows).
    """

    over_time = "forward"
    inputs = 1
    outputs = 1
    changing: frozenset[str] = frozenset()
    one_step = False

    def states(self, module: nn.Module) -> int:
        """How many states the step has."""
        raise NotImplementedError

    def step(
        self, module: nn.Module, x: tuple[Tensor, ...], states: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step of the module.

        Args:
            module: a stand-in of the library's own class, with the attributes of the module and
                the tensors of `tensors` replaced; what is set on it is forgotten.
            x: inputs of one step `[N, *]`.
            states: before the step `[N, *]`.

        Returns:
            The outputs of the step, and the states after it, in their order.
        """
        raise NotImplementedError

    def call(self, module: nn.Module, *args, **kwargs):
        """Answer a call of ``over_time`` in the library's form.

        Raises:
            Kept: the call is one for the library's own code; nothing has changed yet.
        """
        raise NotImplementedError

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The tensors that the step may read, by name: parameters and floating-point buffers."""
        buffers = {k: b for k, b in module.named_buffers() if b.is_floating_point()}
        return dict(module.named_parameters()) | buffers

    def assign(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Put tensors in the place of those of `tensors`, in a stand-in."""
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            owner = module
            for part in path:
                owner = owner._modules[part]
            kind = owner._parameters if last in owner._parameters else owner._buffers
            kind[last] = tensor

    def options(self, module: nn.Module) -> dict[str, object]:
        """What the report shows: the arguments of its constructors that are attributes."""
        kinds = original_class(module).__mro__
        own = (k for k in kinds if "__init__" in vars(k) and not k.__module__.startswith("torch."))
        names = dict.fromkeys(n for k in own for n in inspect.signature(k.__init__).parameters)
        return {n: getattr(module, n) for n in names if n != "self" and hasattr(module, n)}

    def run(
        self,
        module: nn.Module,
        x: Tensor | tuple[Tensor, ...],
        states: Sequence[Tensor | float],
        record: tuple[int, ...] = (),
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run all time steps of a fused module.

        Args:
            module: as `call` was given it.
            x: inputs `[T, N, *]`, in any memory format: `[B, T, *]` as ``x.transpose(0, 1)``.
            states: where to start: numbers, or tensors that broadcast to `[N, *]`.
            record: which states to keep of all time steps.

        Returns:
            The outputs `[T, N, *]` in x's dtype; the states after the last step `[N, *]` in
            float32, which own their memory; the recorded states `[T, N, *]` in float32.

        Raises:
            Kept: the call cannot run fused.
            RuntimeError: the backend that the user named is not available.
        """
        x = (x,) if isinstance(x, Tensor) else x
        backend = self.check(module, *x)
        shape = x[0].shape
        states = [_state(s, x[0], link(module).allow_fp32_state) for s in states]
        tensors = self.tensors(module)
        step = self.program(module, tensors, record)
        values = [
            v if used else v.detach() for v, used in zip(tensors.values(), step.used, strict=True)
        ]
        # Where a value differs from sample to sample, all neurons are of one sample.
        if len(shape) < 2 or any(v.ndim == len(shape) - 1 and v.shape[0] > 1 for v in values):
            x = tuple(each.unsqueeze(1) for each in x)
        start = [0.0 if isinstance(s, Tensor) else s for s in states]
        outputs, states = run_program(
            step.program,
            x,
            [s.view(x[0].shape[1:]) if isinstance(s, Tensor) else None for s in states],
            start,
            [_sample_shaped(v, x[0]) for v in values],
            step.numbers,
            [False] * self.outputs + [True] * len(record),
            backend,
        )
        if x[0].shape != shape:
            outputs = [o.view(shape) for o in outputs]
            states = [s.view(shape[1:]).clone() for s in states]  # in-place changes take no view
        outputs, states = tuple(outputs), tuple(states)
        return outputs[: self.outputs], states, outputs[self.outputs :]

    def check(self, module: nn.Module, *x: Tensor) -> str:
        """The backend that `run` takes for these inputs `[T, N, *]`.

        Raises:
            Kept: they cannot run fused. For a `call` that looks at them before it runs.
        """
        return _backend(link(module), x)

    def program(
        self,
        module: nn.Module,
        tensors: dict[str, Tensor],
        record: tuple[int, ...] = (),
    ) -> Step:
        """The module's step, traced with its options as they are.

        Args:
            module: fused or not.
            tensors: its `tensors`. Only those that require gradients get any.
            record: which states are outputs too.

        Raises:
            Kept: it cannot be traced.
        """
        options = _options(module, self.changing)
        learned = tuple((name, tensor.requires_grad) for name, tensor in tensors.items())
        key = type(self), original_class(module), options, learned, record
        found = _traces.get(key)
        if found is None:
            if torch.compiler.is_compiling():
                raise Kept("its options have changed since it was last traced, without compile")
            found = self._trace(module, dict(learned), record)
            if len(_traces) >= _MOST_TRACES:
                del _traces[next(iter(_traces))]
            _traces[key] = found
        if isinstance(found, str):
            raise Kept(found)
        return found

    def _trace(self, module, learned: dict[str, bool], record) -> Step | str:
        def step(*leaves: Tensor, **values: Tensor) -> tuple[Tensor, ...]:
            copy = stand_in(module)
            self.assign(copy, {k: v if learned[k] else v.detach() for k, v in values.items()})
            before = dict(vars(copy))
            outputs, after = self.step(copy, leaves[: self.inputs], leaves[self.inputs :])
            for name, value in vars(copy).items():
                if before.get(name) is not value and name not in self.changing:
                    raise ValueError(f"its step sets its attribute {name}, which would be lost")
            return *outputs, *(after[k] for k in record), *after

        step.__qualname__ = original_class(module).__name__
        try:
            outputs = self.outputs + len(record)
            traced = trace(step, self.inputs, self.states(module), outputs, tuple(learned), {})
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            return str(error) or f"its step fails with {type(error).__name__} where it is traced"
        if traced.constants:
            return "its step reads a tensor that is neither a parameter nor a buffer"
        program = parse(traced.program)
        used = program.gradients[len(program.gradients) - len(learned) :]
        inexact = sorted({i.operation for i in program.forward} & set(_INEXACT))
        numerics = f"within 2 ulp: {', '.join(inexact)} at each step" if inexact else "same bits"
        return Step(traced.program, traced.numbers, tuple(u is not None for u in used), numerics)


_traces: dict[tuple, Step | str] = {}


def stand_in(module: nn.Module) -> nn.Module:
    """A module of the library's class with the same attributes, that may be written to."""
    copy = object.__new__(original_class(module))
    for name, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:
            value = MethodType(value.__func__, copy)
        vars(copy)[name] = dict(value) if type(value) is dict else value
    vars(copy)["_modules"] = {k: m and stand_in(m) for k, m in module._modules.items()}
    return copy


def _options(module: nn.Module, changing: frozenset[str] = frozenset()) -> Hashable:
    """All that a step may read of a module but tensors, as what a trace is known by."""
    skipped = _BOOKKEEPING | {LINK} | changing
    own = {k: v for k, v in vars(module).items() if k not in skipped}
    for name, value in own.items():
        if isinstance(value, MethodType) and value.__self__ is module:
            own[name] = value.__func__
    for name, part in module.named_modules():
        if name and (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks):
            raise Kept(f"hooks on its {name} would not see each step")
    parts = [(k, original_class(m), _options(m)) for k, m in module._modules.items() if m]
    return _frozen(own), tuple(parts)


def _frozen(value: object) -> Hashable:
    if isinstance(value, float):
        return "float", value.hex()
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, dict):
        return dict, tuple((k, _frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_frozen, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_frozen, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), _frozen(vars(value))
    if isinstance(value, nn.Module):  # in a list
        return original_class(value), _options(value)
    if not isinstance(value, Hashable):
        raise Kept(f"an attribute is of {type(value).__name__}, which may change unseen")
    return type(value), value


def _backend(here: Link, x: tuple[Tensor, ...]) -> str:
    """The backend for a call, or the reason why there is none."""
    first = x[0]
    if is_transformed():
        raise Kept("a transform of torch.func is at work")
    for each in x:
        if not isinstance(each, Tensor) or each.layout != torch.strided:
            raise Kept("the input is no dense tensor")
        if each.ndim == 0 or each.numel() == 0:
            raise Kept("the input has no time steps or no neurons")
        if (each.shape, each.dtype, each.device) != (first.shape, first.dtype, first.device):
            raise Kept("the inputs differ in shape, dtype or device")
    if first.dtype in (torch.bfloat16, torch.float16):
        if not here.allow_fp32_state:
            raise Kept(f"the state would be in {first.dtype}: see allow_fp32_state")
    elif first.dtype != torch.float32:
        raise Kept(f"the input is in {first.dtype}")
    backend = choose(here.backend, first.device.type, first.dtype, "program")
    if backend == "torch" and here.backend == "auto":
        raise Kept(f"there is no kernel for {first.device.type} here")
    return backend


def _state(state: Tensor | float, x: Tensor, allow_fp32_state: bool) -> Tensor | float:
    """Where a state starts: a number, or a tensor in float32 of the shape of a step."""
    if not isinstance(state, Tensor):
        return float(state)
    half = state.dtype in (torch.bfloat16, torch.float16)
    if state.dtype == torch.float64 or state.is_complex() or (half and not allow_fp32_state):
        raise Kept(f"a state is in {state.dtype}")
    if state.device != x.device:
        raise Kept(f"a state is on {state.device}, the input on {x.device}")
    shape = x.shape[1:]
    if state.ndim > len(shape) or any(
        a not in (1, b) for a, b in zip(state.shape[::-1], shape[::-1], strict=False)
    ):
        raise Kept(f"a state of shape {list(state.shape)} does not fit a step {list(shape)}")
    state = state.to(torch.float32).expand(shape)
    if not torch.compiler.is_compiling() and state.is_inference():
        state = state.clone()  # outside of inference mode a graph cannot keep it
    return state


def _sample_shaped(value: Tensor, x: Tensor) -> Tensor:
    """A value that broadcasts to `[N, *]`, as the private ops take it."""
    sample = x.shape[2:]
    if value.device != x.device and value.ndim:
        raise Kept(f"a parameter is on {value.device}, the input on {x.device}")
    if value.is_floating_point() and value.dtype not in (torch.float32, x.dtype):
        raise Kept(f"a parameter is in {value.dtype}")
    value = value.to(x.device, torch.float32)
    if value.numel() == 1:
        return value.reshape(())
    if value.ndim == len(sample) + 1:
        value = value.squeeze(0)
    if value.ndim > len(sample) or any(
        a not in (1, b) for a, b in zip(value.shape[::-1], sample[::-1], strict=False)
    ):
        raise Kept(f"a parameter of shape {list(value.shape)} does not fit {list(x.shape)}")
    per_channel = value.ndim == len(sample) and value.shape[0] == sample[0] == value.numel()
    return value if per_channel else value.expand(sample)
