"""What was measured on this machine: JSON files in the user's cache folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

from snnkernels.backends.cache import cache_folder
from snnkernels.core.files import write_whole


class Measured:
    """A JSON file in the cache folder: what was measured, by `snnkernels.backends.gpu.gpu_key`.

    Args:
        name: of the file.
        number: of its format.
        parse: makes, of what the file has for a key, what is used; ValueError, TypeError, KeyError
            or AttributeError where it cannot.
        instead: a clause on what is used where the file cannot be.
    """

    def __init__(self, name: str, number: int, parse: Callable, instead: str) -> None:
        self.name, self.number, self.parse, self.instead = name, number, parse, instead
        self._known: dict | None = None

    def path(self) -> Path:
        """The file."""
        return cache_folder() / self.name

    def read(self) -> dict:
        """What is stored, parsed; nothing where there is no file.

        Raises:
            ValueError: the file cannot be used; the sentence says why and what is used instead.
        """
        try:
            content = json.loads(self.path().read_text())
            found = content["format"]
            if found == self.number:
                return {key: self.parse(value) for key, value in content["gpus"].items()}
            why = f"has format {found!r}, this version reads {self.number}"
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            why = f"cannot be read ({error})"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"is damaged ({error!r})"
        raise ValueError(
            f"{self.path()} {why}: {self.instead}. "
            "'python -m snnkernels tune' writes the file anew, with --forget it deletes it"
        )

    def get(self, key: str):
        """What is stored for a key, or None. The file is read once; one of no use is a warning."""
        if self._known is None:
            try:
                self._known = self.read()
            except ValueError as error:
                warnings.warn(str(error), stacklevel=2)
                self._known = {}
        return self._known.get(key)

    def store(self, key: str, value) -> None:
        """Add what JSON can write, or replace it; what other keys have stays.

        A file that cannot be used is replaced.

        Raises:
            OSError: the file cannot be written; what was there before still is.
        """
        try:
            self.read()
            known = json.loads(self.path().read_text())["gpus"]
        except (ValueError, FileNotFoundError):
            known = {}
        text = json.dumps({"format": self.number, "gpus": known | {key: value}}, indent=1)
        write_whole(self.path(), f"{text}\n".encode())
        self._known = None

    def forget(self) -> bool:
        """Delete the file; False where there is none.

        Raises:
            OSError: it cannot be deleted.
        """
        self._known = None
        there = self.path().exists()
        self.path().unlink(missing_ok=True)
        return there
