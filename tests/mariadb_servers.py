"""A real MariaDB for the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from .databases import Database
from .programs import missing

__all__ = ("MariaDBServer", "require_mariadb")


def require_mariadb(program: str = "mariadbd") -> str:
    """The path of one of its programs; where it is not, the test fails in CI and is skipped elsewhere."""
    folders = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"  # not on the PATH of everyone
    return shutil.which(program, path=folders) or missing(f"no {program} on PATH, nor in /usr/sbin")


class MariaDBServer(Database):
    """MariaDB."""

    ready_words = "ready for connections"

    @property
    def url(self) -> str:
        return f"mysql+pymysql://me@127.0.0.1:{self.port}/test"

    def _install(self) -> Sequence[str | Path]:
        # The system's own configuration is for a server that is not ours; and of a folder for temporary tables that
        # several servers share, each that starts deletes those of the others.
        folders = f"--datadir={self.data}", f"--tmpdir={self.folder}"
        return [require_mariadb("mariadb-install-db"), "--no-defaults", *folders]

    def _program(self) -> str:
        return require_mariadb()

    def _arguments(self) -> list[str]:
        settings = {
            "datadir": self.data,
            "tmpdir": self.folder,
            "socket": self.folder / "mariadb.sock",
            "pid-file": self.folder / "mariadb.pid",
            "bind-address": "127.0.0.1",
            "port": self.port,
            "innodb-buffer-pool-size": "16M",
            "innodb-flush-method": "nosync",
            "sync-frm": 0,
        }
        return ["--no-defaults", "--skip-grant-tables", *(f"--{name}={value}" for name, value in settings.items())]
