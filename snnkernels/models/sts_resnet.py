"""ConvSNN and STS-ResNet (Samadzadeh et al., "Convolutional spiking neural networks for
spatio-temporal feature extraction").
"""  # noqa: D205, D415

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_share, check_size, is_number
from snnkernels.core.surrogates import Gaussian, Surrogate
from snnkernels.models._blocks import (
    Projection,
    Readout,
    SequenceNetwork,
    StepDropout,
    Weights,
    init_weights,
)
from snnkernels.nn._numbers import NumbersInStateDict
from snnkernels.nn.lif import LIF
from snnkernels.ops.lif import lif

SURROGATE = Gaussian(1 / 6)  # N(theta, 1/6), sec. 5.3


class HybridLIF(NumbersInStateDict):
    """Neurons that fire, or stand in for themselves by a shifted leaky ReLU (sec. 4.1).

    Before the switch: no reset, and ``f(h) = h where h >= v_threshold else -beta * h`` (eq. 6-7).

    Args:
        beta: slope below the threshold, >= 0. None, which the output layer has, fires before the
            switch too, but without reset. Default: 0.01.
        **options: those of `LIF`.

    Attributes:
        firing: False for the first epochs of the hybrid training; ``state_dict`` has it.
            Default: True.
    """

    def __init__(self, *, beta: float | None = 0.01, **options) -> None:
        super().__init__()
        if beta is not None and not (is_number(beta) and 0 <= beta < inf):
            raise ValueError(f"beta must be None or a number >= 0; got {beta!r}")
        self.beta = beta
        self._number("firing", True)
        self.neuron = LIF(**options)

    @property
    def needs_all_steps(self) -> str | None:
        """Why it cannot be run in chunks, before the switch."""
        return None if self.firing else "before it fires, it starts from a potential of zero"

    def forward(self, x: Tensor) -> Tensor:
        """Spikes, or the stand-in; same shape as x."""
        if self.firing:
            return self.neuron(x)
        options = self.neuron.options
        s, _, h = lif(
            x,
            decay=self.neuron.decay,
            v_threshold=self.neuron.v_threshold,
            reset="none",
            surrogate=options["surrogate"],
            record="h",
            backend=options["backend"],
        )
        if self.beta is None:
            return s
        return torch.where(h >= self.neuron.v_threshold, h, -self.beta * h).to(x.dtype)


class _Hybrid(SequenceNetwork):
    """What both networks share: the neurons, the read-out and the phase of the training."""

    def __init__(
        self,
        in_channels,
        size,
        steps,
        decay,
        v_threshold,
        reset,
        surrogate,
        beta,
        backend,
        **wholes,
    ) -> None:
        super().__init__((in_channels, size, size), steps, in_channels=in_channels, **wholes)
        options = {
            "decay": decay,
            "v_threshold": v_threshold,
            "reset": reset,
            "surrogate": surrogate,
            "backend": backend,
        }
        self._options = options
        self._neuron = partial(HybridLIF, beta=beta, **options)

    def _readout(self) -> Readout:
        readout = Readout("rate", **self._options)
        readout.neuron = HybridLIF(beta=None, **self._options)
        return readout

    def pretrain(self, on: bool = True) -> None:
        """Start the first phase of the hybrid training (sec. 4.1), or the second.

        In the first no layer resets, and all but the last put the shifted leaky ReLU in place of
        spikes.

        Args:
            on: False goes on to spikes, with the reset that the network was built with.
        """
        for module in self.modules():
            if isinstance(module, HybridLIF):
                module.firing = not on


