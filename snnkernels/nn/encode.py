"""Input codes: modules that turn values `[N, *]` into a sequence `[T, N, *]`.

A code with chance in it draws from a generator of its own, so that equal seeds give equal spikes on
the same kind of device. Put one in front of a network with ``torch.nn.Sequential(code, network)``.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from snnkernels.core.checks import check_positive, check_whole


class Code(nn.Module):
    """Base of the input codes.

    Args:
        steps: T.

    Shape:
        x `[N, *]`, floating point; output `[T, N, *]` in x's dtype.
    """

    needs_all_steps = "it makes all steps from one input. Give checkpoint_time what it makes"

    def __init__(self, steps: int) -> None:
        super().__init__()
        check_whole("steps", steps)
        self.steps = steps

    def _check_unit(self, x: Tensor) -> None:
        low, high = x.aminmax() if x.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"x must lie in [0, 1] for {type(self).__name__}; got values from {float(low):g} "
                f"to {float(high):g}"
            )

    def _times(self, x: Tensor) -> Tensor:
        """0 ... T - 1, to be compared with `[N, *]`."""
        return torch.arange(self.steps, device=x.device).view(-1, *(1,) * x.ndim)

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class RandomCode(Code):
    """Base of the codes that draw numbers.

    A seeded code has a generator of its own on each device, which goes on from call to call. In a
    worker process of a `torch.utils.data.DataLoader` its numbers depend on the worker's seed too:
    workers and epochs differ, and equal seeds of the code and of the loader give equal numbers.

    Args:
        steps: T.
        seed: where the code's own generators start; None draws from PyTorch's global one.
    """

    def __init__(self, steps: int, *, seed: int | None = None) -> None:
        super().__init__(steps)
        if seed is not None and type(seed) is not int:
            raise TypeError(f"seed must be a whole number or None; got {seed!r}")
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Start the seed's numbers again: the next call repeats the first one."""
        self._worker: int | None = None  # seed of the worker process that the generators are of
        self._generators: dict[str, torch.Generator] = {}
        self._positions: dict[str, Tensor] = {}  # where those not made yet are to start

    def get_rng_state(self) -> dict[str, Tensor]:
        """Where the code's own generators are, by device, for a checkpoint."""
        made = {device: g.get_state() for device, g in self._generators.items()}
        return self._positions | made

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Go on from there: the next call gives the numbers that it would have given then.

        Args:
            state: of `get_rng_state`.
        """
        self.reset()
        self._positions = {device: position.cpu() for device, position in state.items()}

    def _uniform(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None and self.seed is not None:
            generator = self._own_generator(x.device)
        shape = (self.steps, *x.shape)
        return torch.rand(shape, generator=generator, dtype=torch.float32, device=x.device)

    def _own_generator(self, device: torch.device) -> torch.Generator:
        info = get_worker_info()
        worker = info and info.seed
        if worker != self._worker:  # a copy from the main process, or from the last epoch
            self.reset()
            self._worker = worker
        name = str(device)
        if name not in self._generators:
            self._generators[name] = generator = torch.Generator(device)
            if name in self._positions:
                generator.set_state(self._positions[name])
            elif worker is None:
                generator.manual_seed(self.seed)
            else:  # mixed, so that no other seed meets these numbers in another worker
                generator.manual_seed(Random(f"{self.seed} {worker}").getrandbits(63))
        return self._generators[name]

    def __getstate__(self) -> dict:
        # A generator can be neither copied nor pickled: a copy starts at the seed.
        return {**self.__dict__, "_worker": None, "_generators": {}, "_positions": {}}

    def extra_repr(self) -> str:
        return f"steps={self.steps}, seed={self.seed}"


class Direct(Code):
    """The values themselves at every step, as an input current; expanded, not copied."""

    def forward(self, x: Tensor) -> Tensor:
        """Show x at every step."""
        return x.expand(self.steps, *x.shape)


class SignedPoisson(RandomCode):
    """Spikes of the value's sign: ``sign(x)`` where ``rescale * u <= |x|``, u uniform in [0, 1).

    Kim & Panda 2020, and the authors' code of S-ResNet; a value of +-rescale fires at every step.

    Args:
        steps: T.
        rescale: size of a value that fires at every step. Default: 2.
        seed: start of the code's own generator, or None. Default: None.
    """

    def __init__(self, steps: int, *, rescale: float = 2.0, seed: int | None = None) -> None:
        super().__init__(steps, seed=seed)
        check_positive(rescale=rescale)
        self.rescale = rescale

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw spikes -1, 0, 1."""
        fires = self._uniform(x, generator) * self.rescale <= x.abs()
        return x.sign() * fires


class Bernoulli(RandomCode):
    """A spike with probability x at every step, x in [0, 1] (Stöckl's thesis, sec. 5.2.2)."""

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw spikes 0, 1."""
        self._check_unit(x)
        return (self._uniform(x, generator) < x).to(x.dtype)


class Count(Code):
    """A spike at every step until round(x * T) are fired, x in [0, 1] (thesis, sec. 5.2.2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Code values as numbers of spikes."""
        self._check_unit(x)
        return (self._times(x) < torch.round(x.float() * self.steps)).to(x.dtype)


class Latency(Code):
    """One spike per value, the earlier the brighter, x in [0, 1] (thesis, sec. 5.1.2).

    x = 1 fires at step 0, x = 0 at step period - 1; no spikes come after that.

    Args:
        steps: T. Default: 40.
        period: steps within which all spikes fall, at most ``steps``. Default: 25.
    """

    def __init__(self, steps: int = 40, period: int = 25) -> None:
        super().__init__(steps)
        if type(period) is not int or not 1 <= period <= steps:
            raise ValueError(
                f"period must be a whole number from 1 to steps = {steps}; got {period!r}"
            )
        self.period = period

    def forward(self, x: Tensor) -> Tensor:
        """Code values as times."""
        self._check_unit(x)
        when = torch.round((1 - x.float()) * (self.period - 1))
        return (self._times(x) == when).to(x.dtype)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, period={self.period}"


CODES: dict[str, type[Code]] = {
    "direct": Direct,
    "signed_poisson": SignedPoisson,
    "bernoulli": Bernoulli,
    "count": Count,
    "latency": Latency,
}


def create(name: str, **options) -> Code:
    """An input code by name.

    Args:
        name: "direct", "signed_poisson", "bernoulli", "count" or "latency".
        **options: those of the code's class.

    Raises:
        ValueError: a name that is not known.
    """
    if name not in CODES:
        raise ValueError(f"name must be one of {', '.join(CODES)}; got {name!r}")
    return CODES[name](**options)
