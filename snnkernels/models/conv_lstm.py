"""Convolutional LSTM and self-attention on frames, for baselines and for the RSNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkernels.core.checks import check_wholes
from snnkernels.models._blocks import Weights


class ConvLSTM(nn.Module):
    """A convolutional LSTM without peepholes (Shi et al. 2015; the RSNN paper's eq. 1-5).

    The convolutions of the input run over all steps at once; those of the hidden state, which need
    the step before, run in a loop. Every gate has hidden weights of its own (the paper prints
    W_hi for all of them).

    Args:
        in_channels: channels of the input.
        channels: channels of the cell and of the output.
        kernel: odd number of pixels. Default: 3.

    Shape:
        x `[T, N, in_channels, H, W]`, output: hidden states `[T, N, channels, H, W]`.
    """

    needs_all_steps = "it starts from a state of zero"

    def __init__(self, in_channels: int, channels: int, kernel: int = 3) -> None:
        super().__init__()
        check_wholes(in_channels=in_channels, channels=channels, kernel=kernel)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd; got {kernel}")
        self.input = Weights(nn.Conv2d(in_channels, 4 * channels, kernel, padding=kernel // 2))
        self.hidden = nn.Conv2d(channels, 4 * channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run all steps from a zero state."""
        h = c = None
        out = []
        for gates in self.input(x).unbind(0):
            if h is not None:
                gates = gates + self.hidden(h)
            i, f, o, g = gates.chunk(4, 1)
            new = torch.sigmoid(i) * torch.tanh(g)
            c = new if c is None else torch.sigmoid(f) * c + new
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        return torch.stack(out)


class FrameAttention(nn.Module):
    """Self-attention between the pixels of each frame (the RSNN paper's eq. 6), one head.

    Args:
        channels: C, of queries' input and of values.
        key_channels: size of queries and keys; chosen here. Default: 8.

    Shape:
        x `[T, N, C, H, W]`, output the same.
    """

    def __init__(self, channels: int, key_channels: int = 8) -> None:
        super().__init__()
        check_wholes(channels=channels, key_channels=key_channels)
        self.query = nn.Linear(channels, key_channels, bias=False)
        self.key = nn.Linear(channels, key_channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh every frame's pixels against each other."""
        pixels = x.flatten(0, 1).flatten(2).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            self.query(pixels), self.key(pixels), self.value(pixels)
        )
        return out.transpose(1, 2).reshape(x.shape)
