"""The shop's database: SQLite or PostgreSQL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from distlock.contrib.sqlalchemy import fence_column

__all__ = (
    "create",
    "customers",
    "engine_of",
    "feed",
    "insert_new",
    "metadata",
    "now",
    "orders",
    "outbox",
    "position",
    "product",
    "reading",
    "reservations",
    "steps",
)

IDLE = "idle_in_transaction_session_timeout=5s"
"""A process that is stopped in the middle of a transaction: PostgreSQL gives up its row locks after this time."""

metadata = MetaData()

product = Table(
    "product",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("stock", Integer, nullable=False),
    Column("available", Integer, nullable=False),
)
customers = Table(
    "customers",
    metadata,
    Column("name", String, primary_key=True),
    Column("taken", Integer, nullable=False),
)
reservations = Table(
    "reservations",
    metadata,
    Column("id", String, primary_key=True),
    Column("customer", ForeignKey("customers.name"), nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("state", String, nullable=False),  # held, then ordered or expired; ordered, then returned
    Column("expires_at", Float, nullable=False),
    Index("reservations_expiring", "state", "expires_at"),
)
orders = Table(
    "orders",
    metadata,
    Column("id", String, primary_key=True),
    Column("reservation", ForeignKey("reservations.id"), nullable=False, index=True),
    Column("purchase", String, nullable=False),  # the Idempotency-Key of the checkout
    Column("customer", String, nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("cents", Integer, nullable=False),
    Column("card", String, nullable=False),
    Column("address", String, nullable=False),
    Column("state", String, nullable=False),  # placed, then completed; or compensating, then compensated
    Column("placed_at", Float, nullable=False, index=True),
    Column("events", Integer, nullable=False),  # so many so far
    fence_column(),
    Index("orders_of_a_purchase", "customer", "purchase", unique=True),  # one, even if Redis has forgotten the key
)
steps = Table(
    "steps",
    metadata,
    Column("order", ForeignKey("orders.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),  # waiting, running, done, refused, undone
    Column("attempts", Integer, nullable=False),
    Column("due_at", Float, index=True),  # of the one step of an order that is next; else NULL
    Column("error", String),
)
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("event", String, nullable=False, unique=True),
    Column("key", String, nullable=False),  # events of one key keep their order
    Column("number", Integer, nullable=False),  # the how-manieth of its key
    Column("version", Integer, nullable=False),  # of the schema of the body
    Column("type", String, nullable=False),
    Column("body", String, nullable=False),
    Column("token", BigInteger, nullable=False),  # under which it was written
    Column("published_at", Float, index=True),
    UniqueConstraint("key", "number"),
)
feed = Table(
    "feed",
    metadata,
    Column("event", String, primary_key=True),
    Column("seen", Integer, nullable=False),  # the how-manieth that came
    Column("key", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("type", String, nullable=False),
)
position = Table(
    "position",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entry", String, nullable=False),  # of the stream, the last that was consumed
    Column("seen", Integer, nullable=False),
    Column("sold", Integer, nullable=False),
    fence_column(),
)


class now(FunctionElement[float]):  # noqa: N801 - it is written like a function of SQL
    """Seconds, by the clock of the database: the one that all processes share."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _(element: now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _(element: now, compiler: Any, **options: Any) -> str:
    # Not clock_timestamp(), which may differ from row to row: no index would be used.
    return "extract(epoch from statement_timestamp())::float8"


def engine_of(url: str) -> Engine:
    """Connections for one process. A transaction on SQLite takes the write lock at its beginning, or waits for it."""
    backend = make_url(url).get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ValueError(f"{backend}: the shop knows SQLite and PostgreSQL")
    if backend == "postgresql":
        return create_engine(url, pool_size=8, max_overflow=0, connect_args={"options": f"-c {IDLE}"})
    engine = create_engine(url, pool_size=2, max_overflow=0, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: object) -> None:
        connection.isolation_level = None  # else the driver begins transactions where it sees fit
        connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")

    return engine


def reading(engine: Engine) -> AbstractContextManager[Connection]:
    """A connection that only reads, one moment of the database, and so does not wait for those that write."""
    if engine.dialect.name == "postgresql":  # which would show each statement a moment of its own
        return engine.connect().execution_options(isolation_level="REPEATABLE READ")
    return engine.connect().execution_options(reads=True)


def insert_new(connection: Connection, table: Table, **values: Any) -> bool:
    """Inserts a row, unless there is one of that key. Whether it was new."""
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]
    inserted = dialect.insert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(inserted).first() is not None  # an INSERT's rowcount is not known of every driver


def create(engine: Engine, stock: int) -> None:
    """The tables, in a database that has none of them, and what is for sale."""
    there = {table.name for table in metadata.sorted_tables} & {*inspect(engine).get_table_names()}
    if there:
        raise RuntimeError(
            f"the database has tables of these names already: {', '.join(sorted(there))}; give a new one"
        )
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(product).values(id=1, stock=stock, available=stock))
        connection.execute(insert(position).values(id=1, entry="0-0", seen=0, sold=0))
