"""A real PostgreSQL for the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from .programs import START_TIMEOUT, Program, missing

__all__ = ("PostgresServer", "require_postgres")

AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL")
"""It refuses to run as root."""


def require_postgres() -> Path:
    """The folder of its programs; where it is not, the test fails in CI and is skipped elsewhere."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    folders = [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *reversed(installed)]
    found = [folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()]
    if not found:
        missing("no postgres on PATH, nor in /usr/lib/postgresql")
    return found[0]


class PostgresServer(Program):
    """A database of the test's own, as a context manager; anyone of this machine is its user ``me``."""

    def __init__(self) -> None:
        super().__init__(AS_NOBODY if os.getuid() == 0 else ())

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://me@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        if not (self.folder / "data").exists():
            if os.getuid() == 0:
                shutil.chown(self.folder, "nobody", "nogroup")
            initdb = [require_postgres() / "initdb", "-D", self.folder / "data", "-U", "me", "-A", "trust", "--no-sync"]
            command = [*self._within, *map(str, initdb)]
            subprocess.run(command, check=True, capture_output=True, cwd=tempfile.gettempdir(), timeout=START_TIMEOUT)
        super().start()

    def _program(self) -> str:
        return str(require_postgres() / "postgres")

    def _arguments(self) -> list[str]:
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        return ["-D", str(self.folder / "data"), "-p", str(self.port), *(w for each in settings for w in ("-c", each))]

    def _ready(self) -> bool:
        # It says so, and only then takes whoever comes: no driver is needed to see it.
        with closing(socket.create_connection(self.address, timeout=1.0)):
            return "ready to accept connections" in Path(self.folder / "out.log").read_text()
