"""ConvSNN and STS-ResNet (Samadzadeh et al., "Convolutional spiking neural networks for
spatio-temporal feature extraction").
"""  # noqa: D205, D415

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_share, check_size
from snnkernels.core.surrogates import Gaussian
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


class HybridLIF(NumbersInStateDict):
    """Neurons that fire, or stand in for themselves by a shifted leaky ReLU (sec. 4.1).

    Before the switch: no reset, and ``f(h) = h where h >= v_threshold else -beta * h`` (eq. 6-7).

    Args:
        beta: slope below the threshold. Default: 0.01.
        **options: those of `LIF`.

    Attributes:
        firing: False for the first epochs of the hybrid training; ``state_dict`` has it.
            Default: True.
    """

    def __init__(self, *, beta: float = 0.01, **options) -> None:
        super().__init__()
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
        _, _, h = lif(
            x,
            decay=self.neuron.decay,
            v_threshold=float("inf"),
            reset="none",
            record="h",
            backend=self.neuron.options["backend"],
        )
        return torch.where(h >= self.neuron.v_threshold, h, -self.beta * h).to(x.dtype)


class _Hybrid(SequenceNetwork):
    """What both networks share: the neurons' options and the phase of the training."""

    def __init__(
        self, in_channels, size, steps, decay, v_threshold, reset, backend, **wholes
    ) -> None:
        super().__init__((in_channels, size, size), steps, in_channels=in_channels, **wholes)
        self.options = {
            "decay": decay,
            "v_threshold": v_threshold,
            "reset": reset,
            "surrogate": Gaussian(1 / 6),
            "backend": backend,
        }

    def pretrain(self, on: bool = True) -> None:
        """Put all neurons but the last layer's in the non-firing phase, or back."""
        for module in self.modules():
            if isinstance(module, HybridLIF):
                module.firing = not on


class ConvSNN(_Hybrid):
    """Two spiking convolutions and a spiking dense layer, read out as firing rates (sec. 5.1).

    The paper gives the widths, 48-48. Chosen here: 3x3 kernels, 2x2 average pooling after each
    layer of neurons, one dense layer, biases.

    Args:
        channels: widths of the two convolutions. Default: (48, 48).
        num_classes: 10, or 20 for sequences with a direction. Default: 10.
        in_channels: Default: 1.
        size: pixels of the square input, a multiple of 4. Default: 28.
        steps: T. Default: 10.
        decay: 0.5; the paper takes 0.8 for CIFAR10-DVS. Default: 0.5.
        v_threshold: Default: 0.5.
        reset: "none", as in the paper's runs ("resting mechanism disabled"), or "hard" (eq. 1).
            Default: "none".
        backend: of all neurons. Default: "auto".

    Shape:
        x `[N, in_channels, size, size]` or `[T, N, in_channels, size, size]`; firing rates
        `[N, num_classes]`.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, int] = (48, 48),
        num_classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        steps: int = 10,
        decay: float = 0.5,
        v_threshold: float = 0.5,
        reset: str = "none",
        backend: str = "auto",
    ) -> None:
        first, second = channels
        wholes = {"num_classes": num_classes, "channels[0]": first, "channels[1]": second}
        super().__init__(in_channels, size, steps, decay, v_threshold, reset, backend, **wholes)
        check_size(size, 4)
        self.layers = nn.Sequential(
            Weights(nn.Conv2d(in_channels, first, 3, padding=1)),
            HybridLIF(**self.options),
            Weights(nn.AvgPool2d(2), nn.Conv2d(first, second, 3, padding=1)),
            HybridLIF(**self.options),
            Weights(
                nn.AvgPool2d(2), nn.Flatten(), nn.Linear(second * (size // 4) ** 2, num_classes)
            ),
        )
        self.readout = Readout("rate", **self.options)

    def forward(self, x: Tensor) -> Tensor:
        """Firing rates of a batch."""
        return self.readout(self.layers(self.sequence(x)))


class _SubBlock(nn.Module):
    """Convolution, neurons, dropout, convolution, shortcut into the membrane, neurons."""

    def __init__(self, cin: int, cout: int, stride: int, dropout: float, options: dict) -> None:
        super().__init__()
        self.first = Weights(nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False))
        self.neuron1 = HybridLIF(**options)
        self.dropout = StepDropout(dropout)
        self.second = Weights(nn.Conv2d(cout, cout, 3, padding=1, bias=False))
        self.neuron2 = HybridLIF(**options)
        same = stride == 1 and cin == cout
        self.shortcut = None if same else Weights(Projection(cin, cout, stride))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        current = self.second(self.dropout(self.neuron1(self.first(x))))
        return self.neuron2(current + skip)


class STSResNet(_Hybrid):
    """STS-ResNet: 18 layers like ResNet-18, spikes everywhere, dropout for batch norm (sec. 4.2).

    A layer of neurons on the raw input, a 3x3 convolution, four blocks of two sub-blocks of two 3x3
    convolutions (filters, 2, 4 and 8 filters wide, each but the first at half the resolution), and
    one dense layer of spiking neurons on the averages over all pixels of blocks 3 and 4,
    concatenated (fig. 5).

    Chosen here: the widths (64 as in ResNet-18), shortcuts that add to the current of the second
    neurons, so that every layer's output stays binary; 1x1 convolutions on shortcuts that change
    the shape; no biases; weights from He's normal distribution.

    Args:
        filters: width of the first block. Default: 64.
        num_classes: Default: 10.
        in_channels: 2 for event frames. Default: 1.
        size: pixels of the square input, at least 8. Default: 28.
        steps: T. Default: 10.
        decay: 0.5; the paper takes 0.8 for CIFAR10-DVS. Default: 0.5.
        v_threshold: Default: 0.5.
        reset: "none" as in the paper's runs, or "hard". Default: "none".
        dropout: share of neurons silenced inside sub-blocks, the same for all steps. Default: 0.25.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[N, in_channels, size, size]` or `[T, N, in_channels, size, size]`; firing rates
        `[N, num_classes]`.
    """

    def __init__(
        self,
        *,
        filters: int = 64,
        num_classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        steps: int = 10,
        decay: float = 0.5,
        v_threshold: float = 0.5,
        reset: str = "none",
        dropout: float = 0.25,
        backend: str = "auto",
    ) -> None:
        wholes = {"filters": filters, "num_classes": num_classes}
        super().__init__(in_channels, size, steps, decay, v_threshold, reset, backend, **wholes)
        check_size(size, 1, least=8)
        check_share(dropout=dropout)
        self.input = HybridLIF(**self.options)
        self.stem = nn.Sequential(
            Weights(nn.Conv2d(in_channels, filters, 3, padding=1, bias=False)),
            HybridLIF(**self.options),
        )
        blocks, width = [], filters
        for k in range(4):
            cout = filters << k
            blocks.append(
                nn.Sequential(
                    _SubBlock(width, cout, 1 if k == 0 else 2, dropout, self.options),
                    _SubBlock(cout, cout, 1, dropout, self.options),
                )
            )
            width = cout
        self.blocks = nn.ModuleList(blocks)
        self.fc = Weights(nn.Linear(filters * 4 + filters * 8, num_classes, bias=False))
        self.readout = Readout("rate", **self.options)
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
