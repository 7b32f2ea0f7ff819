"""The files of a run in its directory, and the errors where they cannot be used."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import torch
from torch import nn

from snnkernels.core.files import write_whole
from snnkernels.nn._numbers import number_keys

LAST = "last.ckpt"  # of a run that is not finished
FINISHED = "model.ckpt"
BEST = "best.ckpt"  # weights of the best epoch, where they are kept
RESULT = "result.json"  # of a training that is complete

ADVICE = "start anew with --fresh, or choose another directory"
# What torch.load and zipfile raise, file by file, where bytes are missing or changed.
DAMAGED = (
    *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError),
    *(RuntimeError, ValueError, LookupError, ArithmeticError),
)


class RunError(ValueError):
    """A file in a run's directory cannot be used: it is damaged, foreign, or of another run."""


class OtherRunError(RunError):
    """The directory holds a run with other settings."""


def finish(directory: Path) -> Path:
    """Keep the checkpoint of a complete run under the name that is not taken up; returns it."""
    return (directory / LAST).replace(directory / FINISHED)


def save(path: Path, content: object) -> None:
    """`torch.save` to a file that is whole or not there."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def load(path: Path) -> object:
    """`torch.load` of what `save` wrote, to the CPU; every byte is checked.

    Raises:
        OSError: there is no such file, or it cannot be read.
        RunError: it is damaged, or of another kind.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            changed = archive.testzip()
        if changed is not None:
            raise zipfile.BadZipFile(changed)
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except DAMAGED as error:
        raise RunError(f"{path} is damaged, or of another program: {ADVICE}") from error


def load_checkpoint(path: Path, module: nn.Module, *keys: str) -> dict:
    """A checkpoint with the weights of a module.

    Args:
        path: of the file.
        module: whose ``state_dict`` it must fit.
        *keys: what it must hold besides "state_dict".

    Raises:
        OSError: there is no such file, or it cannot be read.
        RunError: it is damaged, or of something else.
    """
    checkpoint = load(path)
    missing = {"state_dict", *keys} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise RunError(f"{path} is no checkpoint of a run, without {sorted(missing)}: {ADVICE}")
    theirs, ours = checkpoint["state_dict"], module.state_dict()
    differ = [
        name
        for name in sorted({*theirs, *ours.keys() - number_keys(module)})
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    ]
    if differ:
        raise RunError(
            f"{path} is of another network, {len(differ)} of its weights differ in name or shape, "
            f"such as {differ[0]}: {ADVICE}"
        )
    return checkpoint


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file that is whole or not there."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def load_result(path: Path) -> dict:
    """What `write_json` wrote of a complete training: settings, steps and epochs among it.

    Raises:
        OSError: there is no such file, or it cannot be read.
        RunError: it is damaged, or of something else.
    """
    try:
        result = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is damaged or no JSON ({error}): {ADVICE}") from error
    missing = {"settings", "steps", "epochs"} - set(result if isinstance(result, dict) else ())
    if missing:
        raise RunError(f"{path} is no result of a run, without {sorted(missing)}: {ADVICE}")
    return result


def check_settings(path: Path, theirs: dict, ours: dict) -> None:
    """Raise an OtherRunError that names what differs, unless all settings are equal."""
    differ = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    if differ:
        shown = ", ".join(f"{name}={theirs.get(name)} (now {ours.get(name)})" for name in differ)
        raise OtherRunError(f"{path} is of a run with {shown}: repeat that, {ADVICE}")
