"""The filter with time cut into chunks that run side by side, for long records of few neurons.

A kernel that runs over [T, M] runs as well over n chunks of L steps, as rows of their own (the
outer dimension of the layout): L dependent steps instead of T, n M neurons instead of M. What is
missing is the state at the start of each chunk. The inputs of it are known. For its outputs a first
pass runs every chunk from zero; as the filter is linear, the true output state at the end of chunk
k is that of this pass plus A^L times the true one at its start, A being the matrix of one step. A
scan over the chunks, in float64, gives all of them, and a second pass runs from there. The adjoint
goes the same way from the last chunk to the first with the transposed matrix. The T - n L steps
that are left over are one more call.

Both passes are the sequential kernels of the backend. The start of a chunk is rounded once to
float32, so the result differs from the sequential one within its own rounding error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.core.call import Arriving, Call, Gradients, Outputs
from snnkernels.core.state import State
from snnkernels.core.strides import Layout, Rows

# Below LEAST_STEPS the scan costs more than it saves. With more than MOST_NEURONS a step keeps a
# device busy enough: on a CPU when they fill a good part of a vector (measured: bench/iir.py), on a
# GPU, where a step takes as long as one result waits for the other, when they fill its cores.
LEAST_STEPS, MOST_NEURONS = 1 << 16, {"cpu": 4, "cuda": 1024}
# As many chunks as make WIDTH neurons of them all, and none shorter than SHORTEST steps.
WIDTH, SHORTEST = {"cpu": 256, "cuda": 1 << 14}, 512


def chunks_for(steps: int, neurons: int, device_type: str) -> int:
    """Chunks to cut a call of T steps and M neurons into; 0: it is faster in one piece."""
    if steps < LEAST_STEPS or not 0 < neurons <= MOST_NEURONS.get(device_type, 0):
        return 0
    return min(WIDTH[device_type] // neurons, steps // SHORTEST)


def largest_pole(alpha: Tensor) -> float:
    """The largest |z| of the poles of filters with these coefficients `[P]` or `[C, P]`."""
    order = alpha.shape[-1]
    if not alpha.numel():
        return 0.0
    if not alpha.isfinite().all():
        return float("inf")
    alpha = alpha.detach().to("cpu", torch.float64)
    companion = alpha.new_zeros(*alpha.shape[:-1], order, order)
    companion[..., 0, :] = alpha
    companion[..., 1:, :-1].diagonal(dim1=-2, dim2=-1).fill_(1)
    return torch.linalg.eigvals(companion).abs().max().item()


class Cut:
    """How one call is cut up.

    Attributes:
        chunks: n.
        length: L.
        rest: steps behind the last chunk.
        sizes: of the parts of the buffer that is kept for the gradients of coefficients: starts of
            the chunks and of the rest `[P + Q, n, M]`, `[P + Q, M]`, and the checkpoints of both.
    """

    def __init__(self, steps: int, neurons: int, call: Call, chunks: int) -> None:
        P, Q, every = call.P, call.Q, call.checkpoint_every
        # Of odd length: the chunks of an even one lie in few sets of a cache, at worst in one.
        self.chunks, self.length = chunks, (steps // chunks - 1) | 1
        self.rest = steps - chunks * self.length
        self.steps = chunks * self.length  # before the rest
        rows = [(P + Q) * chunks * neurons, (P + Q) * neurons * (self.rest > 0)]
        if every:
            rows.append((self.length - 1) // every * P * chunks * neurons)
            rows.append(max(self.rest - 1, 0) // every * P * neurons)
        self.sizes = rows

    def layout(self, whole: Layout) -> Layout:
        """The walk over all chunks side by side."""
        assert whole.outer == 1, "chunks take the place of rows"

        def rows(r: Rows | None) -> Rows | None:
            return r and r._replace(outer=self.length * r.time)

        return whole._replace(
            steps=self.length,
            outer=self.chunks,
            out=rows(whole.out),
            inputs=tuple(map(rows, whole.inputs)),
        )

    def behind(self, sequence: Tensor | None) -> Tensor | None:
        """The rest of a sequence."""
        return None if sequence is None else sequence[self.steps :]


def _flat(rows: Tensor, neurons: int) -> Tensor:
    """A state in memory order, `[rows, M]`."""
    return rows.as_strided((rows.shape[0], neurons), (neurons, 1))


def _step(alpha: Tensor, beta: Tensor) -> Tensor:
    """The matrix of one step on the state (outputs, then inputs), `[c, P + Q, P + Q]`."""
    P, Q = alpha.shape[0], beta.shape[0] - 1
    matrix = alpha.new_zeros(alpha.shape[1], P + Q, P + Q, dtype=torch.float64)
    for first, order in ((0, P), (P, Q)):
        for lag in range(1, order):
            matrix[:, first + lag, first + lag - 1] = 1
    if P:
        matrix[:, 0] = torch.cat([alpha, beta[1:]]).double().t()
    return matrix


def _power(matrix: Tensor, exponent: int) -> Tensor:
    """Huge instead of infinite: 0 times it is 0, as in the steps that it stands for."""
    return torch.linalg.matrix_power(matrix, exponent).nan_to_num()


def _accumulate(matrix: Tensor, rows: Tensor, layout: Layout) -> Tensor:
    """r[k] + matrix r[k-1] + matrix^2 r[k-2] + ... of rows `[p, n, M]`, in float64, by doubling."""
    p, n, _ = rows.shape
    channels = matrix.shape[0]
    inner = layout.channel_inner if channels > 1 else layout.inner
    out = rows.double().view(p, n, -1, channels, inner)
    reach = 1
    while reach < n:
        earlier = torch.einsum("cij,jkbcm->ikbcm", matrix, out[:, :-reach])
        out = torch.cat([out[:, :reach], out[:, reach:] + earlier], dim=1)
        matrix, reach = (matrix @ matrix).nan_to_num(), 2 * reach
    return out.reshape(rows.shape)


def forward(run: Callable, layout: Layout, call: Call, x: Tensor, outputs: Outputs, chunks: int):
    """Fill the outputs of a call in chunks of time.

    Args:
        run: the backend's ``iir_forward``; the arguments that follow are what it takes.
        layout: of the whole call, with O = 1.
        call: the filter and its state.
        x: input.
        outputs: with ``checkpoints`` flat, of ``sum(Cut.sizes)``.
        chunks: n.
    """
    P, Q, M = call.P, call.Q, layout.neurons
    cut = Cut(layout.steps, M, call, chunks)
    side_by_side = cut.layout(layout)
    kept = outputs.checkpoints
    if not call.checkpoint_every:
        kept = torch.empty(sum(cut.sizes), dtype=torch.float32, device=x.device)
    starts, rest_start, *checkpoints = kept.split(cut.sizes)
    starts = starts.view(P + Q, chunks, M)
    starts[:P].zero_()
    starts[:, 0] = 0 if call.state.synapse is None else _flat(call.state.synapse, M)
    time, inner = layout.inputs[0].time, layout.inputs[0].inner
    for lag in range(1, Q + 1):
        first = x.storage_offset() + (cut.length - lag) * time
        starts[P + lag - 1, 1:] = x.as_strided((chunks - 1, M), (cut.length * time, inner), first)
    ends = torch.empty_like(starts)
    nothing = starts.new_empty(0)
    all_chunks = call._replace(state=State(synapse=starts))
    filled = outputs._replace(synapse=ends, checkpoints=nothing)
    if P:
        run(side_by_side, all_chunks._replace(checkpoint_every=0), x, filled)
        matrix = _power(_step(call.alpha, call.beta[:1]), cut.length)
        starts[:P, 1:] = _accumulate(matrix, ends[:P], layout)[:, :-1]
    kept_of = iter(checkpoints)
    run(side_by_side, all_chunks, x, filled._replace(checkpoints=next(kept_of, nothing)))
    last = ends[:, -1].contiguous()
    if not cut.rest:
        _flat(outputs.synapse, M).copy_(last)
        return
    rest_start.copy_(last.view(-1))
    run(
        layout._replace(steps=cut.rest),
        call._replace(state=State(synapse=last)),
        cut.behind(x),
        outputs._replace(s=cut.behind(outputs.s), checkpoints=next(kept_of, nothing)),
    )


def backward(
    run: Callable,
    layout: Layout,
    call: Call,
    x: Tensor | None,
    kept: Tensor | None,
    arriving: Arriving,
    gradients: Gradients,
    chunks: int,
) -> None:
    """Fill the gradients of a call in chunks of time.

    Args:
        run: the backend's ``iir_backward``; the arguments that follow are what it takes.
        layout: of the whole call, with O = 1.
        call: the filter.
        x: input; None where no coefficient learns.
        kept: the checkpoints as `forward` filled them; None where no coefficient learns.
        arriving: on f and on the state after the last step.
        gradients: what is wanted.
        chunks: n.
    """
    P, Q, M = call.P, call.Q, layout.neurons
    cut = Cut(layout.steps, M, call, chunks)
    side_by_side = cut.layout(layout)
    learns = gradients.alpha is not None
    starts = rest_start = checkpoints = rest_checkpoints = None
    if learns:
        starts, rest_start, checkpoints, rest_checkpoints = kept.split(cut.sizes)
    coefficients = call.alpha, call.beta
    more = [torch.empty_like(c) if learns else None for c in coefficients]
    ends = torch.zeros((P + Q, chunks, M), dtype=torch.float32, device=arriving.s.device)
    if cut.rest:
        into = torch.empty_like(ends[:, 0])
        run(
            layout._replace(steps=cut.rest),
            call._replace(state=State(synapse=rest_start)),
            cut.behind(x),
            rest_checkpoints,
            arriving._replace(s=cut.behind(arriving.s)),
            Gradients(x=cut.behind(gradients.x), synapse=into, alpha=more[0], beta=more[1]),
        )
        ends[:, -1] = into
    elif arriving.synapse is not None:
        ends[:, -1] = _flat(arriving.synapse, M)
    into = torch.empty_like(ends)
    all_chunks = arriving._replace(synapse=ends)
    alone = call._replace(checkpoint_every=0)
    run(side_by_side, alone, None, None, all_chunks, Gradients(synapse=into))
    matrix = _power(_step(*coefficients), cut.length).transpose(1, 2)
    ends[:, :-1] = _accumulate(matrix, into.flip(1), layout).flip(1)[:, 1:]
    run(
        side_by_side,
        call._replace(state=State(synapse=starts)),
        x,
        checkpoints,
        all_chunks,
        gradients._replace(synapse=into),
    )
    if gradients.synapse is not None:
        _flat(gradients.synapse, M).copy_(into[:, 0])
    if learns and cut.rest:
        gradients.alpha.add_(more[0])
        gradients.beta.add_(more[1])
