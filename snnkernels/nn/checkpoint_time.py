"""The function `checkpoint_time`: back-propagation through a long sequence in chunks of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnkernels.core.checks import check_choice, check_whole
from snnkernels.nn._repeat import Left, Network, Part, Repeated, check_chunk, map_state, tensors_of

OUTPUTS = ("steps", "sum", "mean", "last")

Chunks = Sequence[Tensor] | Iterable[Tensor]


def checkpoint_time(
    model: nn.Module,
    x: Tensor | Chunks,
    chunk: int | None = None,
    *,
    truncate: int | None = None,
    output: str = "steps",
) -> Tensor | tuple[Tensor, ...]:
    """Run a network over a long sequence, and keep only what its chunks begin with.

    What ``model(x)`` gives, and its gradients by exact back-propagation through time, with memory
    for one chunk and for the states at the borders between chunks. The sequence is run chunk by
    chunk without a graph; the backward pass runs each chunk once more, from its last to its first.
    With c steps a chunk that takes memory for c + T / c steps, counting one for a border, and the
    time of one more forward pass.

    From chunk to chunk go the states of all layers of this library, stateful or not; which steps
    `snnkernels.nn.norm.BNTT` is at; and dropout masks that hold for all steps. A stateful layer
    starts at the state that it carries, and carries the last one afterwards. Whatever else a model
    keeps from one step to the next does not go: a convolution over time, `torch.nn.LSTM`, batch
    norm that takes statistics over all steps, and modules that set a tensor anew in every chunk, as
    neurons of other libraries do, are refused; what else there is cannot be told apart. Random
    numbers are those of the first run when a chunk runs again; they are not those that one call
    with all steps would draw.

    Outputs and gradients of x and of states have the bits of the run without chunks, where the
    model's other modules give a step the same bits whatever number of steps they see at once.
    (Matrix products of some libraries choose their order of summation by size.) Behind a filter
    (`snnkernels.IIRSynapse`, a synapse) gradients are rounded in another order where a chunk ends,
    as in a run in parts. Gradients of parameters are added up chunk by chunk, with a rounding error
    of ``eps * chunks * sum |gradient of a chunk|`` at most. Buffers, such as running statistics,
    change as in one run: what a chunk does to them when it runs again is dropped.

    Under `torch.autograd.detect_anomaly` a chunk that gives another result when it runs again is an
    error.

    Args:
        model: takes `[t, N, *]` for any t. Under `torch.nn.parallel.DistributedDataParallel`, call
            this function within the forward of the module that is wrapped.
        x: `[T, N, *]`, in any memory format; or a stream of chunks `[t, N, *]`, which are no leaves
            of the graph. Chunks of a sequence (with ``len`` and ``[]``), which may read a disk, are
            asked for a second time in the backward pass and must be the same then; those of any
            other iterable are kept until then.
        chunk: steps of a chunk, where x is a tensor. Default: the square root of T.
        truncate: cut the gradient of the states every so many steps, a multiple of ``chunk``
            (truncated back-propagation through time); None cuts it nowhere. Default: None.
        output: how the outputs of chunks make that of the sequence: "steps" puts `[t, N, *]` one
            behind the other, "sum" adds (spike counts), "mean" takes the mean over steps (rates),
            "last" takes that of the last chunk (a potential that is carried, as that of
            `snnkernels.LeakyReadout` and of S-ResNet). Default: "steps".

    Returns:
        What the model gives for all steps: a tensor, or a tuple of them.

    Raises:
        TypeError: model is no module, or a chunk no tensor.
        ValueError: an argument is not allowed, or a module of the model needs all steps at once.
        RuntimeError: a layer runs twice in a chunk, a module keeps a state that is not carried, or
            the model reads a tensor that requires a gradient and is none of its parameters.

    Example:
        >>> import torch, snnkernels
        >>> layer = snnkernels.LIF(decay=0.9)
        >>> x = torch.rand(1000, 2, 16, requires_grad=True)
        >>> s = snnkernels.checkpoint_time(layer, x, chunk=50)
        >>> torch.equal(s, layer(x))
        True
        >>> s.sum().backward()
    """
    _check_model(model)
    check_choice("output", output, OUTPUTS)
    if truncate is not None:
        check_whole("truncate", truncate)
    network = Network(model)
    total = _Total(output)
    states, step = network.states(), 0
    for piece, read in _pieces(x, chunk, truncate):
        if truncate and step and step % truncate == 0:
            states = [map_state(torch.detach, state) for state in states]
        part = Part(network, step, states, read)
        made = Repeated.apply(part, piece, *tensors_of(states), *network.learned)
        made = part.left.filled(made)
        network.check_held()
        total.add(made, part.steps)
        states = [
            start if end is None else end for start, end in zip(states, made.ends, strict=True)
        ]
        step += part.steps
        if truncate and (step - part.steps) // truncate != (step - 1) // truncate:
            raise ValueError(
                "truncate must be a multiple of the chunks' steps; got "
                f"{truncate} and a chunk that ends after {step} steps"
            )
    if step == 0:
        raise ValueError("x must have at least one chunk; got none")
    network.finish(states, total.penalties(step))
    return total.outputs(step)


def _check_model(model: nn.Module) -> None:
    """Refuse modules that cannot be run in parts."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {model!r}")
    for name, module in model.named_modules():
        why = getattr(module, "needs_all_steps", None)
        if getattr(module, "_chunk", None) is not None:
            why = "a call of checkpoint_time around this one does already"
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            why = (
                "it normalises by statistics of all steps together, which no chunk has. Put it in "
                "evaluation mode, or take snnkernels.nn.norm.BNTT, which has statistics per step"
            )
        elif isinstance(module, nn.RNNBase):
            why = "it starts from a state of zero"
        if why is not None:
            raise ValueError(
                f"checkpoint_time cannot run {type(module).__name__} "
                f"{name and name + ' '}in chunks: {why}"
            )


