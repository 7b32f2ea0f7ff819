"""Blocks that several networks share. Everything is `[T, N, *]`, all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_choice, check_whole
from snnkernels.nn.lif import LIF
from snnkernels.nn.over_time import OverTime
from snnkernels.nn.readout import LeakyReadout


def as_sequence(x: Tensor, steps: int, step_shape: Sequence[int]) -> Tensor:
    """The input of a network as `[T, N, *]`: an image is shown at every step, without a copy.

    Args:
        x: one input for all steps `[N, *]`, or a sequence `[T, N, *]`.
        steps: T for a constant input; the most that a sequence may have.
        step_shape: shape of one step of one sample, as the network was built for it.

    Returns:
        `[T, N, *]`; for `[N, *]` with stride 0 over T, so that `Weights` and `BNTT` compute what
        they can once. Images come out channels_last.

    Raises:
        ValueError: another shape, or more steps than the network has.
    """
    want = tuple(step_shape)
    if x.ndim not in (len(want) + 1, len(want) + 2) or tuple(x.shape[-len(want) :]) != want:
        size = ", ".join(map(str, want))
        raise ValueError(f"x must be [N, {size}] or [T, N, {size}]; got {list(x.shape)}")
    constant = x.ndim == len(want) + 1
    if not constant and not 1 <= x.shape[0] <= steps:
        raise ValueError(f"x must have 1 to steps = {steps} time steps; got {x.shape[0]}")
    if len(want) == 3:
        flat = x if constant else x.flatten(0, 1)
        flat = flat.contiguous(memory_format=torch.channels_last)
        x = flat if constant else flat.unflatten(0, x.shape[:2])
    return x.expand(steps, *x.shape) if constant else x


def is_constant(x: Tensor) -> bool:
    """Whether `[T, N, *]` is one step expanded over T."""
    return x.shape[0] > 1 and x.stride(0) == 0


class Weights(OverTime):
    """Weights and pooling over time; a constant input is worked on once and expanded again.

    Args:
        *modules: without memory and without chance (no dropout, no batch norm), run one after the
            other.
        whole: the input holds whole numbers of at most 127, as spikes and sums of spikes are. It is
            then kept for the backward pass in one byte each, which changes no bit. Default: False.

    Shape:
        x `[T, N, *]`; the modules see `[T * N, *]`.
    """

    def __init__(self, *modules: nn.Module, whole: bool = False) -> None:
        super().__init__(*modules)
        self.whole = whole

    def forward(self, x: Tensor, again: Callable[[], Tensor] | None = None) -> Tensor:
        """Run the modules on every step.

        Args:
            x: `[T, N, *]`.
            again: works out x once more; it is then called in the backward pass, and x is not kept
                at all. Default: None.
        """
        if is_constant(x):
            once = self.module(x[0])
            return once.expand(x.shape[0], *once.shape)
        shape = x.flatten(0, 1).shape
        plain = again is None and not self.whole
        # What is kept of x is known by its shape, which no weight may share.
        if plain or not torch.is_grad_enabled() or any(p.shape == shape for p in self.parameters()):
            return super().forward(x)

        def pack(kept: Tensor) -> Tensor | Callable[[], Tensor]:
            if kept.shape != shape or not kept.is_floating_point():
                return kept
            dtype = kept.dtype
            if again is not None:
                return lambda: again().flatten(0, 1).to(dtype)
            byte = kept.to(torch.int8)
            return lambda: byte.to(dtype)

        @torch.no_grad()
        def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed()

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return super().forward(x)


class StepsNorm(nn.Module):
    """An ordinary batch norm whose statistics are taken over all steps together.

    Args:
        channels: C.

    Shape:
        x `[T, N, C, H, W]`, output the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class StepDropout(nn.Module):
    """Dropout with one mask for all time steps (Lee et al. 2019; Stöckl's thesis, sec. 5.2.5).

    Args:
        p: share of neurons that are silent for the whole sequence. Default: 0.25.

    Shape:
        x `[T, N, *]`, output the same.
    """

    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        if not isinstance(p, (int, float)) or not 0 <= p < 1:
            raise ValueError(f"p must be a number in [0, 1); got {p!r}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop and scale by 1 / (1 - p) in training, pass through in evaluation."""
        if not self.training or self.p == 0:
            return x
        return x * torch.empty_like(x[:1]).bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Vote(nn.Module):
    """Every class is the mean of ``voters`` neighbouring outputs (Fang et al. 2021; "boosting").

    Args:
        voters: outputs per class. Default: 10.

    Shape:
        x `[..., classes * voters]`, output `[..., classes]`.
    """

    def __init__(self, voters: int = 10) -> None:
        super().__init__()
        check_whole("voters", voters)
        self.voters = voters

    def forward(self, x: Tensor) -> Tensor:
        """Average each class's voters."""
        return x.unflatten(-1, (-1, self.voters)).mean(-1)

    def extra_repr(self) -> str:
        return f"voters={self.voters}"


READOUTS = ("rate", "count", "spikes", "potential")


class Readout(nn.Module):
    """The output layer of a network that classifies by spikes or by potentials.

    Args:
        output: "rate" gives spikes per step, "count" the number of spikes, "spikes" the whole
            sequence, "potential" the last potential of neurons that neither leak nor fire.
        **options: those of the output neurons, see `LIF`.

    Shape:
        x `[T, N, *]`; output `[N, *]`, or `[T, N, *]` for "spikes".
    """

    def __init__(self, output: str, **options) -> None:
        super().__init__()
        check_choice("readout", output, READOUTS)
        self.output = output
        if output == "potential":
            self.neuron = LeakyReadout(backend=options.get("backend", "auto"))
        else:
            self.neuron = LIF(**options)

    def forward(self, x: Tensor) -> Tensor:
        """Read out `[T, N, *]`."""
        out = self.neuron(x)
        if self.output == "rate":
            return out.mean(0)
        return out.sum(0) if self.output == "count" else out

    def extra_repr(self) -> str:
        return f"output={self.output!r}"
