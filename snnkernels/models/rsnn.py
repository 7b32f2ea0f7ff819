"""RSNN: convolutional LSTMs extract features, a spiking network decides.

"RSNN: Recurrent spiking neural networks for dynamic spatial-temporal information processing".
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from snnkernels.core.checks import check_choice, check_size, check_whole
from snnkernels.core.surrogates import ATan
from snnkernels.models._blocks import SequenceNetwork, StepsNorm, Vote, Weights, init_weights
from snnkernels.models.conv_lstm import ConvLSTM, FrameAttention
from snnkernels.nn.lif import LIF
from snnkernels.nn.readout import mean, total

FEATURES = ("cl", "cla")
FRAME_READOUTS = ("last", "sum", "mean", "concat", "lstm")
LAYERS = (3, 4)


class RecurrentFeatures(nn.Module):
    """The feature extractor (table 1): "CL" or "CLA".

    CL: two convolutional LSTMs of 4 and 6 channels, each followed by 2x2 max-pooling. CLA: 4x4
    average pooling, self-attention on every frame, one convolutional LSTM of 10 channels (the
    strings of table 1 name the channels that enter each layer). None: the frames as they are.

    Args:
        kind: "cl", "cla" or None.
        in_channels: Default: 2.
        pooling: False leaves the pooling out (the paper's 71.1 % on CIFAR10-DVS). Default: True.

    Attributes:
        channels: of the output.
        shrink: what height and width are divided by.

    Shape:
        x `[T, N, in_channels, H, W]`, output `[T, N, channels, H / shrink, W / shrink]`.
    """

    def __init__(self, kind: str | None, in_channels: int = 2, pooling: bool = True) -> None:
        super().__init__()
        check_choice("features", kind, (*FEATURES, None))
        self.kind = kind
        self.channels = {"cl": 6, "cla": 10, None: in_channels}[kind]
        self.shrink = 1 if kind is None or not pooling else 4

        def pool(module: nn.Module) -> list[nn.Module]:
            return [Weights(module)] if pooling else []

        if kind == "cl":
            layers = [ConvLSTM(in_channels, 4), *pool(nn.MaxPool2d(2))]
            layers += [ConvLSTM(4, 6), *pool(nn.MaxPool2d(2))]
        elif kind is None:
            layers = []
        else:
            layers = pool(nn.AvgPool2d(4))
            layers += [FrameAttention(in_channels), ConvLSTM(in_channels, 10)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of every frame."""
        return self.layers(x)


class _RecurrentNetwork(SequenceNetwork):
    """The feature extractor, which both phases of the training have, and the vote."""

    def __init__(
        self, features, layers, num_classes, in_channels, size, steps, pooling, **wholes
    ) -> None:
        wholes |= {"num_classes": num_classes, "in_channels": in_channels}
        super().__init__((in_channels, size, size), steps, **wholes)
        check_choice("layers", layers, LAYERS)
        self.features = RecurrentFeatures(features, in_channels, pooling)
        check_size(size, self.features.shrink << layers)
        self.vote = Vote(10)


class RecurrentClassifier(_RecurrentNetwork):
    """The network that trains the features first (sec. 2.5), with one of five read-outs.

    "last" takes the last frame's features, "sum" and "mean" those of all frames, "concat" puts the
    frames' channels side by side; each is followed by a CNN: convolutions of 64 channels (the last
    two of four, the last of three: 32), 2x2 max-pooling, two dense layers and a vote of ten outputs
    per class. "lstm" feeds the flattened features of every frame to three LSTMs and sums their
    outputs over the frames.

    Chosen here: 3x3 kernels, ReLU after convolutions and the first dense layer, biases.

    Args:
        features: "cl" or "cla". Default: "cl".
        readout: "last", "sum", "mean", "concat" or "lstm". Default: "sum".
        layers: convolutions: 3 (DVS128 Gesture) or 4 (CIFAR10-DVS). Default: 3.
        num_classes: Default: 11.
        in_channels: Default: 2.
        size: pixels of the square input. Default: 128.
        steps: T; a sequence has exactly this length. Default: 20.
        pooling: see `RecurrentFeatures`. Default: True.

    Shape:
        x `[T, N, in_channels, size, size]`; logits `[N, num_classes]`.
    """

    only_all_steps = True

    def __init__(
        self,
        *,
        features: str = "cl",
        readout: str = "sum",
        layers: int = 3,
        num_classes: int = 11,
        in_channels: int = 2,
        size: int = 128,
        steps: int = 20,
        pooling: bool = True,
    ) -> None:
        check_choice("features", features, FEATURES)
        super().__init__(features, layers, num_classes, in_channels, size, steps, pooling)
        check_choice("readout", readout, FRAME_READOUTS)
        self.readout = readout
        side = size // self.features.shrink
        if readout == "lstm":
            inputs = self.features.channels * side * side
            sizes = (inputs, max(inputs // 4, 1), max(inputs // 16, 1), 10 * num_classes)
            self.lstms = nn.ModuleList(
                nn.LSTM(a, b) for a, b in zip(sizes, sizes[1:], strict=False)
            )
        else:
            entering = self.features.channels * (steps if readout == "concat" else 1)
            self.decision = _frame_cnn(entering, layers, side, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.features(self.sequence(x))
        if self.readout == "lstm":
            x = x.flatten(2)
            for lstm in self.lstms:
                x = lstm(x)[0]
            return self.vote(total(x))
        if self.readout == "last":
            frame = x[-1]
        elif self.readout == "concat":
            frame = x.transpose(0, 1).flatten(1, 2)
        else:
            frame = total(x) if self.readout == "sum" else mean(x)
        return self.vote(self.decision(frame))


def _frame_cnn(entering: int, layers: int, side: int, num_classes: int) -> nn.Sequential:
    """The CNN of table 1: (width, whether 2x2 max-pooling follows) per convolution."""
    plan = {
        3: ((64, True), (64, True), (32, True)),
        4: ((64, True), (64, False), (32, True), (32, False)),
    }[layers]
    modules: list[nn.Module] = []
    for width, pooled in plan:
        modules += [nn.Conv2d(entering, width, 3, padding=1), nn.ReLU()]
        if pooled:
            modules.append(nn.MaxPool2d(2))
            side //= 2
        entering = width
    inputs = entering * side * side
    hidden = inputs // 4
    return nn.Sequential(
        *modules,
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10 * num_classes),
    )


class RSNN(_RecurrentNetwork):
    """Recurrent features and a spiking decision (sec. 2.6).

    The features of every step enter 3 or 4 layers of 3x3 convolution, batch norm, neurons and 2x2
    max-pooling, then two dense layers of spiking neurons (128 m^2 -> 32 m^2 -> 10 per class, m
    pixels remaining), read out as firing rates and averaged over each class's ten neurons. The
    strings for four and three layers print five and four convolutions, with five and two poolings;
    built are four and three, each with its pooling. ``features=None`` is the spiking CNN alone,
    with which table 3 compares. Neurons are SpikingJelly's LIF
    with tau = 2, h = v + (x - v) / 2 with threshold 1, hard reset and arctan surrogate; here with
    potential, threshold and surrogate width doubled, which gives the same bits without the product.

    Chosen here: the neurons stand between batch norm and pooling; no biases in the
    decision; its weights from He's normal distribution. The paper does not describe the "simplified
    SNN structure" of its energy table (table 4); ``channels=32, hidden=False`` is this library's.

    Args:
        features: "cl", "cla", or None for no features: the spiking CNN sees the frames themselves.
            Default: "cl".
        layers: 3 (DVS128 Gesture) or 4 (CIFAR10-DVS). Default: 3.
        num_classes: Default: 11.
        channels: of the spiking convolutions; the dense layer has a quarter of what enters it.
            Default: 128.
        hidden: False leaves that dense layer out. Default: True.
        in_channels: Default: 2.
        size: pixels of the square input. Default: 128.
        steps: T. Default: 20.
        pooling: see `RecurrentFeatures`. Default: True.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[T, N, in_channels, size, size]`; rates `[N, num_classes]`.
    """

    def __init__(
        self,
        *,
        features: str | None = "cl",
        layers: int = 3,
        num_classes: int = 11,
        channels: int = 128,
        hidden: bool = True,
        in_channels: int = 2,
        size: int = 128,
        steps: int = 20,
        pooling: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(features, layers, num_classes, in_channels, size, steps, pooling)
        check_whole("channels", channels, 4)
        options = {
            "decay": 0.5,
            "v_threshold": 2.0,
            "surrogate": ATan(1.0),
            "backend": backend,
        }
        modules: list[nn.Module] = []
        entering = self.features.channels
        for _ in range(layers):
            conv = nn.Conv2d(entering, channels, 3, padding=1, bias=False)
            modules += [Weights(conv), StepsNorm(channels), LIF(**options)]
            modules += [Weights(nn.MaxPool2d(2))]
            entering = channels
        inputs = channels * (size // self.features.shrink >> layers) ** 2
        modules += [Weights(nn.Flatten())]
        widths = (inputs, *([inputs // 4] if hidden else []), 10 * num_classes)
        for cin, cout in itertools.pairwise(widths):
            modules += [Weights(nn.Linear(cin, cout, bias=False)), LIF(**options)]
        self.decision = nn.Sequential(*modules)
        init_weights(self.decision, nn.init.kaiming_normal_)

    def take_features(self, classifier: RecurrentClassifier, freeze: bool = True) -> None:
        """Start the second phase of the training: copy trained features.

        Args:
            classifier: trained with the same ``features``, ``in_channels`` and ``pooling``.
            freeze: train the decision alone from now on. Default: True.

        Raises:
            ValueError: this network has no features, or of the other kind.
        """
        if self.features.kind is None or self.features.kind != classifier.features.kind:
            raise ValueError(
                f"classifier must have this network's features, {self.features.kind!r}; "
                f"got {classifier.features.kind!r}"
            )
        self.features.load_state_dict(classifier.features.state_dict())
        self.features.requires_grad_(not freeze)

    def forward(self, x: Tensor) -> Tensor:
        """Firing rates of a batch."""
        return self.vote(mean(self.decision(self.features(self.sequence(x)))))
