"""A chunk of a sequence that runs again in the backward pass: what `checkpoint_time` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

from snnkernels.core.state import State
from snnkernels.nn._chunks import Chunk, InChunks

NamedState = tuple | None  # a NamedTuple of tensors; None where a layer has no such part


def map_state(function: Callable, state: NamedState) -> NamedState:
    """A state with a function's results for the parts that it has."""
    if state is None:
        return None
    return state._make(part if part is None else function(part) for part in state)


def tensors_of(states: Iterable[NamedState]) -> list[Tensor]:
    """The parts that states have, one behind the other."""
    return [part for state in states if state for part in state if part is not None]


def check_chunk(piece: Tensor) -> Tensor:
    """A chunk of a stream, or an error."""
    if not isinstance(piece, Tensor):
        raise TypeError(f"x must give chunks [t, N, *] that are tensors; got {piece!r}")
    if piece.ndim < 2 or piece.shape[0] == 0:
        raise ValueError(f"x must give chunks [t, N, *] with t >= 1; got {list(piece.shape)}")
    if piece.requires_grad:
        raise ValueError("x must be one tensor to get a gradient; got a stream of chunks that do")
    return piece


class Left(NamedTuple):
    """What a chunk leaves; after `emptied`, the form of that alone.

    Attributes:
        outputs: of the model.
        ends: state of each module with a memory; None where it has none or did not run.
        penalties: of the regularisers in them, or None.
    """

    outputs: Sequence[Tensor]
    ends: Sequence[NamedState]
    penalties: Sequence[Tensor | None]

    def tensors(self) -> list[Tensor]:
        """All of them, one behind the other."""
        return [*self.outputs, *tensors_of(self.ends), *tensors_of([self.penalties])]

    def filled(self, tensors: Iterable[Tensor]) -> Left:
        """The same form with other tensors, as `tensors` orders them."""
        parts = iter(tensors)
        following = partial(map_state, lambda _: next(parts))
        return Left(
            tuple(next(parts) for _ in self.outputs),
            [following(end) for end in self.ends],
            [p if p is None else next(parts) for p in self.penalties],
        )

    def emptied(self) -> Left:
        """The form, without the tensors."""
        return self.filled(True for _ in self.tensors())


class Network:
    """A model with what it learns and what it carries from chunk to chunk."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.memories = [m for m in model.modules() if isinstance(m, InChunks)]
        self.chunks = [Chunk() for _ in self.memories]
        self.learned = [t for t in (*model.parameters(), *model.buffers()) if t.requires_grad]
        self.held = self._held()

    def _held(self) -> dict[tuple[str, str], Tensor]:
        """Tensors that modules hold, buffers among them, by module and name."""
        found = {}
        for name, module in self.model.named_modules():
            for key, value in vars(module).items():
                values = value if isinstance(value, dict) else {key: value}
                found |= {(name, str(k)): v for k, v in values.items() if isinstance(v, Tensor)}
        return found

    def check_held(self) -> None:
        """Refuse a state that is not carried: a tensor that took another's place in a chunk."""
        before, self.held = self.held, self._held()
        for key, tensor in self.held.items():
            if before.get(key, tensor) is not tensor:
                name, attribute = key
                raise RuntimeError(
                    f"checkpoint_time does not carry {attribute!r} of the module {name!r}, which "
                    "every chunk sets anew: a chunk that runs again would start from a wrong one. "
                    "Layers of snnkernels are carried; networks of other libraries are not"
                )

    def states(self) -> list[NamedState]:
        """What the first chunk starts from."""
        return [module._state_before() for module in self.memories]

    def finish(self, states: Sequence[NamedState], penalties: Sequence[Tensor | None]) -> None:
        """Leave in the modules what one run of the whole sequence leaves there."""
        for module, state, penalty in zip(self.memories, states, penalties, strict=True):
            module._leave(state, penalty)

    @contextmanager
    def chunk(self, first: int, states: Sequence[NamedState], repeated: bool) -> Iterator[None]:
        """Within it, the modules run the chunk of the sequence that begins with step ``first``."""
        for module, chunk, state in zip(self.memories, self.chunks, states, strict=True):
            chunk.first, chunk.start, chunk.repeated = first, state, repeated
            chunk.end = chunk.penalty = None
            module._chunk = chunk
        try:
            yield
        finally:
            for module, chunk in zip(self.memories, self.chunks, strict=True):
                module._chunk = chunk.start = chunk.end = chunk.penalty = None

    def __call__(self, x: Tensor, repeated: bool) -> Left:
        """Run the model within `chunk`; what it does to buffers counts the first time only."""
        if repeated:
            buffers = {n: b.clone() for n, b in self.model.named_buffers() if not b.requires_grad}
            out = torch.func.functional_call(self.model, buffers, (x,))
        else:
            out = self.model(x)
        return Left(
            (out,) if isinstance(out, Tensor) else tuple(out),
            [chunk.end for chunk in self.chunks],
            [chunk.penalty for chunk in self.chunks],
        )

    def check_leaves(self, tensors: Iterable[Tensor], known: Iterable[Tensor]) -> None:
        """Refuse a gradient that would reach a tensor not known, and be lost."""
        known = {id(t) for t in known}
        nodes, seen = [t.grad_fn for t in tensors], {None}
        while nodes:
            node = nodes.pop()
            if node in seen:
                continue
            seen.add(node)
            if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in known:
                raise RuntimeError(
                    f"checkpoint_time finds a tensor of shape {list(node.variable.shape)} that "
                    "requires a gradient and is neither x nor a parameter or buffer of the model: "
                    "register it there, or detach() it"
                )
            nodes += [following for following, _ in node.next_functions]


