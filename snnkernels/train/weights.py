"""Weights of one network for another that shares a part of its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from snnkernels.nn._numbers import number_keys
from snnkernels.train.parts import RecipeError


def take_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    leave: Sequence[str] = (),
    freeze: Sequence[str] = (),
) -> list[str]:
    """Fill a network with weights, all but some modules', and say which were left.

    Args:
        network: to be filled.
        state: a ``state_dict``.
        leave: names of modules, or beginnings of them up to a dot, that keep the weights they have;
            what ``state`` says of them is not looked at.
        freeze: names of modules of the network that are not trained any more.

    Returns:
        The keys of both that were left, sorted.

    Raises:
        RecipeError: a key beyond ``leave`` is missing, unknown or of another shape, a name in
            ``leave`` that neither has, or one in ``freeze`` that the network does not have.
            Nothing is loaded then.
    """

    def is_of(key: str, names: Sequence[str]) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in names)

    own = network.state_dict()
    keys = {*own, *state}
    for name in leave:
        if not any(is_of(key, [name]) for key in keys):
            raise RecipeError(f"leave must name modules of one of the networks; got {name!r}")
    modules = dict(network.named_modules())
    for name in freeze:
        if name not in modules:
            children = ", ".join(child for child, _ in network.named_children())
            raise RecipeError(f"freeze must name modules such as {children}; got {name!r}")
    left = sorted(key for key in keys if is_of(key, leave))
    optional = number_keys(network)
    wrong = [
        key
        for key in sorted(keys - set(left))
        if not (key in optional and key not in state)
        and (key not in own or key not in state or own[key].shape != state[key].shape)
    ]
    if wrong:
        raise RecipeError(
            f"weights must fit but for modules in leave; {len(wrong)} keys do not: "
            f"{', '.join(wrong[:8])}{', ...' if len(wrong) > 8 else ''}"
        )
    network.load_state_dict(own | {key: state[key] for key in state if key not in left})
    for name in freeze:
        modules[name].requires_grad_(False)
    return left
