"""The neuron's coefficients and state between memory and registers.

A checkpoint has the rows v, refractory and trace, as far as the neuron has them, and then the
outputs of the synapse.
"""

import triton
import triton.language as tl

from snnkernels.backends.triton.equations import RESET_TRACE, Neuron, State
from snnkernels.backends.triton.rows import (
    load_coefficient,
    load_row,
    load_row_before,
    store_row,
)


@triton.jit
def load_neuron(source, where, channels, channel_inner, POLICY: tl.constexpr):
    """The `Neuron` with its coefficients loaded."""
    return Neuron(
        load_coefficient(source.decay, where, channels, channel_inner, POLICY.kinds[0]),
        load_coefficient(source.theta, where, channels, channel_inner, POLICY.kinds[1]),
        load_coefficient(source.gain, where, channels, channel_inner, POLICY.kinds[2]),
        load_coefficient(source.trace_decay, where, channels, channel_inner, POLICY.kinds[3]),
        source.period,
        source.numbers,
    )


@triton.jit
def load_start(start, where):
    """The state before the first step."""
    return State(
        load_row(start.v, where, where.valid),
        load_row(start.refractory, where, where.valid),
        load_row(start.trace, where, where.valid),
    )


@triton.jit
def load_state_before(start, kept, where, c, POLICY: tl.constexpr):
    """The state before chunk c: that before the first step, or the checkpoint at ``kept``."""
    v = load_row_before(start.v, kept, where, c)
    wait = tl.full(where.lane.shape, 0.0, tl.float32)
    trace = wait
    if POLICY.refractory:
        kept += where.neurons
        wait = load_row_before(start.refractory, kept, where, c)
    if POLICY.reset == RESET_TRACE:
        kept += where.neurons
        trace = load_row_before(start.trace, kept, where, c)
    return State(v, wait, trace)


@triton.jit
def store_checkpoint(to, state, where, mask, POLICY: tl.constexpr):
    """Write a state; the outputs of the synapse follow it."""
    store_row(to, state.v, where, mask)
    if POLICY.refractory:
        to += where.neurons
        store_row(to, state.wait, where, mask)
    if POLICY.reset == RESET_TRACE:
        to += where.neurons
        store_row(to, state.trace, where, mask)


@triton.jit
def store_end(out, state, where, POLICY: tl.constexpr):
    """Write the state after the last step."""
    store_row(out.v, state.v, where, where.valid)
    if POLICY.refractory:
        store_row(out.refractory, state.wait, where, where.valid)
    if POLICY.reset == RESET_TRACE:
        store_row(out.trace, state.trace, where, where.valid)
