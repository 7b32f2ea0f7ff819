"""Networks from strings such as "64C3-P2-32C3-32C3-P2-256-10" (Fang et al., IIR-SNN)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from snnkernels.core.checks import check_positive
from snnkernels.core.surrogates import Surrogate
from snnkernels.models._blocks import Readout, SequenceNetwork, Weights, check_save, init_weights
from snnkernels.models.iir_snn import SURROGATE, Dynamics
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
    """A feed-forward spiking network from the paper's shorthand, with the neurons of its eq. 5.

    Every convolution (padded to keep the size) and dense layer has filters before it, one per input
    channel, and after it leaky neurons whose spikes leave a trace that lowers their potential. P is
    average pooling; there are no biases. The paper gives neither P, time constants nor initial
    weights: those here are this library's choice, made so that every layer fires at first.

    Args:
        layers: see `parse`.
        input_shape: of one step: `(C, H, W)`, or `(features,)` for dense layers alone.
        steps: T for an input without a time axis, and the most steps. Default: 300.
        tau_m: of the synapses' decay, in steps. Default: 4.
        tau_s: of the synapses' rise, in steps. Default: 1.
        tau: of the potential, in steps. Default: 4.
        tau_trace: of the reset trace, in steps. Default: 4.
        learn_filters: train the synapses' coefficients. Default: True.
        scale: of the initial weights, normal around 0, in units of 1 / sqrt(inputs of a neuron).
            Default: 2.
        v_threshold: Default: 1.
        surrogate: Default: ``Gaussian(1.0)`` (eq. 18-19).
        synapse: other filters: called with the number of channels (features) that enter a layer of
            weights; gives a module `[T, N, *]` -> `[T, N, *]`, `torch.nn.Identity` for none.
            Default: None, those of eq. 4c and 5d.
        neuron: gives a layer of other neurons. Default: None, those of eq. 5.
        save: how the inputs of convolutions, dense layers and pooling are kept for the backward
            pass where they are spikes of a `LIF`, not filtered: "bits" or "bytes", see
            `snnkernels.OverTime`. Default: None.
        readout: "count" (eq. 6-7), "rate", "spikes" (for the van Rossum distance), "potential" or
            "potentials", see `snnkernels.models._blocks.Readout`. Default: "count".
        backend: of all filters and neurons. Default: "auto".

    Shape:
        x `[T, N, *input_shape]` or `[N, *input_shape]`; output `[N, outputs]`, or
        `[T, N, outputs]` for "spikes" and "potentials".
    """

    def __init__(
        self,
        layers: str,
        *,
        input_shape: tuple[int, ...],
        steps: int = 300,
        tau_m: float = 4.0,
        tau_s: float = 1.0,
        tau: float = 4.0,
        tau_trace: float = 4.0,
        learn_filters: bool = True,
        scale: float = 2.0,
        v_threshold: float = 1.0,
        surrogate: Surrogate = SURROGATE,
        synapse: Callable[[int], nn.Module] | None = None,
        neuron: Callable[[], nn.Module] | None = None,
        save: str | None = None,
        readout: str = "count",
        backend: str = "auto",
    ) -> None:
        shape = tuple(input_shape)
        super().__init__(shape, steps)
        parts = parse(layers)
        check_positive(scale=scale)
        if len(shape) not in (1, 3) or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"input_shape must be (C, H, W) or (features,); got {input_shape!r}")
        if len(shape) == 1 and parts[0].kind != "dense":
            raise ValueError(f"input_shape must be (C, H, W) for {layers!r}; got {input_shape!r}")
        dynamics = Dynamics(
            tau_m, tau_s, tau, tau_trace, learn_filters, v_threshold, surrogate, backend
        )
        options = dynamics.neuron_options()
        synapse = dynamics.synapse if synapse is None else synapse
        check_save(save, True)
        modules: list[nn.Module] = []

        def weights(*parts: nn.Module) -> Weights:
            seen = [m for m in modules if not isinstance(m, nn.Identity)]
            binary = bool(seen) and isinstance(seen[-1], LIF)
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
        init_weights(self, _normal, scale=scale)
        self.readout = Readout(readout, **options)
        if neuron is not None and isinstance(self.readout.neuron, LIF):
            self.readout.neuron = neuron()

    def forward(self, x: Tensor) -> Tensor:
        """Run a batch."""
        return self.readout(self.layers(self.sequence(x)))


def _normal(weight: Tensor, scale: float) -> Tensor:
    """Deviation ``scale`` / sqrt(inputs of a neuron)."""
    return nn.init.normal_(weight, std=scale / weight[0].numel() ** 0.5)
