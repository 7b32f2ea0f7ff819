"""The networks without spikes that ConvSNN is compared with (Samadzadeh et al., sec. 5.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_size
from snnkernels.models._blocks import SequenceNetwork, Weights
from snnkernels.models.conv_lstm import ConvLSTM
from snnkernels.nn.readout import mean


class Baseline(SequenceNetwork):
    """Common to the four: two layers of 256 channels, 2x2 max-pooling after each, one dense layer.

    The paper gives the widths. Chosen here: 3x3 (3x3x3) kernels with padding, ReLU, max-pooling, a
    dense layer on all pixels, biases. The outputs of recurrent networks are the mean over the steps
    (the vote of sec. 5.1, made differentiable).

    Args:
        channels: width of both layers. Default: 256.
        num_classes: Default: 10.
        in_channels: Default: 1.
        size: pixels of the square input, a multiple of 4. Default: 28.
        steps: T; these networks take sequences of exactly this length. Default: 10.

    Shape:
        x `[N, in_channels, size, size]` or `[T, N, in_channels, size, size]`; logits
        `[N, num_classes]`.
    """

    only_all_steps = True

    def __init__(
        self,
        *,
        channels: int = 256,
        num_classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        steps: int = 10,
    ) -> None:
        wholes = {"channels": channels, "num_classes": num_classes, "in_channels": in_channels}
        super().__init__((in_channels, size, size), steps, **wholes)
        check_size(size, 4)
        self.features = channels * (size // 4) ** 2
        self._build(in_channels, channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        return self._run(self.sequence(x))


def _pooled_conv(cin: int, cout: int) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]


class CNN(Baseline):
    """The frames stacked as channels, two convolutions. See `Baseline`."""

    def _build(self, cin: int, channels: int, classes: int) -> None:
        self.layers = nn.Sequential(
            *_pooled_conv(self.steps * cin, channels),
            *_pooled_conv(channels, channels),
            nn.Flatten(),
            nn.Linear(self.features, classes),
        )

    def _run(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(0, 1).flatten(1, 2))


class CNNLSTM(Baseline):
    """Two convolutions on every frame, an LSTM over the frames. See `Baseline`."""

    def _build(self, cin: int, channels: int, classes: int) -> None:
        self.convs = Weights(
            *_pooled_conv(cin, channels), *_pooled_conv(channels, channels), nn.Flatten()
        )
        self.lstm = nn.LSTM(self.features, channels)
        self.fc = nn.Linear(channels, classes)

    def _run(self, x: Tensor) -> Tensor:
        return mean(self.fc(self.lstm(self.convs(x))[0]))


class ConvLSTMNet(Baseline):
    """Two convolutional LSTMs. See `Baseline`."""

    def _build(self, cin: int, channels: int, classes: int) -> None:
        pool = nn.MaxPool2d(2)
        self.layers = nn.Sequential(
            ConvLSTM(cin, channels),
            Weights(pool),
            ConvLSTM(channels, channels),
            Weights(pool, nn.Flatten(), nn.Linear(self.features, classes)),
        )

    def _run(self, x: Tensor) -> Tensor:
        return mean(self.layers(x))


class C3D(Baseline):
    """Two convolutions over time and space; the mean over time feeds the dense layer.

    See `Baseline`.
    """

    def _build(self, cin: int, channels: int, classes: int) -> None:
        self.convs = nn.Sequential(
            nn.Conv3d(cin, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
        )
        self.fc = nn.Linear(self.features, classes)

    def _run(self, x: Tensor) -> Tensor:
        x = self.convs(x.permute(1, 2, 0, 3, 4))
        return self.fc(torch.flatten(mean(x, 2), 1))
