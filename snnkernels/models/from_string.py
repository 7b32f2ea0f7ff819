"""Networks from strings such as "64C3-P2-32C3-32C3-P2-256-10" (Fang et al., IIR-SNN)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from snnkernels.core.checks import check_positive
from snnkernels.core.surrogates import Gaussian
from snnkernels.models._blocks import Readout, SequenceNetwork, Weights, check_save, init_weights
from snnkernels.nn.lif import LIF

GRAMMAR = (
    "nCk (n filters of k x k), Pk, APk or MPk (k x k pooling), n (n dense neurons), joined by '-'; "
    "the last part is a number of outputs"
)
_PARTS = re.compile(r"(?P<n>\d+)(C(?P<k>\d+))?|(?P<pool>P|AP|MP)(?P<by>\d+)")


class Part(NamedTuple):
    """One layer of a string: kind "conv", "dense", "avg" or "max", its width and its kernel."""

    kind: str
    width: int = 0
    kernel: int = 1


def parse(layers: str) -> list[Part]:
    """Read a string of layers.

    Args:
        layers: for instance "64C3-P2-32C3-256-10"; P is average pooling.

    Returns:
        The layers in order.

    Raises:
        ValueError: a part that is none of the grammar's, a convolution or pooling after a dense
            layer, an even kernel, or no dense layer at the end.
    """
    parts = []
    for text in layers.split("-"):
        match = _PARTS.fullmatch(text)
        if match is None or int(match["n"] or match["by"]) == 0:
            raise ValueError(f"layers must be {GRAMMAR}; got {text!r} in {layers!r}")
        if match["pool"]:
            part = Part("max" if match["pool"] == "MP" else "avg", kernel=int(match["by"]))
        elif match["k"]:
            part = Part("conv", int(match["n"]), int(match["k"]))
            if part.kernel % 2 == 0:
                raise ValueError(f"layers must have odd kernels; got {text!r} in {layers!r}")
        else:
            part = Part("dense", int(match["n"]))
        if parts and parts[-1].kind == "dense" and part.kind != "dense":
            raise ValueError(f"layers must not go on with {text!r} after a dense layer: {layers!r}")
        parts.append(part)
    if parts[-1].kind != "dense":
        raise ValueError(f"layers must end with a number of outputs; got {layers!r}")
    return parts


class LayeredSNN(SequenceNetwork):
    """A feed-forward spiking network from the papers' shorthand.

    Every convolution (padded to keep the size) and dense layer is followed by neurons. In the paper
    each is preceded by synaptic filters, one per input channel: pass ``synapse``. Chosen here: P is
    average pooling, no biases, soft reset, Gaussian surrogate, weights from He's normal
    distribution.

    Args:
        layers: see `parse`.
        input_shape: of one step: `(C, H, W)`, or `(features,)` for dense layers alone.
        steps: T for an input without a time axis, and the most steps. Default: 300.
        synapse: called with the number of channels (features) that enter a layer of weights; gives
            a module `[T, N, *]` -> `[T, N, *]` that filters them. Default: None, no filters.
        neuron: gives a layer of neurons; None gives `LIF` with the options below.
        decay: Default: 0.8.
        v_threshold: Default: 1.
        sigma: width of the surrogate (eq. 18-19). Default: 0.5.
        save: how the inputs of convolutions, dense layers and pooling are kept for the backward
            pass where they are spikes of a `LIF`: "bits" or "bytes", see `snnkernels.OverTime`.
            Default: None.
        readout: "count" (eq. 6-7), "rate", "spikes" (for the van Rossum distance) or "potential".
            Default: "count".
        backend: of all neurons. Default: "auto".

    Shape:
        x `[T, N, *input_shape]` or `[N, *input_shape]`; output `[N, outputs]`, or
        `[T, N, outputs]` with ``readout="spikes"``.
    """

    def __init__(
        self,
        layers: str,
        *,
        input_shape: tuple[int, ...],
        steps: int = 300,
        synapse: Callable[[int], nn.Module] | None = None,
        neuron: Callable[[], nn.Module] | None = None,
        decay: float = 0.8,
        v_threshold: float = 1.0,
        sigma: float = 0.5,
        save: str | None = None,
        readout: str = "count",
        backend: str = "auto",
    ) -> None:
        shape = tuple(input_shape)
        super().__init__(shape, steps)
        parts = parse(layers)
        check_positive(sigma=sigma)
        if len(shape) not in (1, 3) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"input_shape must be (C, H, W) or (features,); got {input_shape!r}")
        if len(shape) == 1 and parts[0].kind != "dense":
            raise ValueError(f"input_shape must be (C, H, W) for {layers!r}; got {input_shape!r}")
        options = {
            "decay": decay,
            "v_threshold": v_threshold,
            "reset": "soft",
            "surrogate": Gaussian(sigma),
            "backend": backend,
        }
        check_save(save, True)
        modules: list[nn.Module] = []

        def weights(*parts: nn.Module) -> Weights:
            binary = bool(modules) and isinstance(modules[-1], LIF)
            return Weights(*parts, save=save if binary else None)

        for i, part in enumerate(parts):
            if part.kind in ("avg", "max"):
                if min(shape[1:]) < part.kernel:
                    raise ValueError(
                        f"input_shape {tuple(input_shape)} is too small for {layers!r}: pooling by "
                        f"{part.kernel} meets {shape[1]} x {shape[2]} pixels"
                    )
                pool = nn.AvgPool2d if part.kind == "avg" else nn.MaxPool2d
                modules.append(weights(pool(part.kernel)))
                shape = (shape[0], *(n // part.kernel for n in shape[1:]))
                continue
            if synapse is not None:
                modules.append(synapse(shape[0]))
            if part.kind == "conv":
                conv = nn.Conv2d(
                    shape[0], part.width, part.kernel, padding=part.kernel // 2, bias=False
                )
                modules.append(weights(conv))
                shape = (part.width, *shape[1:])
            else:
                inputs = shape[0] if len(shape) == 1 else shape[0] * shape[1] * shape[2]
                flatten = [nn.Flatten()] if len(shape) == 3 else []
                modules.append(weights(*flatten, nn.Linear(inputs, part.width, bias=False)))
                shape = (part.width,)
            if i < len(parts) - 1:
                modules.append(LIF(**options) if neuron is None else neuron())
        self.layers = nn.Sequential(*modules)
        init_weights(self, nn.init.kaiming_normal_)
        self.readout = Readout(readout, **options)
        if neuron is not None and readout != "potential":
            self.readout.neuron = neuron()

    def forward(self, x: Tensor) -> Tensor:
        """Run a batch."""
        return self.readout(self.layers(self.sequence(x)))
