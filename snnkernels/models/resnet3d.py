"""The 3-D ResNet-18 that STS-ResNet is compared with on video (Samadzadeh et al., table 2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from snnkernels.core.checks import check_size
from snnkernels.models._blocks import SequenceNetwork, init_weights


class _Block(nn.Module):
    """Two 3x3x3 convolutions with batch norm, and a shortcut before the last ReLU."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(cin, cout, stride), nn.BatchNorm3d(cout)
        self.conv2, self.norm2 = _conv(cout, cout, 1), nn.BatchNorm3d(cout)
        self.shortcut = None
        if stride != 1 or cin != cout:
            # The pixels are taken first, see `snnkernels.models._blocks.Projection`.
            self.shortcut = nn.Sequential(
                nn.AvgPool3d(1, stride), nn.Conv3d(cin, cout, 1, bias=False), nn.BatchNorm3d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)) + skip)


def _conv(cin: int, cout: int, stride: int) -> nn.Conv3d:
    return nn.Conv3d(cin, cout, 3, stride, padding=1, bias=False)


class ResNet3D(SequenceNetwork):
    """ResNet-18 with convolutions over time and space (Hara et al. 2018), without spikes.

    A 7x7x7 convolution with stride (1, 2, 2), 3x3x3 max-pooling with stride 2, four stages of two
    blocks of two 3x3x3 convolutions (1, 2, 4 and 8 times ``filters`` wide, each stage but the first
    with stride 2 in time and space), the mean over time and pixels, and one linear layer: 18 layers
    of weights. Batch norm after every convolution, ReLU, 1x1x1 convolutions on the shortcuts that
    change the shape. Weights start from He's normal distribution.

    Args:
        filters: width of the first stage. Default: 64.
        num_classes: Default: 101, those of UCF-101.
        in_channels: Default: 3.
        size: pixels of the square input, at least 16. Default: 112.
        steps: frames of a clip; a sequence has exactly this length. Default: 16.

    Shape:
        x `[T, N, in_channels, size, size]`, or `[N, in_channels, size, size]`, shown at every step;
        logits `[N, num_classes]`.
    """

    only_all_steps = True

    def __init__(
        self,
        *,
        filters: int = 64,
        num_classes: int = 101,
        in_channels: int = 3,
        size: int = 112,
        steps: int = 16,
    ) -> None:
        wholes = {"filters": filters, "num_classes": num_classes, "in_channels": in_channels}
        super().__init__((in_channels, size, size), steps, **wholes)
        check_size(size, 1, least=16)
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, filters, 7, (1, 2, 2), padding=3, bias=False),
            nn.BatchNorm3d(filters),
            nn.ReLU(),
            nn.MaxPool3d(3, 2, padding=1),
        )
        widths = (filters, filters, 2 * filters, 4 * filters, 8 * filters)
        self.blocks = nn.Sequential(
            *(
                block
                for k, (cin, cout) in enumerate(zip(widths, widths[1:], strict=False))
                for block in (_Block(cin, cout, 1 if k == 0 else 2), _Block(cout, cout, 1))
            )
        )
        self.fc = nn.Linear(widths[-1], num_classes)
        init_weights(self, nn.init.kaiming_normal_)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        x = self.stem(self.sequence(x).permute(1, 2, 0, 3, 4))
        return self.fc(self.blocks(x).mean((-3, -2, -1)))
