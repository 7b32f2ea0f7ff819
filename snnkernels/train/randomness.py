"""All random numbers that a run draws, to go on from where it was stopped."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


def random_state(model: nn.Module) -> dict:
    """Where all generators are, as plain values and tensors for a checkpoint.

    That is PyTorch's on the CPU and on every GPU, numpy's and Python's global ones, and those of
    the modules that have their own and say so by ``get_rng_state`` and ``set_rng_state``, as the
    codes of `snnkernels.nn.encode`.

    Args:
        model: whose modules are asked.
    """
    kind, key, *position = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, key.tolist(), *position),
        "python": random.getstate(),
        "modules": {name: module.get_rng_state() for name, module in _with_generators(model)},
    }


def set_random_state(model: nn.Module, state: dict) -> None:
    """Go on from there; GPUs that are not there now are left out.

    Args:
        model: whose modules are told.
        state: of `random_state`.
    """
    torch.set_rng_state(state["torch"])
    for device, position in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(position, device)
    np.random.set_state(tuple(state["numpy"]))
    random.setstate(state["python"])
    for name, module in _with_generators(model):
        module.set_rng_state(state["modules"][name])


def _with_generators(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "get_rng_state")]
