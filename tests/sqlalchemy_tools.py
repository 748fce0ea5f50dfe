"""A shop's tables, and those who write them, for the tests of what SQLAlchemy writes under a lock."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, Integer, String, Table, create_engine, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from distlock.contrib.sqlalchemy import Fence, write, write_async

from .databases import Database
from .mariadb_servers import MariaDBServer
from .postgres_servers import PostgresServer

__all__ = (
    "DATABASES",
    "PATIENCE",
    "WAYS",
    "Base",
    "Databases",
    "Gift",
    "Order",
    "Way",
    "by_async_session",
    "by_connection",
    "by_session",
    "lines",
    "order",
    "order_42",
    "orders",
    "returned",
    "rows",
    "shop",
    "written",
)

PATIENCE = 60
DATABASES = ("sqlite", "postgres", "mariadb")


class Databases:
    """As a context manager: their servers, each started when it is first wanted."""

    def __init__(self) -> None:
        self._exit = ExitStack()
        self._servers: dict[str, Database] = {}

    def __enter__(self) -> Databases:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def url(self, name: str, folder: Path) -> str:
        """Of one of `DATABASES`; SQLite has its file in ``folder``."""
        if name == "sqlite":
            return f"sqlite:///{folder}/shop.db?timeout={PATIENCE}"
        if name not in self._servers:
            kind = {"postgres": PostgresServer, "mariadb": MariaDBServer}[name]
            self._servers[name] = self._exit.enter_context(kind())
        return self._servers[name].url


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A mapped class, whose attribute has another name than its column."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(20), server_default="new")
    kind: Mapped[str] = mapped_column(String(20), server_default="order")
    written_by: Mapped[Fence] = mapped_column("fence")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "order"}  # noqa: RUF012


class Gift(Order):
    __mapper_args__ = {"polymorphic_identity": "gift"}  # noqa: RUF012


orders: Table = Base.metadata.tables["orders"]
lines = Table("lines", Base.metadata, Column("order_id", Integer), Column("count", Integer))


def order_42() -> Any:
    return update(orders).where(orders.c.id == 42)


def order(session: Session, number: int) -> Order:
    return session.scalars(select(Order).where(Order.id == number)).one()


@contextmanager
def shop(url: str) -> Iterator[Engine]:
    """A database with the orders 41 to 43, none of which was ever written."""
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(orders), [{"id": number} for number in (41, 42, 43)])
    yield engine
    engine.dispose()


def rows(engine: Engine) -> dict[int, tuple[str, int]]:
    with engine.connect() as connection:
        found = connection.execute(select(orders.c.id, orders.c.state, orders.c.fence))
        return {number: (state, fence) for number, state, fence in found}


# Who executes: each in a transaction of its own.


written = operator.attrgetter("rowcount")
returned = operator.methodcaller("all")


def by_connection(engine: Engine, statement: Any, lease: Any, read: Any = written, **options: Any) -> Any:
    with engine.begin() as connection:
        return read(write(connection, statement, lease, **options))


def by_session(engine: Engine, statement: Any, lease: Any, read: Any = written, **options: Any) -> Any:
    with Session(engine) as session, session.begin():
        return read(write(session, statement, lease, **options))


def by_async_connection(engine: Engine, statement: Any, lease: Any, read: Any = written, **options: Any) -> Any:
    async def main() -> Any:
        async_engine = create_async_engine(async_url(engine), poolclass=NullPool)
        async with async_engine.begin() as connection:
            return await write_async(connection, statement, lease, **options)

    return read(asyncio.run(main()))  # in a transaction no more: it has been read


def by_async_session(engine: Engine, statement: Any, lease: Any, read: Any = written, **options: Any) -> Any:
    async def main() -> Any:
        async_engine = create_async_engine(async_url(engine), poolclass=NullPool)
        async with AsyncSession(async_engine) as session, session.begin():
            return await write_async(session, statement, lease, **options)

    return read(asyncio.run(main()))  # in a transaction no more: it has been read


def async_url(engine: Engine) -> Any:
    """psycopg does both."""
    drivers = {"sqlite": "sqlite+aiosqlite", "mysql+pymysql": "mysql+aiomysql"}
    return engine.url.set(drivername=drivers.get(engine.url.drivername, engine.url.drivername))


Way = Callable[..., Any]
WAYS = [by_connection, by_session, by_async_connection, by_async_session]
