"""Backend "cpp": the C++ kernels of ``csrc/``, on CPU tensors of float32, bfloat16 and float16."""

from __future__ import annotations

import torch
from torch import Tensor

from snnkernels.core.call import General
from snnkernels.core.strides import Layout, Rows

try:
    from snnkernels import _core
except ImportError as error:  # installed without a C++ compiler
    _core, _missing = None, str(error)

CHECKPOINT_EVERY = 16  # steps; the kernel's tape of h holds as many
MAX_ORDER = 64  # of `iir`; csrc/snncore.h

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ABSENT = (0, 0, 0, 0)
_PLAIN = General()

OPS = ("neuron", "general", "regulariser", "iir", "bntt")


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


def _problem(
    layout: Layout, options, numbers, x, v, refractory, decay, v_threshold, general
) -> tuple:
    """The arguments that forward and backward share, as ``bindings.cpp: problem`` takes them."""
    return (
        (*layout[:5], _DTYPES[x.dtype]),
        options[:9],
        numbers[2:5],
        _coefficient(decay, numbers.decay),
        _coefficient(v_threshold, numbers.v_threshold),
        _rows(x, layout.inputs[0]),
        (_address(v), _address(refractory)),
        torch.get_num_threads(),
        (
            _coefficient(general.gain, numbers.gain),
            _coefficient(general.trace_decay, numbers.trace_decay),
            None if general.beta is None else _filter(general.alpha, general.beta, general.synapse),
            _address(general.trace),
            (numbers.tolerance, numbers.shift) if options.regularise else None,
        ),
    )


def neuron_forward(
    layout,
    options,
    numbers,
    x,
    v,
    refractory,
    decay,
    v_threshold,
    *,
    s,
    state_out,
    h,
    checkpoints,
    general=_PLAIN,
) -> None:
    """Fill s, state_out, h and checkpoints; see ``csrc/snncore.h: NeuronForward``."""
    _core.neuron_forward(
        *_problem(layout, options, numbers, x, v, refractory, decay, v_threshold, general),
        _rows(s, layout.out),
        _rows(h, layout.out),
        (state_out.data_ptr(), state_out[1].data_ptr() if options.refractory else 0),
        checkpoints.data_ptr(),
        state_out[options.state_rows - 1].data_ptr(),
        state_out[options.state_rows :].data_ptr(),
        state_out[-1].data_ptr() if options.regularise else 0,
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
    general=_PLAIN,
    general_out=(None,) * 6,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: NeuronBackward``."""
    dgain, dtrace_decay, dalpha, dbeta, dtrace0, dsynapse0 = general_out
    wanted = (ddecay, dv_threshold, dgain, dtrace_decay)
    sums = [None if g is None else torch.empty(layout.neurons) for g in wanted]
    filter_sums = None
    if dalpha is not None or dbeta is not None:
        filter_sums = torch.empty(general.alpha.shape[0] + general.beta.shape[0], layout.neurons)
    _core.neuron_backward(
        *_problem(layout, options, numbers, x, v, refractory, decay, v_threshold, general),
        checkpoints.data_ptr(),
        _rows(ds, layout.inputs[1]),
        _rows(dh, layout.inputs[2]),
        _address(dv),
        _rows(dx, layout.out),
        _address(dv0),
        *map(_address, sums[:2]),
        _address(general.dtrace),
        _address(general.dsynapse),
        _address(dtrace0),
        _address(dsynapse0),
        *map(_address, sums[2:]),
        _address(filter_sums),
        _address(general.dpenalty),
    )
    for gradient, per_neuron in zip(wanted, sums, strict=True):
        if gradient is not None:
            _reduce_channels(layout, per_neuron, gradient)
    _reduce_filter(layout, filter_sums, dalpha, dbeta)


def _reduce_channels(layout: Layout, per_neuron: Tensor, out: Tensor) -> None:
    """Sum `[M]` into one value, or into one per channel."""
    channels = out.numel()
    scratch = torch.empty(_core.REDUCE_BLOCKS * channels, dtype=torch.float64)
    _core.reduce_channels(
        per_neuron.data_ptr(),
        layout.neurons,
        channels,
        layout.channel_inner if channels > 1 else layout.neurons,
        scratch.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )


def _reduce_filter(layout: Layout, sums: Tensor | None, dalpha, dbeta) -> None:
    """Sums `[P + Q + 1, M]` into the gradients of a filter's coefficients that are wanted."""
    if sums is None:
        return
    if dalpha is not None:
        for out, per_neuron in zip(dalpha, sums, strict=False):
            _reduce_channels(layout, per_neuron, out)
    if dbeta is not None:
        for out, per_neuron in zip(dbeta, sums[-dbeta.shape[0] :], strict=True):
            _reduce_channels(layout, per_neuron, out)


def _filter(alpha: Tensor, beta: Tensor, state: Tensor | None) -> tuple[int, ...]:
    return (
        alpha.shape[0],
        beta.shape[0] - 1,
        _address(alpha),
        _address(beta),
        beta.shape[1],
        _address(state),
    )


def iir_forward(
    layout, x, state, alpha, beta, *, f, state_out, checkpoint_every, checkpoints
) -> None:
    """Fill f, state_out and checkpoints; see ``csrc/snncore.h: IirForward``."""
    _core.iir_forward(
        (*layout[:5], _DTYPES[x.dtype]),
        torch.get_num_threads(),
        _filter(alpha, beta, state),
        _rows(x, layout.inputs[0]),
        _rows(f, layout.out),
        state_out.data_ptr(),
        checkpoint_every,
        checkpoints.data_ptr(),
    )


def iir_backward(
    layout,
    df,
    dstate,
    alpha,
    beta,
    x,
    state,
    checkpoint_every,
    checkpoints,
    *,
    dx,
    dstate0,
    dalpha,
    dbeta,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: IirBackward``."""
    terms = alpha.shape[0] + beta.shape[0]
    sums = None if dalpha is None else torch.empty(terms, layout.neurons)
    _core.iir_backward(
        (*layout[:5], _DTYPES[df.dtype]),
        torch.get_num_threads(),
        _filter(alpha, beta, state),
        _rows(df, layout.inputs[0]),
        _address(dstate),
        _rows(dx, layout.out),
        _address(dstate0),
        _address(sums),
        _rows(x, layout.inputs[1]),
        checkpoint_every,
        _address(checkpoints),
    )
    _reduce_filter(layout, sums, dalpha, dbeta)


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
    scratch = torch.empty(-(-rows // part) + 2, *weight.shape)
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
    scratch = torch.empty(2 * -(-rows // part) + 3, *weight.shape)
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
