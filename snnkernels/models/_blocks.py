"""Blocks that several networks share. Everything is `[T, N, *]`, all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkernels.core.checks import check_choice, check_share, check_whole, check_wholes
from snnkernels.nn._chunks import InChunks
from snnkernels.nn._saved import MOST
from snnkernels.nn.lif import LIF
from snnkernels.nn.over_time import OverTime
from snnkernels.nn.readout import LeakyReadout, mean, total


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


class SequenceNetwork(nn.Module):
    """What the networks share: the shape and number of steps, and the checks of both.

    Args:
        step_shape: of one step of one sample.
        steps: T for a constant input, and the most steps of a sequence.
        **wholes: other options that must be whole numbers >= 1, to be checked.
    """

    only_all_steps = False  # a sequence has exactly ``steps`` steps

    def __init__(self, step_shape: tuple[int, ...], steps: int, **wholes: int) -> None:
        super().__init__()
        check_wholes(steps=steps, **wholes)
        self.step_shape, self.steps = step_shape, steps

    def sequence(self, x: Tensor) -> Tensor:
        """The network's input as `[T, N, *]`, see `as_sequence`."""
        x = as_sequence(x, self.steps, self.step_shape)
        if self.only_all_steps and x.shape[0] != self.steps:
            raise ValueError(f"x must have exactly steps = {self.steps} steps; got {x.shape[0]}")
        return x


def init_weights(module: nn.Module, init: Callable[..., Tensor], **options) -> None:
    """Start the weights of every convolution and linear layer in a module with ``init``."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            init(part.weight, **options)


class Projection(nn.Conv2d):
    """A 1x1 convolution of every ``every``-th pixel, without bias: the shortcut of a stage.

    The pixels are taken first and the convolution has stride 1. With stride 2 the weight gradient
    of oneDNN, as PyTorch 2.13 has it, writes past a buffer where channels are no multiple of 16.

    Args:
        cin: channels of the input.
        cout: channels of the output.
        every: 2 halves height and width.

    Shape:
        x `[N, cin, H, W]`, output `[N, cout, ceil(H / every), ceil(W / every)]`.
    """

    def __init__(self, cin: int, cout: int, every: int) -> None:
        super().__init__(cin, cout, 1, bias=False)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        """Take the pixels, convolve."""
        if self.every > 1:  # the mean over one pixel: its backward pass writes the input once
            x = F.avg_pool2d(x, 1, self.every)
        return super().forward(x)


class Weights(OverTime):
    """Weights and pooling over time; a constant input is worked on once and expanded again.

    Args:
        *modules: without memory and without chance (no dropout, no batch norm), run one after the
            other.
        save: how x is kept for the backward pass, see `snnkernels.OverTime`. Default: None.

    Shape:
        x `[T, N, *]`; the modules see `[T * N, *]`.
    """

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
        return self._run(x, again)


def check_save(save: str | None, spiking: bool) -> str | None:
    """The ``save`` of `snnkernels.OverTime` for the spikes of a network, which its twin has not."""
    check_choice("save", save, (None, *MOST))
    return save if spiking else None


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


class StepDropout(InChunks, nn.Module):
    """Dropout with one mask for all time steps (Lee et al. 2019; Stöckl's thesis, sec. 5.2.5).

    Args:
        p: share of neurons that are silent for the whole sequence. Default: 0.25.

    Shape:
        x `[T, N, *]`, output the same.
    """

    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        check_share(p=p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop and scale by 1 / (1 - p) in training, pass through in evaluation."""
        if not self.training or self.p == 0:
            return x
        mask = self._chunk.drawn if self._steps_before else None
        if mask is None:
            mask = torch.empty_like(x[:1]).bernoulli_(1 - self.p).div_(1 - self.p)
        if self._chunk is not None:
            self._chunk.drawn = mask
        return x * mask

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Vote(nn.Module):
    """Every class is the mean of ``voters`` neighbouring outputs (Fang et al. 2021; "boosting").

    Args:
        voters: outputs per class. Default: 10.

    Shape:
        x `[..., classes * voters]`, output `[..., classes]`, float32 (float64 for float64 x).
    """

    def __init__(self, voters: int = 10) -> None:
        super().__init__()
        check_whole("voters", voters)
        self.voters = voters

    def forward(self, x: Tensor) -> Tensor:
        """Average each class's voters."""
        return mean(x.unflatten(-1, (-1, self.voters)), -1)

    def extra_repr(self) -> str:
        return f"voters={self.voters}"


READOUTS = ("rate", "count", "spikes", "potential", "potentials")


class Readout(nn.Module):
    """The output layer of a network that classifies by spikes or by potentials.

    Args:
        output: "rate" gives spikes per step, "count" the number of spikes, "spikes" the whole
            sequence, "potential" the last potential of neurons that neither leak nor fire,
            "potentials" that of every step.
        **options: those of the output neurons, see `LIF`.

    Shape:
        x `[T, N, *]`; output `[N, *]` in float32 (float64 for float64 x), or `[T, N, *]`: for
        "potentials" in float32 likewise, for "spikes" in x's dtype.
    """

    def __init__(self, output: str, **options) -> None:
        super().__init__()
        check_choice("readout", output, READOUTS)
        self.output = output
        if output in ("potential", "potentials"):
            steps = "last" if output == "potential" else "sequence"
            self.neuron = LeakyReadout(output=steps, backend=options.get("backend", "auto"))
        else:
            self.neuron = LIF(**options)

    def forward(self, x: Tensor) -> Tensor:
        """Read out `[T, N, *]`."""
        out = self.neuron(x)
        if self.output == "rate":
            return mean(out)
        return total(out) if self.output == "count" else out

    def extra_repr(self) -> str:
        return f"output={self.output!r}"
