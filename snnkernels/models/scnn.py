"""TSCNN, WSCNN and RSCNN, the spiking convolutional networks of Stöckl's thesis, ch. 5."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnkernels.core.checks import check_positive, check_share, check_size, check_wholes
from snnkernels.core.surrogates import Triangle
from snnkernels.models._blocks import (
    Readout,
    SequenceNetwork,
    StepDropout,
    Weights,
    check_save,
    init_weights,
)
from snnkernels.nn.lif import LIF


class _SCNN(SequenceNetwork):
    """What the three share: neurons, readout, initial weights and the artificial twin.

    Args:
        multiple: what size must be a multiple of.
        stretch: half-width of the surrogate as a multiple of the threshold.
        readout: see `Readout`.
        wholes: options that must be whole numbers >= 1.
        **neuron: other options of the neurons, see `LIF`.
    """

    def __init__(
        self,
        in_channels,
        size,
        multiple,
        steps,
        stretch,
        init_std,
        readout,
        spiking,
        save,
        wholes,
        v_threshold,
        backend,
        **neuron,
    ) -> None:
        super().__init__((in_channels, size, size), steps, in_channels=in_channels, **wholes)
        check_size(size, multiple)
        check_positive(v_threshold=v_threshold, stretch=stretch, init_std=init_std)
        if not spiking and readout != "potential":
            raise ValueError(f"spiking=False has no readout to choose; got {readout!r}")
        width = stretch * v_threshold
        self.steps = steps if spiking else 1
        self.spiking, self.save = spiking, check_save(save, spiking)
        self.init_std = init_std
        self._options = {
            "v_threshold": v_threshold,
            "surrogate": Triangle(1 / width, width),
            "backend": backend,
            **neuron,
        }
        self.readout = Readout(readout, **self._options)

    def _neuron(self) -> nn.Module:
        return LIF(**self._options) if self.spiking else nn.ReLU()

    def _init(self) -> None:
        if self.spiking:
            init_weights(self, _truncated_normal, std=self.init_std)
        else:
            init_weights(self, nn.init.kaiming_normal_)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes: the last potentials of the output neurons, or as chosen."""
        return self.readout(self.layers(self.sequence(x)))


def _truncated_normal(weight: Tensor, std: float) -> Tensor:
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


