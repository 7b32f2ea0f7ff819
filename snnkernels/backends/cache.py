"""The user's cache folder: what is compiled or measured once for a machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where it is: ``$XDG_CACHE_HOME/snnkernels``, or below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "snnkernels"
