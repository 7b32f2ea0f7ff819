"""`run_over_time`: a network that is stepped in a loop of the user's takes all steps at once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import torch
from torch import Tensor, nn

from snnkernels.backends import check_name
from snnkernels.convert.fused import Link, answer, attach, link
from snnkernels.convert.report import Report
from snnkernels.convert.swap import LIBRARIES, examine, raise_if_kept

# These do to each sample of a batch the same, whatever else is in the batch.
_PER_SAMPLE = {
    getattr(nn, f"{name}{dimensions}d")
    for dimensions in (1, 2, 3)
    for name in ("AdaptiveAvgPool", "AvgPool", "Conv", "ConvTranspose", "MaxPool", "ZeroPad")
}
_PER_SAMPLE |= {nn.CELU, nn.ELU, nn.GELU, nn.GroupNorm, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh}
_PER_SAMPLE |= {nn.Identity, nn.LayerNorm, nn.LeakyReLU, nn.Linear, nn.Mish, nn.PReLU, nn.ReLU}
_PER_SAMPLE |= {nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh}
_PER_SAMPLE |= {nn.Upsample}
# So do these in eval mode; in training they look at the batch of a step, or draw for it.
_IN_EVAL = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_IN_EVAL |= {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout}


def run_over_time(
    net: nn.Module,
    *,
    backend: str = "auto",
    allow_fp32_state: bool = False,
    strict: bool = False,
) -> nn.Module:
    """Make a network of one step take all time steps at once.

    For snnTorch's neurons in an ``nn.Sequential`` and for Norse's ``SequentialState`` and ``Lift``,
    which are called in a loop over time. The children run one after the other, each over all
    steps: neurons in one fused pass, as `snnkernels.accelerate` says of their bits; layers without
    memory on ``T * N`` samples, once where x is one input expanded over time; anything else, and
    batch norm and dropout in training mode, step by step. A sum over a batch of another size, in a
    matrix product or a convolution, may round in another way than the loop's. Dropouts draw in
    another order.

    States are the library's: the network starts from the states that the children hold or that are
    handed in, and leaves the ones after the last step there.

    Args:
        net: ``nn.Sequential``, or Norse's ``SequentialState`` or ``Lift``, of exactly that type. A
            SequentialState with a Lift or with a neuron over time in it takes all steps already;
            its neurons are fused and its Lifts folded.
        backend: as of `snnkernels.accelerate`. Default: "auto".
        allow_fp32_state: as of `snnkernels.accelerate`. Default: False.
        strict: raise where a neuron cannot run fused. Default: False.

    Returns:
        A network of the same kind with the same children, and a `Report` as its ``report``. It is
        called with x `[T, N, *]`, and returns what the loop would have stacked: `[T, N, *]`; the
        spikes and then the states of all steps where the last neuron returns its states; from
        Norse's the output and the states after the last step. net itself can still be called step
        by step.

    Raises:
        TypeError: net is of another type.
        ValueError: it has no neuron that is known; it has one in two places; strict, and a neuron
            cannot run fused; the backend has no such name.

    Example:
        >>> import torch, snnkernels, snntorch
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 4), snntorch.Leaky(beta=0.9, init_hidden=True, output=True)
        ... )
        >>> over_time = snnkernels.run_over_time(net)
        >>> spikes, mem = over_time(torch.rand(25, 2, 8))
        >>> spikes.shape, mem.shape
        (torch.Size([25, 2, 4]), torch.Size([25, 2, 4]))
        >>> torch.equal(net[1].mem, mem[-1])
        True
    """
    check_name(backend)
    kinds = _containers(net)
    if type(net) not in kinds:
        allowed = "an nn.Sequential, or Norse's SequentialState or Lift"
        raise TypeError(f"net must be {allowed}, of exactly that type; got {type(net).__name__}")
    places = list(_places(net, kinds))
    if type(net) is nn.Sequential:
        _raise_if_twice(places)
    found = [(m, *e) for name, m, why in places if (e := examine(name, m, why)) is not None]
    if not found:
        raise ValueError(f"net has no neuron of {', '.join(LIBRARIES)}")
    report = Report([entry for _, entry, _ in found])
    if strict:
        raise_if_kept(report)
    for module, entry, adapter in found:
        if entry.reason is None:
            attach(module, Link(adapter, entry, backend, allow_fp32_state))
    over_time = object.__new__(kinds[type(net)])
    vars(over_time).update(vars(net))  # the same children, hooks and options
    over_time.report = report
    return over_time


def _raise_if_twice(places: list[tuple[str, nn.Module, str | None]]) -> None:
    """An error where a module with a memory stands in two places of one step."""
    known: dict[nn.Module, str] = {}
    for name, module, _ in places:
        if module in known and not folds(module):
            raise ValueError(f"{known[module]} and {name} are one {type(module).__name__}")
        known[module] = name


def _places(
    net: nn.Module, kinds: dict[type, type], path: str = ""
) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Every module in net with its name and, where a module around it is stepped, a reason."""
    for key, child in net._modules.items():
        yield f"{path}{key}", child, "it has hooks" if has_hooks(child) else None
        if type(child) in kinds and not has_hooks(child):
            yield from _places(child, kinds, f"{path}{key}.")
        else:
            why = f"it is in {type(child).__name__}, which is called step by step"
            inner = child.named_modules(prefix=f"{path}{key}", remove_duplicate=False)
            yield from ((name, module, why) for name, module in inner if module is not child)


