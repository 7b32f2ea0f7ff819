"""Fused kernels for spiking neural networks: the whole time loop of a neuron layer in one pass."""

from importlib import import_module

from snnkernels.backends import available_backends
from snnkernels.core.output_memory import keep_freed_memory, release_freed_memory
from snnkernels.core.spike import spike
from snnkernels.core.state import State
from snnkernels.core.surrogates import (
    ATan,
    FastSigmoid,
    Gaussian,
    Laplace,
    Rectangle,
    Sigmoid,
    Surrogate,
    Triangle,
)
from snnkernels.nn._stateful import detach, reset
from snnkernels.nn.checkpoint_time import checkpoint_time
from snnkernels.nn.lif import LIF
from snnkernels.nn.neuron import Neuron
from snnkernels.nn.over_time import OverTime
from snnkernels.nn.readout import LeakyReadout
from snnkernels.nn.synapses import CurrentEncoder, IIRSynapse
from snnkernels.ops.fuse import fuse
from snnkernels.ops.iir import iir
from snnkernels.ops.lif import lif

__version__ = "0.1.0"

_CONVERT = ("accelerate", "convert", "original", "restore", "run_over_time")

__all__ = [
    "ATan",
    "CurrentEncoder",
    "FastSigmoid",
    "Gaussian",
    "IIRSynapse",
    "LIF",
    "Laplace",
    "LeakyReadout",
    "Neuron",
    "OverTime",
    "Rectangle",
    "Sigmoid",
    "State",
    "Surrogate",
    "Triangle",
    "accelerate",
    "available_backends",
    "checkpoint_time",
    "detach",
    "fuse",
    "iir",
    "keep_freed_memory",
    "lif",
    "original",
    "release_freed_memory",
    "reset",
    "restore",
    "run_over_time",
    "spike",
]


def __getattr__(name: str):
    if name not in _CONVERT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    convert = import_module("snnkernels.convert")  # when it is first asked for
    return convert if name == "convert" else getattr(convert, name)
