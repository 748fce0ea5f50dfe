"""Who is asking: unique claim ids, and where a call came from."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import FrameType

from ._core.actor import actor_name
from ._types import describe

__all__ = ("after_fork", "introduce", "new_claim_id")

_PACKAGE = os.path.dirname(__file__) + os.sep
_CLI = _PACKAGE + "cli" + os.sep
_STACKS = contextlib.__file__
_host = ""
_pid = 0
_process = ""
_count = itertools.count(1)


def after_fork() -> None:
    """Another process, other ids."""
    global _host, _pid, _process, _count
    _host, _pid, _process = socket.gethostname(), os.getpid(), os.urandom(10).hex()
    _count = itertools.count(1)
    _plain.cache_clear()


def new_claim_id() -> str:
    """Never given out twice, in any process: 80 random bits for the process, and a counter."""
    return f"{_process}{next(_count)}"


def introduce(actor: object, metadata: Mapping[str, str] | None) -> str:
    """The caller, as a text to be stored beside its claim."""
    frame: FrameType | None = sys._getframe(4)  # a lock's method; each frame that is made takes its time
    while frame is not None and _is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    file, line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)
    if metadata is None:
        return _plain(actor_name(actor), file, line)
    return describe(_host, _pid, actor_name(actor), _site(file, line), metadata)


@lru_cache(maxsize=256)
def _plain(name: str, file: str, line: int) -> str:
    return describe(_host, _pid, name, _site(file, line), None)


@lru_cache(maxsize=1024)
def _is_ours(file: str) -> bool:
    if file == _STACKS:  # an ExitStack: who put it there is asking
        return True
    return file.startswith(_PACKAGE) and not file.startswith(_CLI)  # that is a program of its own


def _site(file: str, line: int) -> str:
    return f"{os.path.basename(file)}:{line}" if file else ""


after_fork()
