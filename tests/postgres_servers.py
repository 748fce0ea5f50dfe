"""A real PostgreSQL for the tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .databases import Database
from .programs import missing

__all__ = ("PostgresServer", "require_postgres")


def require_postgres() -> Path:
    """The folder of its programs; where it is not, the test fails in CI and is skipped elsewhere."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    folders = [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *reversed(installed)]
    found = [folder for folder in folders if (folder / "postgres").exists() and (folder / "initdb").exists()]
    if not found:
        missing("no postgres on PATH, nor in /usr/lib/postgresql")
    return found[0]


class PostgresServer(Database):
    """PostgreSQL."""

    ready_words = "ready to accept connections"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://me@127.0.0.1:{self.port}/postgres"

    def _install(self) -> Sequence[str | Path]:
        return [require_postgres() / "initdb", "-D", self.data, "-U", "me", "-A", "trust", "--no-sync"]

    def _program(self) -> str:
        return str(require_postgres() / "postgres")

    def _arguments(self) -> list[str]:
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        return ["-D", str(self.data), "-p", str(self.port), *(w for each in settings for w in ("-c", each))]
