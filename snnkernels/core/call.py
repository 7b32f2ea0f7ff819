"""What a call of the neuron is: its options, numbers and tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

RESETS = ("hard", "soft", "none", "trace")
_TRACE = RESETS.index("trace")


class Options(NamedTuple):
    """The whole numbers of a neuron call, as the private ops take them (``int[] options``).

    charge, compare, spikes and when are the policies of ``csrc/neuron.h``; each has one value.
    """

    charge: int = 0
    compare: int = 0
    spikes: int = 0
    when: int = 0
    reset: int = 0
    detach_reset: int = 0
    surrogate: int = 0
    refractory: int = 0
    checkpoint_every: int = 0  # 0: nothing is kept for a backward pass
    record_h: int = 0
    wanted: int = 0  # backward: sum of the WANT_* below
    regularise: int = 0  # the penalty on potentials is summed up

    @property
    def state_rows(self) -> int:
        """Rows of a state that is kept, beside those of a synapse: v, refractory, trace.

        The forward op's ``state`` has them first, then the rows of the synapse, and where the
        neuron is regularised one more, the last: each neuron's sum over time of the penalty.
        """
        return 1 + (self.refractory > 0) + (self.reset == _TRACE)


class Numbers(NamedTuple):
    """The real numbers of a neuron call (``float[] numbers``)."""

    decay: float = 0.0  # where the coefficient is no tensor
    v_threshold: float = 0.0
    v_reset: float = 0.0
    surrogate_p: float = 0.0
    surrogate_q: float = 0.0
    gain: float = 1.0
    trace_decay: float = 0.0
    tolerance: float = 0.0  # of the regulariser
    shift: float = 0.0


class General(NamedTuple):
    """What a neuron has beyond the plain LIF, as trailing arguments of the private ops.

    Attributes:
        gain: coefficient, where it is a tensor.
        trace_decay: coefficient, where it is a tensor.
        alpha: of the synapse, `[P, c]` with c = 1 or one per channel.
        beta: of the synapse, `[Q + 1, c]`.
        trace: before the first step, `[N, *]`.
        synapse: its state before the first step, `[P + Q, N, *]`.
        dtrace: backward: gradient on the trace after the last step.
        dsynapse: backward: gradient on the synapse's state after it.
        dpenalty: backward: gradient on every neuron's sum of the penalty, one float32 value.
    """

    gain: Tensor | None = None
    trace_decay: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    trace: Tensor | None = None
    synapse: Tensor | None = None
    dtrace: Tensor | None = None
    dsynapse: Tensor | None = None
    dpenalty: Tensor | None = None

    @property
    def outputs(self) -> int:
        return 0 if self.alpha is None else self.alpha.shape[0]

    @property
    def synapse_rows(self) -> int:
        return 0 if self.beta is None else self.outputs + self.beta.shape[0] - 1


WANT_X, WANT_V, WANT_DECAY, WANT_THRESHOLD = 1, 2, 4, 8
# The gradients of General, in the order of the last output of the backward op.
WANT_GENERAL = WANT_GAIN, WANT_TRACE_DECAY, WANT_ALPHA, WANT_BETA, WANT_TRACE, WANT_SYNAPSE = tuple(
    16 << k for k in range(6)
)


def is_general(options: Options, numbers: Numbers, general: tuple) -> bool:
    """Whether a call needs more of a backend than the plain LIF."""
    has_part = any(part is not None for part in general)
    return has_part or options.reset == _TRACE or numbers.gain != 1.0 or bool(options.regularise)
