"""A real PostgreSQL for the tests, where there is one."""

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


def require_postgres() -> str:
    """The path of ``postgres``; without it, or what it takes to run it, the test is skipped."""
    needed = ("postgres", "initdb", *(AS_NOBODY[:1] if os.getuid() == 0 else ()))
    for program in needed:
        if shutil.which(program) is None:
            missing(f"no {program} on PATH", in_ci=False)
    return str(shutil.which("postgres"))


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
            command = [*self._within, "initdb", "-D", str(self.folder / "data"), "-U", "me", "-A", "trust", "--no-sync"]
            subprocess.run(command, check=True, capture_output=True, cwd=tempfile.gettempdir(), timeout=START_TIMEOUT)
        super().start()

    def _program(self) -> str:
        return require_postgres()

    def _arguments(self) -> list[str]:
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        return ["-D", str(self.folder / "data"), "-p", str(self.port), *(w for each in settings for w in ("-c", each))]

    def _ready(self) -> bool:
        # It says so, and only then takes whoever comes: no driver is needed to see it.
        with closing(socket.create_connection(self.address, timeout=1.0)):
            return "ready to accept connections" in Path(self.folder / "out.log").read_text()
