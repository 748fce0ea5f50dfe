"""What the databases of the tests have in common."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from .programs import START_TIMEOUT, Program

__all__ = ("Database",)

AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL")
"""They refuse to run as root."""


class Database(Program):
    """A database of the test's own, as a context manager; anyone of this machine is its user ``me``."""

    ready_words: str
    """What it says when it takes whoever comes, and not before."""

    def __init__(self) -> None:
        super().__init__(AS_NOBODY if os.getuid() == 0 else ())

    @property
    @abstractmethod
    def url(self) -> str:
        """For SQLAlchemy."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        if not self.data.exists():
            if os.getuid() == 0:
                shutil.chown(self.folder, "nobody", "nogroup")
            command = [*self._within, *map(str, self._install())]
            subprocess.run(command, check=True, capture_output=True, cwd=tempfile.gettempdir(), timeout=START_TIMEOUT)
        super().start()

    @abstractmethod
    def _install(self) -> Sequence[str | Path]:
        """The command that makes its folder of data."""

    def _ready(self) -> bool:
        with closing(socket.create_connection(self.address, timeout=1.0)):
            return self.ready_words in self.log()  # no driver is needed to see it
