"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from uuid import uuid4


def check_folder(folder: Path) -> None:
    """Make a folder where there is none, and see that files can be written in it.

    Raises:
        OSError: it cannot be made, or nothing can be written; the error names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that readers see all of it or nothing.

    Args:
        path: of the file; its folder is made where there is none.
        data: its content.

    Raises:
        OSError: it cannot be written; what was there before still is. The error names ``path``.
    """
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
