"""Files of this machine: `flock(2)`, for every process that sees the same folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote

from ..base import ConfigurationError
from ._backend import FileBackend

__all__ = ("FileBackend", "open_url")


def open_url(url: str, *, namespace: str, op_timeout: float) -> FileBackend:
    """``file:///folder``, made if it is not there; ``file://`` is a folder of this user's own."""
    rest = url.partition("://")[2]
    if "?" in rest or "#" in rest:
        raise ConfigurationError(f"a file:// URL is a folder and nothing else (write %3F for '?'): {rest!r}")
    if not rest:
        return FileBackend(_default_folder(), namespace)
    if not rest.startswith("/"):
        raise ConfigurationError(f"write file:///folder with three slashes, not file://{rest}")
    if "\0" in unquote(rest):
        raise ConfigurationError("a path has no NUL byte")
    return FileBackend(Path(unquote(rest)), namespace)


_COMMON = "/tmp"  # noqa: S108 - the folder in it is private
"""Not $TMPDIR nor $XDG_RUNTIME_DIR: a program started by cron has others, and would not be kept out."""


def _default_folder() -> Path:
    """One for all programs of the user. Private: in a folder of everyone's, anyone could hold or delete the locks."""
    folder = Path(_COMMON, f"distlock-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigurationError(f"the folder for locks cannot be made: {error}; name one: file:///folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigurationError(f"{folder} belongs to someone else; name another folder: file:///folder")
    return folder