class TemporalConv(nn.Module):
    """A convolution over time and space whose weights on earlier steps are spike delays (sec. 5.1).

    It looks back only: step t sees t - depth + 1 ... t. In space the output has the size of the
    input; for an even kernel the odd pixel of padding stands at the end.

    Args:
        cin: channels of the input.
        cout: filters.
        kernel: pixels. Default: 4.
        depth: steps. Default: 4.
        still: the first step was there all the time before it; otherwise nothing was. Default:
            False.

    Shape:
        x `[T, N, cin, H, W]`, output `[T, N, cout, H, W]`.
    """

    needs_all_steps = "it looks back at the steps of an earlier chunk"

    def __init__(
        self, cin: int, cout: int, kernel: int = 4, depth: int = 4, still: bool = False
    ) -> None:
        super().__init__()
        check_wholes(cin=cin, cout=cout, kernel=kernel, depth=depth)
        self.conv = nn.Conv3d(cin, cout, (depth, kernel, kernel), bias=False)
        before = (kernel - 1) // 2
        self.earlier = depth - 1
        self.padding = (before, kernel - 1 - before) * 2
        self.still = still

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the past."""
        if self.still:
            x = torch.cat([x[:1].expand(self.earlier, *x.shape[1:]), x])
        nothing = 0 if self.still else self.earlier
        x = F.pad(x.permute(1, 2, 0, 3, 4), (*self.padding, nothing, 0))
        return self.conv(x).permute(2, 0, 1, 3, 4)


class TSCNN(_SCNN):
    """The temporal SCNN (sec. 5.1): 3-D convolutions for latency-coded 16x16 images.

    Three 4x4x4 convolutions of 10, 15 and 20 filters, each followed by 2x2 max-pooling and neurons,
    then 100 neurons and the readout; no biases. 39,720 weights and 1,838 neurons (table 5.2), which
    are met with the neurons after the pooling and the input counted. Chosen here: the convolution
    in time looks back only; the surrogate has unit area.

    Args:
        num_classes: Default: 10.
        in_channels: Default: 3.
        size: pixels, a multiple of 8. Default: 16.
        steps: T, for an input without a time axis. Default: 40.
        decay: Default: 0.8.
        v_threshold: Default: 0.01.
        stretch: half-width of the surrogate as a multiple of the threshold. Default: 1.1.
        refractory: steps without spikes after a spike. Default: 5.
        regulariser: (tolerance, shift) of the penalty on potentials (fig. 5.8),
            see `snnkernels.LIF`. Default: None.
        init_std: of the initial weights, normal around 0, cut off at two deviations. Default:
            0.001.
        readout: "potential" (sec. 5.1.3), "potentials" of every step, "rate", "count" (which the
            thesis tried first) or "spikes", see `Readout`. Default: "potential".
        spiking: False gives the artificial twin: ReLU, one step, before which the image was there
            all the time. Default: True.
        save: "bits" keeps spikes that enter convolutions, linear layers and pooling as bits for the
            backward pass, "bytes" as bytes, see `snnkernels.OverTime`. Default: None.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[T, N, in_channels, size, size]` spikes (see `snnkernels.nn.encode.Latency`), or
        `[N, in_channels, size, size]`; scores `[N, num_classes]`, or `[T, N, num_classes]` for
        "potentials" and "spikes".
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        size: int = 16,
        steps: int = 40,
        decay: float = 0.8,
        v_threshold: float = 0.01,
        stretch: float = 1.1,
        refractory: int = 5,
        regulariser: tuple[float, float] | None = None,
        init_std: float = 0.001,
        readout: str = "potential",
        spiking: bool = True,
        save: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            size,
            8,
            steps,
            stretch,
            init_std,
            readout,
            spiking,
            save,
            {"num_classes": num_classes},
            v_threshold=v_threshold,
            backend=backend,
            decay=decay,
            refractory=refractory,
            regulariser=regulariser,
        )
        layers, width = [], in_channels
        for filters in (10, 15, 20):
            layers += [
                TemporalConv(width, filters, still=not spiking),
                Weights(nn.MaxPool2d(2)),
                self._neuron(),
            ]
            width = filters
        layers += [
            Weights(
                nn.Flatten(), nn.Linear(width * (size // 8) ** 2, 100, bias=False), save=self.save
            ),
            self._neuron(),
            Weights(nn.Linear(100, num_classes, bias=False), save=self.save),
        ]
        self.layers = nn.Sequential(*layers)
        self._init()


class WSCNN(_SCNN):
    """The wide SCNN (sec. 5.2): 64-P-128-P-256-512-256 3x3 convolutions, then 1024, 512, classes.

    20,036,288 weights and 168,458 neurons (table 5.5): no biases, neurons before the pooling, the
    input counted. Chosen here: max-pooling; dropout in front of the dense layers; the surrogate has
    unit area.

    Args:
        width: filters of the first convolution; all others are multiples of it. Default: 64.
        num_classes: Default: 10.
        in_channels: Default: 3.
        size: pixels, a multiple of 4. Default: 32.
        steps: T, for an input without a time axis. Default: 15.
        decay: Default: 0.45.
        v_threshold: Default: 0.01.
        stretch: half-width of the surrogate as a multiple of the threshold. Default: 1.05.
        dropout: the same mask at all steps. Default: 0.25.
        regulariser: (tolerance, shift) of the penalty on potentials (fig. 5.8), the thesis has
            (0.012, 0); see `snnkernels.LIF`. Default: None.
        init_std: of the initial weights, normal around 0, cut off at two deviations. Default:
            0.001.
        readout: "potential" (sec. 5.1.3), "potentials" of every step, "rate", "count" (which the
            thesis tried first) or "spikes", see `Readout`. Default: "potential".
        spiking: False gives the artificial twin: ReLU, one step. Default: True.
        save: "bits" keeps spikes that enter convolutions, linear layers and pooling as bits for the
            backward pass, "bytes" as bytes, see `snnkernels.OverTime`. Default: None.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[T, N, in_channels, size, size]` spikes (see `snnkernels.nn.encode.Count`), or
        `[N, in_channels, size, size]`; scores `[N, num_classes]`, or `[T, N, num_classes]` for
        "potentials" and "spikes".
    """

    def __init__(
        self,
        *,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        size: int = 32,
        steps: int = 15,
        decay: float = 0.45,
        v_threshold: float = 0.01,
        stretch: float = 1.05,
        dropout: float = 0.25,
        regulariser: tuple[float, float] | None = None,
        init_std: float = 0.001,
        readout: str = "potential",
        spiking: bool = True,
        save: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            size,
            4,
            steps,
            stretch,
            init_std,
            readout,
            spiking,
            save,
            {"num_classes": num_classes, "width": width},
            v_threshold=v_threshold,
            backend=backend,
            decay=decay,
            regulariser=regulariser,
        )
        check_share(dropout=dropout)

        def conv(cin: int, cout: int, pool: bool) -> list[nn.Module]:
            modules = [nn.Conv2d(cin, cout, 3, padding=1, bias=False)]
            if pool:
                modules.insert(0, nn.MaxPool2d(2))
            return [Weights(*modules, save=self.save if layers else None), self._neuron()]

        layers: list[nn.Module] = []
        layers += conv(in_channels, width, False)
        layers += conv(width, 2 * width, True)
        layers += conv(2 * width, 4 * width, True) + conv(4 * width, 8 * width, False)
        layers += conv(8 * width, 4 * width, False)
        sizes = (4 * width * (size // 4) ** 2, 16 * width, 8 * width)
        for cin, cout in zip(sizes, (*sizes[1:], num_classes), strict=True):
            layers += [
                StepDropout(dropout),
                Weights(nn.Flatten(), nn.Linear(cin, cout, bias=False)),
            ]
            layers.append(self._neuron())
        self.layers = nn.Sequential(*layers[:-1])  # the output is read as a potential
        self._init()


class _ResidualPair(nn.Module):
    """Two convolutions with neurons, and a shortcut into the membrane of the second ones.

    Args:
        shortcut: weights of the projection; None for the identity.
        gain: weight of the identity's spikes.
    """

    def __init__(self, first, neuron1, second, neuron2, shortcut, gain) -> None:
        super().__init__()
        self.first, self.neuron1, self.second, self.neuron2 = first, neuron1, second, neuron2
        self.shortcut, self.gain = shortcut, gain

    def forward(self, x: Tensor) -> Tensor:
        skip = x * self.gain if self.shortcut is None else self.shortcut(x)
        return self.neuron2(self.second(self.neuron1(self.first(x))) + skip)


class RSCNN(_SCNN):
    """The residual SCNN (sec. 5.3): 24 3x3 convolutions in three stages, 256 neurons, readout.

    8 convolutions each of 32, 64 and 128 filters at 32, 16 and 8 pixels, no pooling, no biases;
    3,648,864 weights and 462,090 neurons (table 5.7). Chosen here, since the figure does not say:
    shortcuts lead around pairs of convolutions into the membrane of the second one. Each stage has
    one 3x3 projection, which the counts need: around the first pair of stages 2 and 3, where the
    shape changes, and around the second pair of stage 1 (its first pair begins with the image and
    has none). The other shortcuts are the identity. The surrogate has unit area.

    At the thesis's deviation of 0.001 for all weights no spike gets past stage 1, and none comes
    back while it trains: a layer that hears less fires less. With a deviation a little larger every
    layer fires in half of the steps. By default, therefore, deviations follow the number of inputs,
    so that layers fire in 2 to 15 % of the steps; a spike on an identity weighs two thresholds,
    since the slightest inhibition undoes one that weighs one; the surrogate is twice as wide as the
    thesis's; and the weights of the output are of the size of 1, not of the threshold, since their
    sums are the logits.

    Args:
        width: filters of the first stage. Default: 32.
        num_classes: Default: 10.
        in_channels: Default: 3.
        size: pixels, a multiple of 4. Default: 32.
        steps: T, for an input without a time axis. Default: 10.
        decay: Default: 0.45.
        v_threshold: Default: 0.01.
        stretch: half-width of the surrogate as a multiple of the threshold; the thesis has 1.05.
            Default: 2.
        skip: weight of a spike on an identity shortcut, in thresholds. Default: 2.
        regulariser: (tolerance, shift) of the penalty on potentials (fig. 5.8), the thesis has
            (0.01, -0.008); see `snnkernels.LIF`. Default: None.
        init_std: of the initial weights, normal around 0, cut off at two deviations; the thesis has
            0.001. Default: None, 2.3 thresholds / sqrt(inputs of a neuron), and for the output 0.6
            / sqrt(inputs).
        readout: "potential" (sec. 5.1.3), "potentials" of every step, "rate", "count" (which the
            thesis tried first) or "spikes", see `Readout`. Default: "potential".
        spiking: False gives the artificial twin: ReLU, one step, identity shortcuts of weight 1.
            Default: True.
        save: "bits" keeps spikes that enter convolutions, linear layers and pooling as bits for the
            backward pass, "bytes" as bytes, see `snnkernels.OverTime`. Default: None.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[T, N, in_channels, size, size]` spikes (see `snnkernels.nn.encode.Count`), or
        `[N, in_channels, size, size]`; scores `[N, num_classes]`, or `[T, N, num_classes]` for
        "potentials" and "spikes".
    """

    def __init__(
        self,
        *,
        width: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        size: int = 32,
        steps: int = 10,
        decay: float = 0.45,
        v_threshold: float = 0.01,
        stretch: float = 2.0,
        skip: float = 2.0,
        regulariser: tuple[float, float] | None = None,
        init_std: float | None = None,
        readout: str = "potential",
        spiking: bool = True,
        save: str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            size,
            4,
            steps,
            stretch,
            1.0 if init_std is None else init_std,
            readout,
            spiking,
            save,
            {"num_classes": num_classes, "width": width},
            v_threshold=v_threshold,
            backend=backend,
            decay=decay,
            regulariser=regulariser,
        )

        def conv(cin: int, cout: int, stride: int = 1, save: str | None = self.save) -> Weights:
            return Weights(nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False), save=save)

        check_positive(skip=skip)
        gain = skip * v_threshold if spiking else 1.0
        layers = [conv(in_channels, width, save=None), self._neuron()]
        layers += [conv(width, width), self._neuron()]
        cin = width
        for stage in range(3):
            cout = width << stage
            for pair in range(1 if stage == 0 else 0, 4):
                stride = 2 if cin != cout else 1
                projected = pair == (1 if stage == 0 else 0)
                shortcut = conv(cin, cout, stride) if projected else None
                parts = (conv(cin, cout, stride), self._neuron(), conv(cout, cout), self._neuron())
                layers.append(_ResidualPair(*parts, shortcut, gain))
                cin = cout
        features = cin * (size // 4) ** 2
        dense = nn.Flatten(), nn.Linear(features, 8 * width, bias=False)
        layers += [Weights(*dense, save=self.save), self._neuron()]
        layers += [Weights(nn.Linear(8 * width, num_classes, bias=False), save=self.save)]
        self.layers = nn.Sequential(*layers)
        self._init()
        if spiking and init_std is None:
            self._scale_by_inputs(v_threshold)

    @torch.no_grad()
    def _scale_by_inputs(self, v_threshold: float) -> None:
        """From a deviation of 1 to that of each layer."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.mul_(2.3 * v_threshold / module.weight[0].numel() ** 0.5)
        self.layers[-1].module.weight.mul_(0.6 / (2.3 * v_threshold))
