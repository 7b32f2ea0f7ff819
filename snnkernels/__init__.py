"""Fused kernels for spiking neural networks: the whole time loop of a neuron layer in one pass."""

from snnkernels.backends import available_backends
from snnkernels.filter_ops import iir
from snnkernels.layers import LIF, LeakyReadout, OverTime, detach, reset
from snnkernels.memory import keep_freed_memory
from snnkernels.ops import lif
from snnkernels.state import State
from snnkernels.surrogates import (
    ATan,
    FastSigmoid,
    Gaussian,
    Rectangle,
    Sigmoid,
    Surrogate,
    Triangle,
)
from snnkernels.synapses import CurrentEncoder, IIRSynapse

__version__ = "0.1.0"

__all__ = [
    "ATan",
    "CurrentEncoder",
    "FastSigmoid",
    "Gaussian",
    "IIRSynapse",
    "LIF",
    "LeakyReadout",
    "OverTime",
    "Rectangle",
    "Sigmoid",
    "State",
    "Surrogate",
    "Triangle",
    "available_backends",
    "detach",
    "iir",
    "keep_freed_memory",
    "lif",
    "reset",
]
