"""Row locks of a database, as many use them in place of a lock service: ``SELECT … FOR UPDATE``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import BackendError, BackendUnavailable, ConfigurationError
from .._open import without_secrets
from ..testing.torture._colour import Colour
from ._fight import Mutex
from ._measure import Unknown
from ._servers import NOT_TOLD, Usage

__all__ = ("RowLock", "SqlServer", "is_sql")

T = TypeVar("T")

DIALECTS = ("postgresql", "mysql", "mariadb")
POOL = 256
"""Connections at most: each row that is locked takes one."""
ROW = "floor"

PROCESSES = "SELECT count(*) FROM information_schema.processlist WHERE user NOT IN ('system user', 'event_scheduler')"
# By dialect: how long to wait for a row, and how many connections the server has.
TIMEOUT = {
    "postgresql": lambda seconds: f"SET LOCAL lock_timeout = {max(1, math.ceil(seconds * 1000))}",
    "mariadb": lambda seconds: f"SET SESSION max_statement_time = {max(0.001, seconds)}",
    "mysql": lambda seconds: f"SET SESSION innodb_lock_wait_timeout = {max(1, math.ceil(seconds))}",  # no less than 1 s
}
CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'",
    "mariadb": PROCESSES,
    "mysql": PROCESSES,
}
GAVE_UP = {"55P03", "1969", "1205"}
"""What the drivers' errors are called when a row was not to be had in time."""


def is_sql(url: str) -> bool:
    """It is a URL of SQLAlchemy's."""
    return url.partition("://")[0].partition("+")[0].lower() in (*DIALECTS, "sqlite", "oracle", "mssql")


def _engine(url: str) -> Any:
    try:
        import sqlalchemy
        import sqlalchemy.exc
    except ModuleNotFoundError as error:
        raise ConfigurationError("sqlalchemy is not installed; run: pip install 'pydistlock[bench]'") from error
    dialect = url.partition("://")[0].partition("+")[0]
    if dialect not in DIALECTS:
        raise ConfigurationError(f"row locks are measured on {', '.join(DIALECTS)}, not on {dialect}")
    try:
        return sqlalchemy.create_engine(url, pool_size=POOL, max_overflow=0)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name}, the driver of {dialect}, is not installed") from error
    except sqlalchemy.exc.ArgumentError:  # whose text may repeat the URL
        raise ConfigurationError("not a usable SQL URL: dialect+driver://user:password@host/database") from None


def _own(choices: Mapping[str, T], engine: Any) -> T:
    """The one of its dialect. A URL of MySQL's may lead to MariaDB: it is known once connected."""
    return choices["mariadb" if getattr(engine.dialect, "is_mariadb", False) else engine.dialect.name]


@contextmanager
def _mapped(address: str) -> Iterator[None]:
    import sqlalchemy.exc as sql

    try:
        yield
    except sql.OperationalError as error:
        raise BackendUnavailable(f"{_line(error)} [{address}]", backend=address) from error
    except sql.SQLAlchemyError as error:
        raise BackendError(f"{_line(error)} [{address}]", backend=address) from error


def _line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


@dataclass
class RowLock:
    """A row for each key, locked until the transaction ends. For threads alone."""

    url: str
    table: str
    address: str

    async def open(self, colour: Colour) -> None:
        """Connects when first asked."""
        self._engine = _engine(self.url)

    def mutex(self, key: str, timeout: float) -> Mutex:
        """The row is there afterwards."""
        from sqlalchemy import text
        from sqlalchemy.exc import IntegrityError

        found = text(f"SELECT name FROM {self.table} WHERE name = :key")  # noqa: S608
        added = text(f"INSERT INTO {self.table} VALUES (:key)")  # noqa: S608
        with _mapped(self.address), suppress(IntegrityError), self._engine.begin() as connection:
            # MySQL and MariaDB would have the INSERT wait for whoever has locked the row.
            if connection.execute(found, {"key": key}).first() is None:
                connection.execute(added, {"key": key})
        return _Row(self, self._engine, key, timeout)

    async def close(self) -> None:
        """All connections."""
        self._engine.dispose()


class _Row:
    def __init__(self, way: RowLock, engine: Any, key: str, timeout: float) -> None:
        from sqlalchemy import text

        self._engine, self._address = engine, way.address
        self._patience = text(_own(TIMEOUT, engine)(timeout))
        self._select = text(f"SELECT name FROM {way.table} WHERE name = :key FOR UPDATE")  # noqa: S608
        self._key = {"key": key}

    async def acquire(self) -> bool:
        import sqlalchemy.exc as sql

        with _mapped(self._address):
            connection = self._engine.connect()
            try:
                connection.execute(self._patience)
                connection.execute(self._select, self._key)
            except BaseException as error:
                connection.close()
                if isinstance(error, sql.DBAPIError) and not GAVE_UP.isdisjoint(_codes(error.orig)):
                    return False
                raise
        self._connection = connection
        return True

    async def release(self) -> None:
        with _mapped(self._address):
            try:
                self._connection.commit()
            finally:
                self._connection.close()


def _codes(error: Any) -> list[str]:
    """By whatever name drivers have them: some have both a number and a state of SQL, which says less."""
    return [str(getattr(error, name, "")) for name in ("sqlstate", "pgcode")] + [str(arg) for arg in error.args[:1]]


class SqlServer:
    """A database, and a table of our own in it. Makes the table; `BackendError` if there is one of that name."""

    floor = "BEGIN, SELECT … FOR UPDATE, COMMIT"

    def __init__(self, url: str, table: str) -> None:
        from sqlalchemy import text

        self._engine = _engine(url)
        self.address: str = without_secrets(url)
        self._table = table
        with _mapped(self.address), self._engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE {table} (name VARCHAR(255) PRIMARY KEY)"))
            connection.execute(text(f"INSERT INTO {table} VALUES ('{ROW}')"))  # noqa: S608
        self._raw = self._engine.raw_connection()

    def run(self, count: int) -> None:
        """By the driver, without SQLAlchemy: it begins a transaction by itself."""
        raw, select = self._raw, f"SELECT name FROM {self._table} WHERE name = '{ROW}' FOR UPDATE"  # noqa: S608
        cursor = raw.cursor()
        for _ in range(count):
            cursor.execute(select)
            assert cursor.fetchone()
            raw.commit()
        cursor.close()

    def requests(self) -> float | Unknown:
        """Databases count statements each in a way of its own."""
        return Unknown("not counted on databases")

    def usage(self) -> Usage:
        """The rest is for ``--pid``."""
        from sqlalchemy import text

        with self._engine.connect() as connection:
            question = text(_own(CONNECTIONS, self._engine))
            return Usage(NOT_TOLD, NOT_TOLD, float(connection.execute(question).scalar_one()) - 2)

    def close(self) -> None:
        """Drops the table."""
        from sqlalchemy import text

        with suppress(Exception):  # the connection is gone
            self._raw.close()
        try:
            with _mapped(self.address), self._engine.begin() as connection:
                connection.execute(text(f"DROP TABLE IF EXISTS {self._table}"))
        finally:
            self._engine.dispose()
