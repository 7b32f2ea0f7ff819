"""S-ResNet, the spiking version of He's residual network for CIFAR, and the VGG11 beside it.

Vicente-Sola et al., "Keys to accurate feature extraction using residual spiking neural networks".
"""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn.modules import module as every_module

from snnkernels.core.checks import check_choice, check_size, check_whole
from snnkernels.core.surrogates import Triangle
from snnkernels.models._blocks import (
    Projection,
    SequenceNetwork,
    StepsNorm,
    Vote,
    Weights,
    check_save,
    init_weights,
)
from snnkernels.nn._chunks import InChunks
from snnkernels.nn.lif import LIF
from snnkernels.nn.norm import BNTT
from snnkernels.nn.readout import LeakyReadout

RESIDUALS = ("s2s", "s2m", "v2v")
NORMS = ("bntt", "bn")
SIZES = (32, 64, 128)
LEARN_DECAY = (None, "layer", "shared")


class _Block(nn.Module):
    """Two convolutions and the residual connection around them.

    It takes and gives (spikes, skip): what the next convolution sees, and what the next residual
    connection adds. They are the same tensor but for "v2v", where skip is the current.
    """

    def __init__(self, make: _Make, cin: int, cout: int, stride: int, save: str | None) -> None:
        super().__init__()
        self.residual, self.recompute = make.residual, make.recompute
        self.conv1 = make.conv(cin, cout, 3, stride, save)
        self.norm1 = make.norm(cout)
        self.neuron1 = make.neuron()
        self.conv2 = make.conv(cout, cout, 3, 1, make.save)
        self.norm2 = make.norm(cout)
        self.neuron2 = make.neuron()
        self.shortcut = None
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(Weights(Projection(cin, cout, stride)), make.norm(cout))

    def forward(self, spikes: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm1(self.conv1(spikes))
        again = None
        if self.recompute and not self.neuron1.stateful and not _has_hooks(self.neuron1):
            again = functools.partial(self.neuron1.forward, x.detach())
        x = self.conv2(self.neuron1(x), again)
        x = self.norm2(x)
        if self.shortcut is not None:
            skip = self.shortcut(skip)
        if self.residual == "s2s":
            out = self.neuron2(x) + skip
            return out, out
        current = x + skip
        spikes = self.neuron2(current)
        return spikes, current if self.residual == "v2v" else spikes


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call does more than ``forward``: a hook may change what the layer gives."""
    own = (module._forward_pre_hooks, module._forward_hooks)
    return any(own) or any(
        (every_module._global_forward_pre_hooks, every_module._global_forward_hooks)
    )


class _Make:
    """The parts of one network, all made with the same options."""

    def __init__(
        self, residual, norm, steps, decay, learn_decay, spiking, save, recompute, backend
    ):
        self.residual, self.norm_name, self.steps = residual, norm, steps
        self.spiking, self.recompute = spiking, recompute and spiking
        self.save = check_save(save, spiking)
        self.shared = None
        self.learn_decay = learn_decay
        self.options = {
            "decay": decay,
            "reset": "soft",
            "detach_reset": True,
            "surrogate": Triangle(0.3, 1.0),
            "backend": backend,
            "learn_decay": learn_decay is not None,
        }

    def conv(self, cin: int, cout: int, kernel: int, stride: int, save: str | None) -> Weights:
        conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)
        return Weights(conv, save=save)

    def norm(self, channels: int) -> nn.Module:
        return BNTT(channels, self.steps) if self.norm_name == "bntt" else StepsNorm(channels)

    def neuron(self) -> nn.Module:
        if not self.spiking:
            return nn.ReLU()
        neuron = LIF(**self.options)
        if self.learn_decay == "shared":
            if self.shared is None:
                self.shared = neuron.decay
            neuron.decay = self.shared
        return neuron


class SResNet(InChunks, SequenceNetwork):
    """S-ResNet with 6n + 2 layers (sec. 3.2), and its non-spiking twin.

    A 3x3 convolution, three stages of n blocks of two 3x3 convolutions (filters, 2 filters and 4
    filters wide, at 32, 16 and 8 pixels), global average pooling and one linear layer. No
    convolution and no linear layer has a bias. Neurons reset by subtraction at a threshold of 1 and
    have the triangular surrogate 0.3 max(0, 1 - |h - 1|) (eq. 24). The output layer neither leaks
    nor fires; the logits are its potential after T steps, divided by T.

    Choices where the paper leaves one: the reset carries no gradient (so in the authors' code);
    BNTT has no shift, and its eps is 1e-4; the 1x1 shortcuts are normalised too (the paper's
    parameter counts need both); the max-pooling for 128 pixels stands after the first neurons;
    weights start Xavier-uniform with gain 2.

    Args:
        depth: number of layers, 6n + 2. Default: 38.
        filters: width of the first stage; the paper's "wider" is 32. Default: 16.
        num_classes: C. Default: 10.
        in_channels: 3 for images, 2 for event frames. Default: 3.
        size: pixels of the square input: 32; 64 (first convolution with stride 2); 128 (first
            convolution 5x5 with stride 2, then 2x2 max-pooling). Default: 32.
        steps: T; a shorter sequence is an early exit. Default: 50.
        residual: "s2s" adds spikes to spikes (eq. 10), "s2m" earlier spikes, times the threshold,
            to the membrane (eq. 7), "v2v" the earlier current to the current (eq. 15-16). Default:
            "s2s".
        norm: "bntt" or "bn" (one batch norm over all steps, with shift). Default: "bntt".
        boosting: ten outputs per class, averaged (sec. 3.2.3). Default: False.
        decay: the leak of all neurons. Default: 0.874.
        learn_decay: learn it per "layer" or "shared" (PLIF), or None. Default: None.
        spiking: False gives He's ResNet: ReLU, batch norm, the sum before the ReLU, one step.
            residual, norm, steps and learn_decay must then stay at their defaults. Default: True.
        save: how the inputs of convolutions are kept for the backward pass: "bits" keeps spikes as
            bits and sums of spikes as bytes, "bytes" both as bytes, None neither; see
            `snnkernels.OverTime`. Default: "bytes".
        recompute: work out the spikes inside the blocks again in the backward pass and keep a
            third less. Default: True.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[N, in_channels, size, size]`, shown at every step, or `[T, N, in_channels, size, size]`;
        logits `[N, num_classes]`.
    """

    def __init__(
        self,
        depth: int = 38,
        *,
        filters: int = 16,
        num_classes: int = 10,
        in_channels: int = 3,
        size: int = 32,
        steps: int = 50,
        residual: str = "s2s",
        norm: str = "bntt",
        boosting: bool = False,
        decay: float = 0.874,
        learn_decay: str | None = None,
        spiking: bool = True,
        save: str | None = "bytes",
        recompute: bool = True,
        backend: str = "auto",
    ) -> None:
        wholes = {"filters": filters, "num_classes": num_classes, "in_channels": in_channels}
        super().__init__((in_channels, size, size), steps, **wholes)
        check_whole("depth", depth, 8)
        if depth % 6 != 2:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ..., 38, 44); got {depth}")
        check_choice("size", size, SIZES)
        check_choice("residual", residual, RESIDUALS)
        check_choice("norm", norm, NORMS)
        check_choice("learn_decay", learn_decay, LEARN_DECAY)
        if not spiking:
            if (residual, norm, steps, learn_decay) != ("s2s", "bntt", 50, None):
                raise ValueError(
                    "spiking=False has no residual, norm, steps or learn_decay to choose; got "
                    f"residual={residual!r}, norm={norm!r}, steps={steps}, "
                    f"learn_decay={learn_decay!r}"
                )
            residual, norm, steps = "s2m", "bn", 1
        self.steps = steps
        make = _Make(residual, norm, steps, decay, learn_decay, spiking, save, recompute, backend)

        kernel, stride = {32: (3, 1), 64: (3, 2), 128: (5, 2)}[size]
        self.conv1 = make.conv(in_channels, filters, kernel, stride, None)
        self.norm1 = make.norm(filters)
        self.neuron1 = make.neuron()
        self.pool = Weights(nn.MaxPool2d(2)) if size == 128 else None

        blocks, width = [], filters
        per_stage = (depth - 2) // 6
        for stage, cout in enumerate((filters, 2 * filters, 4 * filters)):
            for block in range(per_stage):
                # Sums of spikes stay whole until a shortcut's weights have entered them; they grow
                # by one per block.
                whole = (stage == 0 or (stage == 1 and block == 0)) and per_stage < 255
                sums = make.save and ("bytes" if whole else None)
                stride = 2 if stage > 0 and block == 0 else 1
                save = sums if residual == "s2s" else make.save
                blocks.append(_Block(make, width, cout, stride, save))
                width = cout
        self.blocks = nn.ModuleList(blocks)
        self.fc = Weights(nn.Linear(width, num_classes * (10 if boosting else 1), bias=False))
        self.vote = Vote(10) if boosting else None
        self.readout = LeakyReadout(backend=backend)
        init_weights(self, nn.init.xavier_uniform_, gain=2.0 if spiking else 2.0**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        current = self.norm1(self.conv1(self.sequence(x)))
        spikes = self.neuron1(current)
        if self.pool is not None:
            spikes = self.pool(spikes)
            current = self.pool(current) if self.blocks[0].residual == "v2v" else current
        skip = current if self.blocks[0].residual == "v2v" else spikes
        for block in self.blocks:
            spikes, skip = block(spikes, skip)
        out = self.fc(spikes.mean((-2, -1)))
        if self.vote is not None:
            out = self.vote(out)
        return self.readout(out) / (self._steps_before + out.shape[0])


class SVGG11(InChunks, SequenceNetwork):
    """The spiking VGG11 without residual connections that fig. 3a shows beside S-ResNet.

    Eight 3x3 convolutions (1, 2, 4, 4, 8, 8, 8 and 8 times ``filters`` wide) and two dense layers,
    each with BNTT and neurons, then the dense layer of the classes; 2x2 average pooling after
    convolutions 1, 2, 4, 6 and 8. Neurons and output layer are those of `SResNet`.

    The paper names the network and prints none of its layers. Chosen here: the layers of VGG11
    (Simonyan & Zisserman 2015), average pooling as in Kim & Panda 2020, whose BNTT it is; no
    biases; weights start Xavier-uniform with gain 2.

    Args:
        filters: width of the first convolution. Default: 64.
        hidden: width of the two dense layers. Default: 4096.
        num_classes: Default: 100, as in the figure.
        in_channels: 3 for images, 2 for event frames. Default: 3.
        size: pixels of the square input, a multiple of 32. Default: 32.
        steps: T; a shorter sequence is an early exit. Default: 50.
        decay: the leak of all neurons. Default: 0.874.
        learn_decay: learn it per "layer" or "shared" (PLIF), or None. Default: None.
        backend: of all neurons. Default: "auto".

    Shape:
        x `[N, in_channels, size, size]`, shown at every step, or `[T, N, in_channels, size, size]`;
        logits `[N, num_classes]`.
    """

    def __init__(
        self,
        *,
        filters: int = 64,
        hidden: int = 4096,
        num_classes: int = 100,
        in_channels: int = 3,
        size: int = 32,
        steps: int = 50,
        decay: float = 0.874,
        learn_decay: str | None = None,
        backend: str = "auto",
    ) -> None:
        wholes = {"filters": filters, "hidden": hidden, "num_classes": num_classes}
        super().__init__((in_channels, size, size), steps, in_channels=in_channels, **wholes)
        check_size(size, 32)
        check_choice("learn_decay", learn_decay, LEARN_DECAY)
        make = _Make(None, "bntt", steps, decay, learn_decay, True, None, False, backend)
        layers: list[nn.Module] = []
        width = in_channels
        for k, times in enumerate((1, 2, 4, 4, 8, 8, 8, 8)):
            cout = times * filters
            layers += [make.conv(width, cout, 3, 1, None), make.norm(cout), make.neuron()]
            if k in (0, 1, 3, 5, 7):
                layers.append(Weights(nn.AvgPool2d(2)))
            width = cout
        layers.append(Weights(nn.Flatten()))
        width *= (size // 32) ** 2
        for _ in range(2):
            layers.append(Weights(nn.Linear(width, hidden, bias=False)))
            layers += [make.norm(hidden), make.neuron()]
            width = hidden
        layers.append(Weights(nn.Linear(width, num_classes, bias=False)))
        self.layers = nn.Sequential(*layers)
        self.readout = LeakyReadout(backend=backend)
        init_weights(self, nn.init.xavier_uniform_, gain=2.0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        out = self.layers(self.sequence(x))
        return self.readout(out) / (self._steps_before + out.shape[0])