def _pieces(
    x: Tensor | Chunks, chunk: int | None, truncate: int | None
) -> Iterator[tuple[Tensor | None, Callable[[], Tensor] | None]]:
    """Chunks, each as a tensor that is kept, or as a function that reads it."""
    if isinstance(x, Tensor):
        if x.ndim < 2 or x.shape[0] == 0:
            raise ValueError(f"x must be [T, N, *] with T >= 1; got {list(x.shape)}")
        chunk = math.isqrt(x.shape[0] - 1) + 1 if chunk is None else chunk
        check_whole("chunk", chunk)
        if truncate is not None and truncate % chunk:
            raise ValueError(f"truncate must be a multiple of chunk = {chunk}; got {truncate}")
        # Not slices: the gradient of each would be of x's size.
        yield from ((piece, None) for piece in x.split(chunk))
        return
    if chunk is not None:
        raise ValueError(f"chunk is for a tensor: a stream comes in chunks; got chunk={chunk}")
    if isinstance(x, Sequence) or (hasattr(x, "__getitem__") and hasattr(x, "__len__")):
        yield from ((None, partial(x.__getitem__, i)) for i in range(len(x)))
    elif isinstance(x, Iterable):
        yield from ((check_chunk(piece), None) for piece in x)
    else:
        raise TypeError(f"x must be a tensor or a stream of chunks [t, N, *]; got {x!r}")


class _Total:
    """Outputs of chunks, put together as ``output`` says.

    Args:
        output: one of `OUTPUTS`.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self.parts: list[list[Tensor]] = []  # of each output, what is kept of the chunks
        self.penalty: list[Tensor | None] = []  # of each module, times the steps

    def add(self, left: Left, steps: int) -> None:
        """Take what the next chunk left."""
        self.parts = self.parts or [[] for _ in left.outputs]
        for parts, out in zip(self.parts, left.outputs, strict=True):
            if self.output == "steps":
                if out.ndim == 0 or out.shape[0] != steps:
                    raise ValueError(
                        f"output='steps' needs a model that gives [t, N, *] for t steps; got "
                        f"{list(out.shape)} for {steps}: take 'sum', 'mean' or 'last'"
                    )
                parts.append(out)
                continue
            if self.output == "mean":
                out = out * steps
            parts[:] = [out if self.output == "last" or not parts else parts[0] + out]
        penalties = [p if p is None else p * steps for p in left.penalties]
        earlier = self.penalty or [None] * len(penalties)
        self.penalty = [
            a if p is None else p if a is None else a + p
            for a, p in zip(earlier, penalties, strict=True)
        ]

    def outputs(self, steps: int) -> Tensor | tuple[Tensor, ...]:
        """The outputs of the whole sequence."""
        if self.output == "steps":
            made = [torch.cat(parts) for parts in self.parts]
        else:
            made = [p / steps if self.output == "mean" else p for (p,) in self.parts]
        return made[0] if len(made) == 1 else tuple(made)

    def penalties(self, steps: int) -> list[Tensor | None]:
        """Mean penalty of each module over all steps."""
        return [p if p is None else p / steps for p in self.penalty]