class Settings:
    """Random numbers and autocast as they are now, to run something again under them."""

    def __init__(self, *tensors: Tensor) -> None:
        self.cpu, self.devices = torch.get_rng_state(), get_device_states(*tensors)
        kinds = {"cpu", *(t.device.type for t in tensors)}
        self.autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in kinds - {"meta"}
        }
        self.kind = next((t.device.type for t in tensors if t.device.type != "cpu"), "cuda")

    @contextmanager
    def same_casts(self) -> Iterator[None]:
        """With autocast as it was; without its cache, whose casts may have no graph."""
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.autocast.items():
                cast = torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False)
                stack.enter_context(cast)
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """With all of them as they were; afterwards, random numbers go on as they would have."""
        ids, states = self.devices
        with self.same_casts(), torch.random.fork_rng(ids, device_type=self.kind):
            torch.set_rng_state(self.cpu)
            set_device_states(ids, states, device_type=self.kind)
            yield


class Part:
    """One chunk: where it is in the sequence, and how to run it again as it ran first.

    Args:
        network: that runs it.
        first: how many steps come before.
        states: that it starts from; their form is kept.
        read: gives the chunk, where the graph does not keep it.

    Attributes:
        left: the form of what it leaves.
        steps: of the chunk.
    """

    def __init__(
        self,
        network: Network,
        first: int,
        states: Sequence[NamedState],
        read: Callable[[], Tensor] | None,
    ) -> None:
        self.network, self.first, self.read = network, first, read
        self.carried = len(tensors_of(states))
        self.start = Left((), states, ()).emptied()
        self.expected: list[Tensor] = []  # what it left, under detect_anomaly

    def run(
        self, x: Tensor | None, carried: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Run it first, without a graph; all that it leaves, and what of that has no gradient."""
        x = check_chunk(self.read()) if x is None else x
        self.steps = x.shape[0]
        self.settings = Settings(x, *self.network.learned)
        states = self.start.filled(carried).ends
        with self.settings.same_casts(), self.network.chunk(self.first, states, False):
            left = self.network(x, False)
        self.left = left.emptied()
        tensors = left.tensors()
        made = tuple(t.detach() for t in tensors)  # an output may be a state, or x
        if torch.is_anomaly_enabled():
            self.expected = [t.detach() for t in made]
        counters = {id(end.refractory) for end in left.ends if isinstance(end, State)}
        return made, [t for t, own in zip(made, tensors, strict=True) if id(own) in counters]

    def run_again(
        self, x: Tensor | None, carried: Sequence[Tensor], arriving: Sequence[Tensor | None], needs
    ) -> list[Tensor | None]:
        """Run it again, and back; the gradients of x, of what it started from, of what is learned.

        Args:
            x: the chunk, or None where it is read.
            carried: tensors of the states that it starts from.
            arriving: gradient of each tensor that it left, or None.
            needs: which gradients are wanted.
        """
        x = check_chunk(self.read()) if x is None else x
        leaves = [
            t.detach().requires_grad_(need) for t, need in zip((x, *carried), needs, strict=False)
        ]
        sources = [*leaves, *self.network.learned]
        states = self.start.filled(leaves[1:]).ends
        with (
            torch.enable_grad(),
            self.settings.again(),
            self.network.chunk(self.first, states, True),
        ):
            made = self.network(leaves[0], True).tensors()
            for was, now in zip(self.expected, made, strict=False):
                if not torch.equal(was, now):
                    raise RuntimeError(
                        "checkpoint_time: a chunk gave another result when it ran again. The model "
                        "keeps something between steps that it does not carry, or its input changed"
                    )
            pairs = [
                (out, gradient)
                for out, gradient in zip(made, arriving, strict=True)
                if gradient is not None and out.requires_grad
            ]
            self.network.check_leaves((out for out, _ in pairs), sources)
            wanted = [t for t, need in zip(sources, needs, strict=True) if need]
            if not pairs or not wanted:
                return [None] * len(sources)
            outs, gradients = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outs, wanted, gradients, allow_unused=True))
        return [next(found) if need else None for need in needs]


class Repeated(torch.autograd.Function):
    """A chunk whose graph is made in the backward pass.

    Arguments: its `Part`, x or None, the tensors of the states before it, and what is learned.
    """

    @staticmethod
    def forward(ctx, part: Part, x: Tensor | None, *tensors: Tensor):
        carried = tensors[: part.carried]
        ctx.part = part
        ctx.save_for_backward(x, *carried)
        ctx.set_materialize_grads(False)
        made, without_gradient = part.run(x, carried)
        ctx.mark_non_differentiable(*without_gradient)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx, *arriving: Tensor | None):
        x, *carried = ctx.saved_tensors
        return (None, *ctx.part.run_again(x, carried, arriving, ctx.needs_input_grad[1:]))
