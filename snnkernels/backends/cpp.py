"""Backend "cpp": the C++ kernels of ``csrc/``, on CPU tensors of float32, bfloat16 and float16."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.layout import Layout, Rows

try:
    from snnkernels import _core
except ImportError as error:  # installed without a C++ compiler
    _core, _missing = None, str(error)

CHECKPOINT_EVERY = 16  # steps; the kernel's tape of h holds as many

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ABSENT = (0, 0, 0, 0)


def why_unavailable(device_type: str) -> str | None:
    """None where this backend runs on that kind of device, else the reason."""
    if _core is None:
        return f"the C++ core was not built (install again with a C++ compiler at hand): {_missing}"
    return None if device_type == "cpu" else "it runs on CPU tensors only"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor | None, rows: Rows | None) -> tuple[int, ...]:
    return _ABSENT if tensor is None else (tensor.data_ptr(), *rows)


def _coefficient(tensor: Tensor | None, value: float) -> tuple[int, int, float]:
    return (0, 1, value) if tensor is None else (tensor.data_ptr(), tensor.numel(), 0.0)


def _problem(layout: Layout, options, numbers, x, v, refractory, decay, v_threshold) -> tuple:
    """The arguments that forward and backward share, as ``bindings.cpp: problem`` takes them."""
    return (
        (*layout[:5], _DTYPES[x.dtype]),
        options[:9],
        numbers[2:],
        _coefficient(decay, numbers.decay),
        _coefficient(v_threshold, numbers.v_threshold),
        _rows(x, layout.inputs[0]),
        (_address(v), _address(refractory)),
        torch.get_num_threads(),
    )


def neuron_forward(
    layout, options, numbers, x, v, refractory, decay, v_threshold, *, s, state_out, h, checkpoints
) -> None:
    """Fill s, state_out, h and checkpoints; see ``csrc/snncore.h: NeuronForward``."""
    _core.neuron_forward(
        *_problem(layout, options, numbers, x, v, refractory, decay, v_threshold),
        _rows(s, layout.out),
        _rows(h, layout.out),
        (state_out.data_ptr(), state_out[1].data_ptr() if options.refractory else 0),
        checkpoints.data_ptr(),
    )


def neuron_backward(
    layout,
    options,
    numbers,
    x,
    v,
    refractory,
    decay,
    v_threshold,
    checkpoints,
    ds,
    dv,
    dh,
    *,
    dx,
    dv0,
    ddecay,
    dv_threshold,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: NeuronBackward``."""
    sums = [None if g is None else torch.empty(layout.neurons) for g in (ddecay, dv_threshold)]
    _core.neuron_backward(
        *_problem(layout, options, numbers, x, v, refractory, decay, v_threshold),
        checkpoints.data_ptr(),
        _rows(ds, layout.inputs[1]),
        _rows(dh, layout.inputs[2]),
        _address(dv),
        _rows(dx, layout.out),
        _address(dv0),
        *map(_address, sums),
    )
    for gradient, per_neuron in zip((ddecay, dv_threshold), sums, strict=True):
        if gradient is not None:
            channels = gradient.numel()
            inner = layout.channel_inner if channels > 1 else layout.neurons
            scratch = torch.empty(_core.REDUCE_BLOCKS * channels, dtype=torch.float64)
            _core.reduce_channels(
                per_neuron.data_ptr(),
                layout.neurons,
                channels,
                inner,
                scratch.data_ptr(),
                gradient.data_ptr(),
                torch.get_num_threads(),
            )