class OverTimeSequential(nn.Sequential):
    """What `run_over_time` makes of an nn.Sequential."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run every child over all steps of x `[T, N, *]`."""
        check_steps(x)
        return _sequential(self, x)


def _sequential(net: nn.Sequential, x):
    for child in net:
        if link(child) is not None:
            x = answer(child, lambda x, child=child: each_step(child, x), x)
        elif type(child) is nn.Sequential and not (has_hooks(child) or folds(child)):
            x = _sequential(child, x)
        else:
            x = without_memory(child, x)
    return x


def check_steps(x: Tensor) -> None:
    """An error where x has no time steps."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[0] == 0:
        got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a tensor [T, N, *] with at least one time step; got {got}")


def without_memory(module: nn.Module, x: Tensor) -> Tensor:
    """A module over all steps, with the steps in the batch where that does not matter to it."""
    if not folds(module):
        return each_step(module, x)
    if x.stride(0) == 0:  # the same input at all steps
        y = module(x[0])
        return y.expand(x.shape[0], *y.shape)
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def each_step(module: nn.Module, x: Tensor):
    """The loop over time, as the library's user writes it."""
    return stacked([module(x_t) for x_t in x.unbind(0)])


def stacked(steps: list):
    """What a loop has gathered, stacked over time; tuples and lists part by part."""
    if isinstance(steps[0], (tuple, list)):
        return type(steps[0])(map(stacked, map(list, zip(*steps, strict=True))))
    return torch.stack(steps)


def has_hooks(module: nn.Module) -> bool:
    """Whether someone looks at each call of the module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def folds(module: nn.Module) -> bool:
    """Whether a module does the same to every sample, so that steps can lie in the batch."""
    if has_hooks(module) or "forward" in vars(module):
        return False
    kind = type(module)
    if kind is nn.Sequential:
        return all(map(folds, module))
    if kind is nn.Flatten:
        return module.start_dim >= 1
    if kind is nn.Unflatten:
        return isinstance(module.dim, int) and module.dim >= 1
    if kind in _IN_EVAL:
        return not module.training and getattr(module, "track_running_stats", True)
    return kind in _PER_SAMPLE and not getattr(module, "return_indices", False)


def _containers(net: nn.Module) -> dict[type, type]:
    """The classes of containers that run over time, and what they become."""
    kinds = {nn.Sequential: OverTimeSequential}
    if any(type(m).__module__.partition(".")[0] == "norse" for m in net.modules()):
        kinds |= import_module("snnkernels.convert.norse").CONTAINERS
    return kinds
