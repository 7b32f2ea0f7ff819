"""Plain numbers of a module in its ``state_dict``."""

from __future__ import annotations

import torch
from torch import nn


class NumbersInStateDict(nn.Module):
    """Saves and loads numbers as 0-d float64 tensors, beside parameters and buffers.

    They stay Python numbers, which a kernel takes as constants and no device has to be asked for.
    A checkpoint that does not have them, as those of earlier versions, leaves them as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: tuple[str, ...] = ()

    def _number(self, name: str, value: float) -> None:
        """Keep a number as the attribute ``name``."""
        setattr(self, name, value)
        self._numbers += (name,)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._numbers:
            value = float(getattr(self, name))
            destination[prefix + name] = torch.tensor(value, dtype=torch.float64, device="cpu")

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unknown, errors):
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unknown, errors
        )
        for name in self._numbers:
            key = prefix + name
            if key not in state_dict:
                continue
            if key in unknown:
                unknown.remove(key)
            if state_dict[key].numel() == 1:
                kind = type(getattr(self, name))
                setattr(self, name, kind(state_dict[key].item()))
            else:
                shape = list(state_dict[key].shape)
                errors.append(f"size mismatch for {key}: {shape} in the checkpoint, a number here")


def number_keys(module: nn.Module) -> set[str]:
    """The keys of a ``state_dict`` that hold numbers, which one of an earlier version has not."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, NumbersInStateDict)
        for name in part._numbers
    }
