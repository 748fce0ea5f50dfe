"""SQLAlchemy 2: tables whose rows refuse a late write. ``pip install 'pydistlock[sqlalchemy]'``.

A row keeps the highest token it was written with, and a write with a lower one is refused::

    orders = Table("orders", metadata, Column("id", Integer, primary_key=True), Column("state", String), fence_column())

    with locks.lock("orders:42") as lease, engine.begin() as connection:
        write(connection, update(orders).where(orders.c.id == 42).values(state="paid"), lease)

A mapped class has ``fence: Mapped[Fence]``. A table that is there gets the column by ``ALTER TABLE orders ADD COLUMN
fence bigint NOT NULL DEFAULT 0``; a fence that is null counts as 0. A row is written under one name only, always in the
same store: other tokens say nothing of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from sqlalchemy import BigInteger, Column, CursorResult, Delete, Update, func, select
from sqlalchemy.orm import mapped_column

from distlock import AsyncLease, ConfigurationError, Lease, LockLost

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ("Fence", "StaleToken", "fence_column", "fenced", "write", "write_async")

Fence = Annotated[int, mapped_column(BigInteger, nullable=False, server_default="0")]
"""The column of a mapped class: ``fence: Mapped[Fence]``."""

S = TypeVar("S", bound=Update | Delete)


class StaleToken(LockLost):
    """A row was written with a newer token: stop and roll back. Whoever has the newer token goes on.

    ``token``: the one that was refused; ``seen``: the newest of those rows. ``key``: the lock's, if it is known.
    """

    token: int
    seen: int


def fence_column(name: str = "fence") -> Column[int]:
    """The column of a table, and of a migration: ``op.add_column("orders", fence_column())``."""
    return Column(name, BigInteger, nullable=False, server_default="0")


def fenced(statement: S, lease: Lease | AsyncLease | int, *, column: str = "fence") -> S:
    """``statement``, for rows that no newer token has written; an UPDATE leaves its token there.

    ``statement``: ``update(…)`` or ``delete(…)``, of a table or a mapped class. ``lease``: or its token, from 1 to
    2**63 - 1. ``column``: its name in the table.

    It asks no database, and a statement that is refused just finds no row: `write` tells. Raises `ValueError` for
    another statement or no token, `ConfigurationError` for a table without the column.
    """
    token = _token(lease)
    fence = _fence(statement, column)
    # No ORM can work out coalesce() in Python, so objects in a session change only if their rows did; on MySQL and
    # MariaDB, whose UPDATE returns nothing, if theirs were about to.
    guarded = statement.where(func.coalesce(fence, 0) <= token)
    return cast(S, guarded.values({fence: token}) if isinstance(guarded, Update) else guarded)


def write(
    connection: Connection | Session,
    statement: Update | Delete,
    lease: Lease | AsyncLease | int,
    *,
    column: str = "fence",
    key: str | None = None,
) -> CursorResult[Any]:
    """Executes the `fenced` ``statement``, or raises `StaleToken` if it is about any row with a newer token.

    Of several rows all are written or none, if the caller's transaction is rolled back, as by ``engine.begin()``:
    rows are looked at after the statement, and those with a lower token are written by then.

    No row is no error, as elsewhere in SQL: the result's ``rowcount`` is 0. That is also what becomes of a row that
    the newer holder deleted, or changed so that the statement is not about it any more; where one row must be there,
    look at ``rowcount``. An UPDATE without values claims its rows: nobody with an older token writes them from then
    on, and nobody at all until the transaction ends.

    Two requests to the database, SQLite, PostgreSQL or MariaDB. Under REPEATABLE READ and above PostgreSQL raises a
    serialization failure, SQLAlchemy's `OperationalError`, as for any UPDATE that lost a race. So does MariaDB with
    ``innodb_snapshot_isolation``, which is on from 11.6; without it, `StaleToken` at any level. There, and on
    MySQL, whose SQL is the same and which is not tested, the second request locks the rows that it reads. Whether the
    lease is still held is not asked: the row knows better. ``lease``, ``column``: as for `fenced`; ``key``: for the
    error, where ``lease`` is a bare token.
    """
    result = cast("CursorResult[Any]", connection.execute(fenced(statement, lease, column=column)))
    seen = _newest(connection, statement, _fence(statement, column), _token(lease))
    if seen is not None:
        raise _stale(statement, lease, seen, key)
    return result


async def write_async(
    connection: AsyncConnection | AsyncSession,
    statement: Update | Delete,
    lease: Lease | AsyncLease | int,
    *,
    column: str = "fence",
    key: str | None = None,
) -> CursorResult[Any]:
    """`write` on asyncio, the only event loop that SQLAlchemy knows. The result has been read in whole."""
    return await connection.run_sync(write, statement, lease, column=column, key=key)


def _token(lease: Lease | AsyncLease | int) -> int:
    token = lease.token if isinstance(lease, Lease | AsyncLease) else lease
    if not isinstance(token, int) or isinstance(token, bool) or not 0 < token < 2**63:
        raise ValueError(f"a lease, or its token (an int from 1 to 2**63 - 1), not {lease!r}")
    return token


def _fence(statement: Update | Delete, column: str) -> Any:
    if not isinstance(statement, Update | Delete):
        raise ValueError(
            f"update(…) or delete(…), not {type(statement).__name__}: a row that is new begins with fence=lease.token"
        )
    if column not in statement.table.c:
        raise ConfigurationError(
            f"{_name(statement)} has no column {column!r}: add fence_column({column!r}), and to a table that is there: "
            f"ALTER TABLE {_name(statement)} ADD COLUMN {column} bigint NOT NULL DEFAULT 0"
        )
    return statement.table.c[column]


def _newest(connection: Connection | Session, statement: Update | Delete, fence: Any, token: int) -> int | None:
    """The highest token of the statement's own rows that is above ``token``.

    Looking comes second, because the statement waits for those who write now. A fence only rises, so what was refused
    is seen, unless the row is not among the statement's own any more.
    """
    about = statement.entity_description
    newest = select(func.max(fence)).select_from(about.get("entity", about["table"])).where(fence > token)
    for dialect in ("mysql", "mariadb"):  # a plain SELECT would see what the first one of the transaction saw
        newest = newest.suffix_with("LOCK IN SHARE MODE", dialect=dialect)
    if statement.whereclause is not None:
        newest = newest.where(statement.whereclause)
    seen: int | None = connection.execute(newest).scalar_one()
    return seen


def _stale(statement: Update | Delete, lease: Lease | AsyncLease | int, seen: int, key: str | None) -> StaleToken:
    token, backend = _token(lease), None
    if isinstance(lease, Lease | AsyncLease):
        key, backend = key or lease.key, lease.backend
    error = StaleToken(
        f"token {token}{f' of {key!r}' if key else ''} is too late: {_name(statement)} was written with {seen}. "
        "Stop and roll back; whoever has the newer token goes on",
        key=key,
        backend=backend,
    )
    error.token, error.seen = token, seen
    return error


def _name(statement: Update | Delete) -> str:
    return str(getattr(statement.table, "fullname", statement.table))