class ConvSNN(_Hybrid):
    """Two spiking convolutions and spiking dense layers, read out as firing rates (sec. 5.1).

    The paper gives the widths, 48-48. Chosen here: 3x3 kernels, 2x2 average pooling after each
    layer of neurons, one dense layer, biases. The authors' code has a second dense layer:
    ``hidden=128``.

    Args:
        channels: widths of the two convolutions. Default: (48, 48).
        hidden: neurons of a dense layer between the convolutions and the classes. Default: None,
            no such layer.
        num_classes: 10, or 20 for sequences with a direction. Default: 10.
        in_channels: Default: 1.
        size: pixels of the square input, a multiple of 4. Default: 28.
        steps: T. Default: 10.
        decay: 0.5; the paper takes 0.8 for CIFAR10-DVS. Default: 0.5.
        v_threshold: Default: 0.5.
        reset: "none", as in the paper's runs ("resting mechanism disabled"), or "hard" (eq. 1).
            Default: "none".
        surrogate: of all neurons; the paper also tried `Rectangle`. Default: the normal density of
            deviation 1/6, whose peak is 2.39; the authors' code has ``Gaussian(1 / 6, 0.977)``.
        beta: slope of the stand-in below the threshold, see `pretrain`. Default: 0.01.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[N, in_channels, size, size]` or `[T, N, in_channels, size, size]`; firing rates
        `[N, num_classes]`.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, int] = (48, 48),
        hidden: int | None = None,
        num_classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        steps: int = 10,
        decay: float = 0.5,
        v_threshold: float = 0.5,
        reset: str = "none",
        surrogate: Surrogate = SURROGATE,
        beta: float = 0.01,
        backend: str = "auto",
    ) -> None:
        first, second = channels
        wholes = {"num_classes": num_classes, "channels[0]": first, "channels[1]": second}
        wholes |= {} if hidden is None else {"hidden": hidden}
        neuron = (decay, v_threshold, reset, surrogate, beta, backend)
        super().__init__(in_channels, size, steps, *neuron, **wholes)
        check_size(size, 4)
        widths = [second * (size // 4) ** 2, num_classes]
        if hidden is not None:
            widths.insert(1, hidden)
        self.layers = nn.Sequential(
            Weights(nn.Conv2d(in_channels, first, 3, padding=1)),
            self._neuron(),
            Weights(nn.AvgPool2d(2), nn.Conv2d(first, second, 3, padding=1)),
            self._neuron(),
            Weights(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(*widths[:2])),
            *([] if hidden is None else [self._neuron(), Weights(nn.Linear(*widths[1:]))]),
        )
        self.readout = self._readout()

    def forward(self, x: Tensor) -> Tensor:
        """Firing rates of a batch."""
        return self.readout(self.layers(self.sequence(x)))


class _SubBlock(nn.Module):
    """Convolution, neurons, dropout, convolution, shortcut into the membrane, neurons."""

    def __init__(
        self,
        cin: int,
        cout: int,
        stride: int,
        dropout: float,
        neuron: Callable[[], HybridLIF],
    ) -> None:
        super().__init__()
        self.first = Weights(nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False))
        self.neuron1 = neuron()
        self.dropout = StepDropout(dropout)
        self.second = Weights(nn.Conv2d(cout, cout, 3, padding=1, bias=False))
        self.neuron2 = neuron()
        same = stride == 1 and cin == cout
        self.shortcut = None if same else Weights(Projection(cin, cout, stride))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        current = self.second(self.dropout(self.neuron1(self.first(x))))
        return self.neuron2(current + skip)


class STSResNet(_Hybrid):
    """STS-ResNet: 18 layers like ResNet-18, spikes everywhere, dropout for batch norm (sec. 4.2).

    A layer of neurons on the raw input, a 3x3 convolution, four blocks of two sub-blocks of two 3x3
    convolutions (each block but the first at half the resolution), and one dense layer of spiking
    neurons on the averages over all pixels of blocks 3 and 4, concatenated (fig. 5).

    Chosen here: the widths of ResNet-18 (the authors' public code has 64 in all blocks); shortcuts
    that add to the current of the second neurons, so that every layer's output stays binary; 1x1
    convolutions on shortcuts that change the shape; no biases; weights from He's normal
    distribution.

    Args:
        widths: filters of each of the four blocks. Default: (64, 128, 256, 512).
        num_classes: Default: 10.
        in_channels: 2 for event frames. Default: 1.
        size: pixels of the square input, at least 8. Default: 28.
        steps: T. Default: 10.
        decay: 0.5; the paper takes 0.8 for CIFAR10-DVS. Default: 0.5.
        v_threshold: Default: 0.5.
        reset: "none" as in the paper's runs, or "hard". Default: "none".
        dropout: share of neurons silenced inside sub-blocks, the same for all steps. Default: 0.25.
        surrogate: of all neurons; the paper also tried `Rectangle`. Default: the normal density of
            deviation 1/6, whose peak is 2.39; the authors' code has ``Gaussian(1 / 6, 0.977)``.
        beta: slope of the stand-in below the threshold, see `pretrain`. Default: 0.01.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[N, in_channels, size, size]` or `[T, N, in_channels, size, size]`; firing rates
        `[N, num_classes]`.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512),
        num_classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        steps: int = 10,
        decay: float = 0.5,
        v_threshold: float = 0.5,
        reset: str = "none",
        dropout: float = 0.25,
        surrogate: Surrogate = SURROGATE,
        beta: float = 0.01,
        backend: str = "auto",
    ) -> None:
        if len(widths) != 4:
            raise ValueError(f"widths must be those of the four blocks; got {widths!r}")
        wholes = {f"widths[{k}]": width for k, width in enumerate(widths)}
        wholes |= {"num_classes": num_classes}
        neuron = (decay, v_threshold, reset, surrogate, beta, backend)
        super().__init__(in_channels, size, steps, *neuron, **wholes)
        check_size(size, 1, least=8)
        check_share(dropout=dropout)
        self.input = self._neuron()
        self.stem = nn.Sequential(
            Weights(nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)),
            self._neuron(),
        )
        blocks, cin = [], widths[0]
        for k, cout in enumerate(widths):
            blocks.append(
                nn.Sequential(
                    _SubBlock(cin, cout, 1 if k == 0 else 2, dropout, self._neuron),
                    _SubBlock(cout, cout, 1, dropout, self._neuron),
                )
            )
            cin = cout
        self.blocks = nn.ModuleList(blocks)
        self.fc = Weights(nn.Linear(widths[2] + widths[3], num_classes, bias=False))
        self.readout = self._readout()
        for part in (self.stem, self.blocks):
            init_weights(part, nn.init.kaiming_normal_)

    def forward(self, x: Tensor) -> Tensor:
        """Firing rates of a batch."""
        x = self.stem(self.input(self.sequence(x)))
        pooled = []
        for block in self.blocks:
            x = block(x)
            pooled.append(x.mean((-2, -1)))
        return self.readout(self.fc(torch.cat(pooled[2:], -1)))
