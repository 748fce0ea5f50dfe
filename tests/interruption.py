"""Ctrl-C at any line of a backend."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import distlock.backends

__all__ = ("Interruption",)

BACKENDS = Path(distlock.backends.__file__).parent


class Interruption:
    """Raises KeyboardInterrupt at the n-th line of a backend, or of some of its files, that this thread comes to."""

    def __init__(self, line: int, *files: str) -> None:
        self._left = line
        self._paths = tuple(str(Path(BACKENDS, name)) for name in files)

    @property
    def happened(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> Interruption:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        if self.happened or not frame.f_code.co_filename.startswith(self._paths):
            return None
        return self._leaving if frame.f_code.co_name == "__exit__" else self._step

    def _leaving(self, frame: FrameType, event: str, _: Any) -> Any:
        """Between a body and the first line of what leaves its block nothing can be done: passes that by."""
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not self.happened and not _is_deaf(frame):
            self._left -= 1
            if self.happened:
                raise KeyboardInterrupt
        return self._step


def _is_deaf(frame: FrameType) -> bool:
    """Python heeds no signal there: ``try:`` does nothing, and to ``with`` it comes once more on the way out, before
    the lock is given back."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(("with ", "try:"))
