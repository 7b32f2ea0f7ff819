"""sinabs: IAF, LIF, ExpLeak and ALIF over `[B, T, *]`, and their squeezed forms."""

from __future__ import annotations

from collections.abc import Sequence

from sinabs import layers
from sinabs.layers.alif import ALIFSqueeze
from sinabs.layers.functional.alif import alif_forward_single
from sinabs.layers.functional.lif import lif_forward_single
from sinabs.layers.reshape import SqueezeMixin
from torch import Tensor, nn

from snnkernels.convert.adapter import Adapter
from snnkernels.convert.fused import Kept, original_class

_RECORDS_LATE = "its record_states shows potentials of the step after"


class Sinabs(Adapter):
    """LIF and what is made of it: states are buffers, every parameter may be learned."""

    changing = frozenset({"recordings", "firing_rate", "batch_size", "num_timesteps", "i_syn"})

    def states(self, module: nn.Module) -> int:
        return len(module._buffers)

    def step(self, module, x, states):
        names = tuple(module._buffers)
        spikes, after = lif_forward_single(
            *x,
            module.alpha_mem_calculated,
            module.alpha_syn_calculated,
            dict(zip(names, states, strict=True)),
            module.spike_threshold,
            module.spike_fn,
            module.reset_fn,
            module.surrogate_grad_fn,
            module.min_v_mem,
            module.norm_input,
        )
        return (spikes,), tuple(after[name] for name in names)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return dict(module.named_parameters())

    def call(self, module: nn.Module, input_data: Tensor) -> Tensor:
        """All steps at once, in the library's layouts, which are not copied."""
        if isinstance(module, SqueezeMixin):
            return module.squeeze_forward(input_data, lambda x: self._over_time(module, x))
        return self._over_time(module, input_data)

    def _over_time(self, module: nn.Module, input_data: Tensor) -> Tensor:
        batch, _, *sample = input_data.shape
        self.fit_states(module, batch, sample)
        states = dict(module.named_buffers())
        record = tuple(range(len(states))) if module.record_states else ()
        (spikes,), after, recorded = self.run(
            module, input_data.transpose(0, 1), tuple(states.values()), record
        )
        self.keep(module, dict(zip(states, after, strict=True)))
        spikes = spikes.transpose(0, 1)
        steps = zip(states, recorded, strict=False)
        module.recordings = {name: step.transpose(0, 1) for name, step in steps}
        module.firing_rate = spikes.mean()
        return spikes

    def fit_states(self, module: nn.Module, batch: int, sample: Sequence[int]) -> None:
        """States for this input, by the library's own rules."""
        if not module.is_state_initialised():
            module.init_state_with_shape((batch, *sample))
        if not module.state_has_shape((batch, *sample)):
            if module.has_trailing_dimension(sample):
                module.handle_state_batch_size_mismatch(batch)
            else:
                module.init_state_with_shape((batch, *sample))

    def keep(self, module: nn.Module, states: dict[str, Tensor]) -> None:
        """Put the states where the library keeps them."""
        module.v_mem = states["v_mem"]
        module.i_syn = states.get("i_syn")


class SinabsALIF(Sinabs):
    """ALIF, whose threshold is a state."""

    _PLAIN = ("adapt_scale", "b0", "min_v_mem")  # kept as attributes, as numbers or tensors

    def step(self, module, x, states):
        names = tuple(module._buffers)
        spikes, after = alif_forward_single(
            *x,
            module.alpha_mem_calculated,
            module.alpha_adapt_calculated,
            module.alpha_syn_calculated,
            module.adapt_scale,
            dict(zip(names, states, strict=True)),
            module.spike_fn,
            module.reset_fn,
            module.surrogate_grad_fn,
            module.min_v_mem,
            module.b0,
            module.norm_input,
        )
        return (spikes,), tuple(after[name] for name in names)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        plain = {name: getattr(module, name) for name in self._PLAIN}
        plain = {name: value for name, value in plain.items() if isinstance(value, Tensor)}
        return plain | super().tensors(module)

    def assign(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        plain = {name: tensor for name, tensor in tensors.items() if name in self._PLAIN}
        vars(module).update(plain)
        super().assign(module, {k: t for k, t in tensors.items() if k not in plain})

    def call(self, module: nn.Module, input_data: Tensor) -> Tensor:
        if module.record_states:
            raise Kept(_RECORDS_LATE)
        return super().call(module, input_data)

    def fit_states(self, module: nn.Module, batch: int, sample: Sequence[int]) -> None:
        if not module.is_state_initialised() or not module.state_has_shape((batch, *sample)):
            module.init_state_with_shape((batch, *sample))

    def keep(self, module: nn.Module, states: dict[str, Tensor]) -> None:
        """Put the states where the library keeps them; it does not keep the current."""
        for name in ("b", "v_mem", "spike_threshold"):
            setattr(module, name, states[name])


_LIF = Sinabs()
_ALIF = SinabsALIF()
_ADAPTERS = {
    **dict.fromkeys((layers.IAF, layers.IAFSqueeze, layers.LIF, layers.LIFSqueeze), _LIF),
    **dict.fromkeys((layers.ExpLeak, layers.ExpLeakSqueeze), _LIF),
    **dict.fromkeys((layers.ALIF, ALIFSqueeze), _ALIF),
}


def find(module: nn.Module) -> Adapter | str | None:
    """The adapter of a neuron; why a neuron is kept; None for what is none."""
    if not isinstance(module, layers.StatefulLayer):
        return None
    adapter = _ADAPTERS.get(original_class(module))
    if adapter is None:
        return f"{original_class(module).__name__} is not in the table of classes"
    if adapter is _ALIF and module.record_states:
        return _RECORDS_LATE
    return adapter
