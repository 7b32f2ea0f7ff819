"""Backend "cpp": the C++ kernels of ``csrc/``, on CPU tensors of float32, bfloat16 and float16."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from snnkernels.backends.contract import Sums
from snnkernels.core.call import Arriving, Call, Coefficient, Gradients, Outputs
from snnkernels.core.strides import Layout, Rows

try:
    from snnkernels import _core
except ImportError as error:  # installed without a C++ compiler
    _core, _missing = None, str(error)

CHECKPOINT_EVERY = 16  # steps; the kernel's tape of h holds as many
MAX_ORDER = 64  # of `iir`; csrc/snncore.h

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ABSENT = (0, 0, 0, 0)

OPS = ("neuron", "general", "regulariser", "iir", "bntt", "program")


def why_unavailable(device_type: str, index: int | None = None) -> str | None:
    """None where this backend runs on that kind of device, else the reason."""
    if _core is None:
        return f"the C++ core was not built (install again with a C++ compiler at hand): {_missing}"
    return None if device_type == "cpu" else "it runs on CPU tensors only"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor | None, rows: Rows | None) -> tuple[int, ...]:
    return _ABSENT if tensor is None else (tensor.data_ptr(), *rows)


def _coefficient(coefficient: Coefficient) -> tuple[int, int, float]:
    return _address(coefficient.tensor), coefficient.count, coefficient.number


def _shape(layout: Layout, dtype: torch.dtype) -> tuple[int, ...]:
    return *layout[:5], _DTYPES[dtype]


def _filter(call: Call) -> tuple[int, ...]:
    alpha, beta = call.alpha, call.beta
    count, state = beta.shape[1], _address(call.state.synapse)
    return call.P, call.Q, _address(alpha), _address(beta), count, state


def _problem(layout: Layout, call: Call, x: Tensor) -> tuple:
    """The arguments that forward and backward share, as ``bindings.cpp: problem`` takes them."""
    policy = (call.reset, call.detach_reset, call.surrogate)
    return (
        _shape(layout, x.dtype),
        (*policy, call.refractory, call.checkpoint_every),
        call.numbers,
        _coefficient(call.decay),
        _coefficient(call.v_threshold),
        _rows(x, layout.inputs[0]),
        (_address(call.state.v), _address(call.state.refractory)),
        torch.get_num_threads(),
        (
            _coefficient(call.gain),
            _coefficient(call.trace_decay),
            None if call.beta is None else _filter(call),
            _address(call.state.trace),
            bool(call.regularise),
        ),
    )


def neuron_forward(layout: Layout, call: Call, x: Tensor, outputs: Outputs) -> None:
    """Fill the outputs; see ``csrc/snncore.h: NeuronForward``."""
    _core.neuron_forward(
        *_problem(layout, call, x),
        _rows(outputs.s, layout.out),
        _rows(outputs.h, layout.out),
        (_address(outputs.v), _address(outputs.refractory)),
        _address(outputs.checkpoints),
        _address(outputs.trace),
        _address(outputs.synapse),
        _address(outputs.penalty),
    )


def neuron_backward(
    layout: Layout,
    call: Call,
    x: Tensor,
    checkpoints: Tensor,
    arriving: Arriving,
    gradients: Gradients,
) -> None:
    """Fill the gradients that are wanted; see ``csrc/snncore.h: NeuronBackward``."""
    sums = Sums(layout, call, gradients, x.device)
    _core.neuron_backward(
        *_problem(layout, call, x),
        checkpoints.data_ptr(),
        _rows(arriving.s, layout.inputs[1]),
        _rows(arriving.h, layout.inputs[2]),
        _address(arriving.v),
        _rows(gradients.x, layout.out),
        _address(gradients.v),
        _address(sums.decay),
        _address(sums.v_threshold),
        _address(arriving.trace),
        _address(arriving.synapse),
        _address(gradients.trace),
        _address(gradients.synapse),
        _address(sums.gain),
        _address(sums.trace_decay),
        _address(sums.filter),
        _address(arriving.penalty),
    )
    sums.reduce(partial(reduce_channels, layout))


def reduce_channels(layout: Layout, per_neuron: Tensor, out: Tensor) -> None:
    """Add up `[M]` into one value, or into one per channel, in an order that is always the same."""
    channels = out.numel()
    scratch = torch.empty(_core.REDUCE_BLOCKS * channels, dtype=torch.float64, device=out.device)
    _core.reduce_channels(
        per_neuron.data_ptr(),
        layout.neurons,
        channels,
        layout.channel_inner if channels > 1 else layout.neurons,
        scratch.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )


def iir_forward(layout: Layout, call: Call, x: Tensor, outputs: Outputs) -> None:
    """Fill the outputs; see ``csrc/snncore.h: IirForward``."""
    _core.iir_forward(
        _shape(layout, x.dtype),
        torch.get_num_threads(),
        _filter(call),
        _rows(x, layout.inputs[0]),
        _rows(outputs.s, layout.out),
        outputs.synapse.data_ptr(),
        call.checkpoint_every,
        outputs.checkpoints.data_ptr(),
    )


def iir_backward(
    layout: Layout,
    call: Call,
    x: Tensor | None,
    checkpoints: Tensor | None,
    arriving: Arriving,
    gradients: Gradients,
) -> None:
    """Fill the gradients that are wanted; see ``csrc/snncore.h: IirBackward``."""
    sums = Sums(layout, call, gradients, arriving.s.device)
    _core.iir_backward(
        _shape(layout, arriving.s.dtype),
        torch.get_num_threads(),
        _filter(call),
        _rows(arriving.s, layout.inputs[1]),
        _address(arriving.synapse),
        _rows(gradients.x, layout.out),
        _address(gradients.synapse),
        _address(sums.filter),
        _rows(x, layout.inputs[0]),
        call.checkpoint_every,
        _address(checkpoints),
    )
    sums.reduce(partial(reduce_channels, layout))


def takes_bntt(*sequences: Tensor) -> bool:
    """Whether the kernels of BNTT take these `[T, N, C, H, W]`: float32, each step channels_last.

    A step must have more rows (N H W) than there are threads: PyTorch's batch norm, whose bits the
    forward pass has, adds up shorter ones in another way.
    """
    return all(
        x.dtype == torch.float32
        and x.ndim == 5
        and x.numel() > 0
        and x[0].is_contiguous(memory_format=torch.channels_last)
        and x[0, :, 0].numel() > torch.get_num_threads()
        for x in sequences
    )


def bntt_forward(x: Tensor, weight: Tensor, eps: float, *, out, mean, rstd) -> None:
    """Fill out, mean and rstd; see ``csrc/snncore.h: BnttForward``."""
    threads, rows = torch.get_num_threads(), x[0, :, 0].numel()
    part = -(-rows // threads)  # PyTorch's batch norm adds up one part per thread
    scratch = weight.new_empty(-(-rows // part) + 2, *weight.shape, dtype=torch.float32)
    _core.bntt_forward(
        (weight.shape[0], rows, weight.shape[1], part),
        weight.data_ptr(),
        scratch.data_ptr(),
        threads,
        eps,
        x.data_ptr(),
        x.stride(0),
        *map(_address, (out, mean, rstd)),
    )


def bntt_backward(dout, kept, mean: Tensor | None, rstd, weight, *, dx, dweight) -> None:
    """Fill dx and dweight; see ``csrc/snncore.h: BnttBackward``."""
    rows = kept[0, :, 0].numel()
    part = 256  # fixed: gradients do not depend on the threads
    scratch = weight.new_empty(2 * -(-rows // part) + 3, *weight.shape, dtype=torch.float32)
    _core.bntt_backward(
        (weight.shape[0], rows, weight.shape[1], part),
        weight.data_ptr(),
        scratch.data_ptr(),
        torch.get_num_threads(),
        dout.data_ptr(),
        dout.stride(0),
        kept.data_ptr(),
        kept.stride(0),
        *map(_address, (mean, rstd, dx, dweight)),
    )
