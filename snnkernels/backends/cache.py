"""The user's cache folder: what is compiled or measured once for a machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where it is: ``$XDG_CACHE_HOME/snnkernels``, or below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "snnkernels"


def check_writable() -> None:
    """Make the folder, and a file in it that is gone at once.

    Raises:
        OSError: there can be neither.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_folder()):
        pass


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that readers see all of it or nothing.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    try:
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)
        raise
