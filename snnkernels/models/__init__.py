"""The networks of the papers, by name.

Every network takes `[T, N, C, H, W]`, time first, or `[N, C, H, W]`, shown at every step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from snnkernels.models.baselines import C3D, CNN, CNNLSTM, ConvLSTMNet
from snnkernels.models.from_string import GRAMMAR, LayeredSNN, parse
from snnkernels.models.resnet3d import ResNet3D
from snnkernels.models.rsnn import RSNN, RecurrentClassifier
from snnkernels.models.s_resnet import SVGG11, SResNet
from snnkernels.models.scnn import RSCNN, TSCNN, WSCNN
from snnkernels.models.sts_resnet import ConvSNN, STSResNet
from snnkernels.nn._numbers import number_keys
from snnkernels.nn.lif import LIF
from snnkernels.nn.norm import BNTT
from snnkernels.nn.readout import LeakyReadout

__all__ = ["BNTT", "count", "create", "find", "load", "names", "parse"]

_MODELS: dict[str, type[nn.Module]] = {
    "conv_snn": ConvSNN,
    "sts_resnet": STSResNet,
    "s_vgg11": SVGG11,
    "cnn": CNN,
    "cnn_lstm": CNNLSTM,
    "conv_lstm": ConvLSTMNet,
    "c3d": C3D,
    "resnet3d18": ResNet3D,
    "tscnn": TSCNN,
    "wscnn": WSCNN,
    "rscnn": RSCNN,
    "rsnn": RSNN,
    "rsnn_features": RecurrentClassifier,
}
_RESNET = re.compile(r"s_resnet(\d+)")


def names() -> tuple[str, ...]:
    """What `create` takes but for strings of layers; N in "s_resnetN" is a depth 6n + 2."""
    return (*_MODELS, "s_resnetN")


def create(name: str, **options) -> nn.Module:
    """Build a network of one of the papers.

    Args:
        name: one of `names`, for instance "s_resnet38" or "wscnn", or a string of layers such as
            "64C3-P2-32C3-32C3-P2-256-10" (see `snnkernels.models.from_string.parse`).
        **options: those of the network's class.

    Returns:
        The network, with fresh weights, in training mode.

    Raises:
        TypeError: an option that the network does not have.
        ValueError: a name that is not known, or an option's value that is not allowed.

    Example:
        >>> from snnkernels import models
        >>> net = models.create("s_resnet38", filters=16, num_classes=10)
        >>> models.count(net, (3, 32, 32))[0]
        634000
    """
    model, implied = find(name)
    allowed = [option for option in inspect.signature(model).parameters if option not in implied]
    for option in options:
        if option not in allowed:
            raise TypeError(f"{name} has no option {option!r}; its options: {', '.join(allowed)}")
    return model(**implied, **options)


def find(name: str) -> tuple[type[nn.Module], dict]:
    """The class of a network, and the options that its name implies.

    Args:
        name: as in `create`.

    Raises:
        TypeError: no string.
        ValueError: a name that is not known.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string; got {name!r}")
    if name in _MODELS:
        return _MODELS[name], {}
    if match := _RESNET.fullmatch(name):
        return SResNet, {"depth": int(match[1])}
    if "-" in name:
        return LayeredSNN, {"layers": name}
    raise ValueError(
        f"name must be one of {', '.join(names())}, or layers: {GRAMMAR}; got {name!r}"
    )


def count(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Count parameters and neurons.

    Neurons are counted as in Stöckl's thesis: one per value of one step of the input, per spiking
    neuron and per output that is read as a potential. In a network without spikes every value that
    a ReLU gives for one sample counts instead. The network runs once, on zeros.

    Args:
        model: any network that takes `[N, *input_shape]`.
        input_shape: of one sample: `(C, H, W)`, or `(features,)`.

    Returns:
        (parameters, neurons).
    """
    layers: list[int] = [torch.Size(input_shape).numel()]

    def add(module: nn.Module, _, out: Tensor | tuple[Tensor, Tensor]) -> None:
        out = out[0] if isinstance(out, tuple) else out
        steps = isinstance(module, LIF) or getattr(module, "output", "") == "sequence"
        layers.append(out[0, 0].numel() if steps else out.numel())

    kinds = (LIF, LeakyReadout, nn.ReLU)
    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, kinds)]
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sum(p.numel() for p in model.parameters()), sum(layers)


def load(model: nn.Module, checkpoint: Mapping[str, Tensor] | str | PathLike) -> nn.Module:
    """Load weights, or say how the checkpoint's architecture differs.

    Plain numbers of the neurons (see `snnkernels.LIF`) may be missing, as in checkpoints of earlier
    versions; the network then keeps its own.

    Args:
        model: the network to fill.
        checkpoint: a ``state_dict``, or the path of a file that holds one; files are read with
            ``weights_only=True``, so that none can run code.

    Returns:
        The model.

    Raises:
        RuntimeError: keys are missing, unknown or of another shape; nothing is loaded then.
    """
    if not isinstance(checkpoint, Mapping):
        checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=True)
    own = model.state_dict()
    needed = own.keys() - number_keys(model)
    differences = {
        "missing from the checkpoint": [k for k in own if k in needed and k not in checkpoint],
        "unknown to the network": [k for k in checkpoint if k not in own],
        "of another shape": [
            f"{k} {list(checkpoint[k].shape)} instead of {list(own[k].shape)}"
            for k in own
            if k in checkpoint and checkpoint[k].shape != own[k].shape
        ],
    }
    if any(differences.values()):
        told = "; ".join(
            f"{len(keys)} keys {what}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
            for what, keys in differences.items()
            if keys
        )
        raise RuntimeError(f"checkpoint does not fit {type(model).__name__}: {told}")
    model.load_state_dict(checkpoint)
    return model
