"""Rows that refuse a late write, through SQLAlchemy, on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
import operator
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    insert,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

import distlock
from distlock import AsyncLease, ConfigurationError, DistLockError, Lease, LockLost
from distlock.contrib.sqlalchemy import Fence, StaleToken, fence_column, fenced, write, write_async

from .databases import Database
from .mariadb_servers import MariaDBServer
from .postgres_servers import PostgresServer
from .programs import wait_until

PATIENCE = 60
RETURNING = ["sqlite", "postgres"]
"""Those whose UPDATE can tell what it wrote."""


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


@pytest.fixture(scope="module")
def _postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def _mariadb() -> Iterator[MariaDBServer]:
    with MariaDBServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db?timeout={PATIENCE}"
    server: Database = request.getfixturevalue(f"_{request.param}")
    return server.url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Of a database with the orders 41 to 43, none of which was ever written."""
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(orders), [{"id": number} for number in (41, 42, 43)])
    yield engine
    engine.dispose()


@pytest.fixture
def leases() -> tuple[Lease, Lease]:
    """Of two holders, one after the other."""
    with distlock.connect("memory://") as locks:
        with locks.lock("orders:42") as first:
            pass
        with locks.lock("orders:42") as second:
            pass
    return first, second


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


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


def rows(engine: Engine) -> dict[int, tuple[str, int]]:
    with engine.connect() as connection:
        found = connection.execute(select(orders.c.id, orders.c.state, orders.c.fence))
        return {number: (state, fence) for number, state, fence in found}


# One row.


def test_a_late_holder_is_refused(engine, way, leases):
    first, second = leases
    assert way(engine, order_42().values(state="paid"), first) == 1
    assert way(engine, order_42().values(state="shipped"), second) == 1
    with pytest.raises(StaleToken) as refused:
        way(engine, order_42().values(state="cancelled"), first)
    error = refused.value
    assert (error.key, error.token, error.seen) == ("orders:42", first.token, second.token)
    assert error.backend == first.backend
    assert f"token {first.token} of 'orders:42' is too late: orders was written with {second.token}" in str(error)
    assert rows(engine)[42] == ("shipped", second.token)


def test_a_holder_may_write_again(engine, way, leases):
    for state in ("paid", "packed", "shipped"):
        assert way(engine, order_42().values(state=state), leases[1]) == 1
    assert rows(engine)[42] == ("shipped", leases[1].token)


def test_a_token_stands_for_its_lease(engine, way):
    highest = 2**63 - 1
    assert way(engine, order_42().values(state="paid"), highest) == 1
    with pytest.raises(StaleToken) as refused:
        way(engine, order_42().values(state="new"), highest - 1, key="orders:42")
    assert (refused.value.key, refused.value.token, refused.value.seen) == ("orders:42", highest - 1, highest)
    with pytest.raises(StaleToken, match=f"^token {highest - 1} is too late") as unnamed:
        way(engine, order_42().values(state="new"), highest - 1)
    assert unnamed.value.key is None
    assert rows(engine)[42] == ("paid", highest)


@pytest.mark.parametrize("way", WAYS[2:], ids=lambda way: way.__name__)
def test_the_lease_of_a_task_does_as_well(engine, way):
    async def two() -> tuple[AsyncLease, AsyncLease]:
        async with distlock.connect("memory://") as locks:
            first = await locks.lock("orders:42").acquire_async()
            await first.release()
            second = await locks.lock("orders:42").acquire_async()
            await second.release()
            return first, second

    first, second = asyncio.run(two())
    assert way(engine, order_42().values(state="paid"), second) == 1
    with pytest.raises(StaleToken, match="'orders:42'"):
        way(engine, order_42().values(state="new"), first)


def test_a_row_is_claimed_by_writing_nothing(engine, way):
    assert way(engine, order_42(), 2) == 1
    assert rows(engine)[42] == ("new", 2)
    with pytest.raises(StaleToken):
        way(engine, order_42(), 1)


def test_no_row_is_no_error(engine, way):
    assert way(engine, update(orders).where(orders.c.id == 44).values(state="paid"), 1) == 0
    assert way(engine, delete(orders).where(orders.c.id == 44), 1) == 0


def test_a_row_that_the_statement_is_not_about_any_more_is_no_row(engine, way):
    by_connection(engine, order_42().values(state="cancelled"), 2)
    assert way(engine, order_42().where(orders.c.state == "new").values(state="paid"), 1) == 0
    assert rows(engine)[42] == ("cancelled", 2)


def test_a_late_delete_is_refused(engine, way):
    gone = delete(orders).where(orders.c.id == 42)
    by_connection(engine, order_42().values(state="paid"), 2)
    with pytest.raises(StaleToken):
        way(engine, gone, 1)
    assert rows(engine)[42] == ("paid", 2)
    assert way(engine, gone, 2) == 1
    assert 42 not in rows(engine)


@pytest.mark.parametrize("url", RETURNING, indirect=True)
def test_what_was_written_is_returned(engine, way):
    if "session" in way.__name__:
        statement = update(Order).where(Order.id > 41).returning(Order.state, Order.written_by)
    else:
        statement = update(orders).where(orders.c.id > 41).returning(orders.c.state, orders.c.fence)
    returning: Any = statement.values(state="paid")
    assert way(engine, returning, 8, returned) == [("paid", 8)] * 2
    way(engine, order_42(), 9)
    with pytest.raises(StaleToken):
        way(engine, returning, 8)


# Several rows.


def test_all_rows_are_written_or_none(engine, way):
    every = update(orders).values(state="paid")
    by_connection(engine, order_42().values(state="shipped"), 5)
    with pytest.raises(StaleToken) as refused:
        way(engine, every, 4)
    assert refused.value.seen == 5
    with pytest.raises(StaleToken):
        way(engine, delete(orders), 4)
    assert rows(engine) == {41: ("new", 0), 42: ("shipped", 5), 43: ("new", 0)}
    assert way(engine, every, 5) == 3
    assert rows(engine) == dict.fromkeys((41, 42, 43), ("paid", 5))


def test_the_newest_of_the_rows_is_named(engine, way):
    for number, token in ((41, 7), (42, 9), (43, 8)):
        by_connection(engine, update(orders).where(orders.c.id == number), token)
    with pytest.raises(StaleToken) as refused:
        way(engine, update(orders).where(orders.c.id != 42).values(state="paid"), 6)
    assert refused.value.seen == 8, "42 is not what the statement is about"


def test_other_tables_may_say_which_rows(engine, way):
    with engine.begin() as connection:
        connection.execute(insert(lines), [{"order_id": 41, "count": 1}, {"order_id": 42, "count": 2}])
    large = select(lines.c.order_id).where(lines.c.count > 1)
    some = select(literal(1)).where(lines.c.order_id == orders.c.id, lines.c.count > 1).exists()
    joined = (orders.c.id == lines.c.order_id) & (lines.c.count > 1)
    by_connection(engine, update(orders).where(orders.c.id == 41), 9)
    for token, about in enumerate((orders.c.id.in_(large), some, joined), start=1):
        assert way(engine, update(orders).where(about).values(state="paid"), token) == 1
        assert rows(engine) == {41: ("new", 9), 42: ("paid", token), 43: ("new", 0)}
        with pytest.raises(StaleToken) as refused:
            way(engine, update(orders).where(about | (orders.c.id == 41)).values(state="x"), token)
        assert refused.value.seen == 9


# Tables.


@pytest.mark.parametrize("definition", ["bigint NOT NULL DEFAULT 0", "bigint"])
def test_rows_that_were_there_before_the_column_are_at_0(engine, way, definition):
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE orders DROP COLUMN fence"))
        connection.execute(text(f"ALTER TABLE orders ADD COLUMN fence {definition}"))
    assert way(engine, order_42().values(state="paid"), 2) == 1
    with pytest.raises(StaleToken):
        way(engine, order_42().values(state="new"), 1)
    assert rows(engine)[42] == ("paid", 2)
    assert way(engine, delete(orders).where(orders.c.id == 41), 1) == 1


@pytest.mark.parametrize("name", ["fence", "token"])
def test_the_column_of_a_table(engine, way, name):
    metadata = MetaData()
    table = Table("stock", metadata, Column("id", Integer, primary_key=True), fence_column(name))
    metadata.drop_all(engine)
    metadata.create_all(engine)
    (column,) = (found for found in inspect(engine).get_columns("stock") if found["name"] == name)
    assert isinstance(column["type"], BigInteger)
    assert not column["nullable"]
    with engine.begin() as connection:
        connection.execute(insert(table).values(id=1))
    way(engine, update(table), 3, column=name)
    with pytest.raises(StaleToken, match="stock was written with 3"):
        way(engine, delete(table), 2, column=name)
    metadata.drop_all(engine)


def test_a_column_that_is_not_there_is_missed():
    table = Table("stock", MetaData(), Column("id", Integer, primary_key=True))
    ddl = "ALTER TABLE stock ADD COLUMN fence bigint NOT NULL DEFAULT 0"
    with pytest.raises(ConfigurationError, match=re.escape(ddl)):
        fenced(update(table), 1)


@pytest.mark.parametrize("token", [True, 0, -1, 2**63, 1.0, "1", None])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(ValueError, match=re.escape(f"not {token!r}")):
        fenced(update(orders), token)


@pytest.mark.parametrize("statement", [insert(orders), select(orders), text("update orders set state = 'paid'")])
def test_other_statements_are_refused(statement):
    with pytest.raises(ValueError, match=r"update\(…\) or delete\(…\), not "):
        fenced(statement, 1)


def test_a_statement_is_left_as_it_is():
    statement = order_42().values(state="paid")
    assert "coalesce(orders.fence" in str(fenced(statement, 1))
    assert "fence" not in str(statement)


def test_the_error_is_a_lost_lock_and_crosses_processes(engine):
    by_connection(engine, order_42(), 2)
    with pytest.raises(LockLost) as refused:
        by_connection(engine, order_42(), 1, key="k")
    again = pickle.loads(pickle.dumps(refused.value))  # noqa: S301
    assert isinstance(again, DistLockError)
    assert (type(again), str(again), again.__dict__) == (StaleToken, str(refused.value), refused.value.__dict__)


# Mapped classes.


@pytest.mark.parametrize("url", RETURNING, indirect=True)
@pytest.mark.parametrize("sync", ["auto", "fetch", False])
def test_objects_change_with_their_rows_only(engine, sync):
    statement = update(Order).where(Order.id <= 42).values(state="paid").execution_options(synchronize_session=sync)
    with Session(engine) as session:
        free, taken = order(session, 41), order(session, 42)
        session.commit()
        assert (free.state, taken.state) == ("new", "new")
        by_connection(engine, order_42().values(state="shipped"), 5)
        assert written(session.execute(fenced(statement, 4))) == 1
        assert (free.state, free.written_by) == (("paid", 4) if sync else ("new", 0))
        assert taken.state == "new", "it was not read again, and not written"


def test_objects_are_never_changed_by_a_guess(engine):
    """The database alone knows whether a row was refused."""
    guess = update(Order).where(Order.id == 42).execution_options(synchronize_session="evaluate")
    with Session(engine) as session, pytest.raises(InvalidRequestError, match="evaluate"):
        session.execute(fenced(guess.values(state="paid"), 1))


@pytest.mark.parametrize("way", [by_session, by_async_session], ids=lambda way: way.__name__)
def test_a_class_that_shares_its_table_is_about_its_own_rows(engine, way):
    with engine.begin() as connection:
        connection.execute(insert(orders).values(id=50, kind="gift"))
    by_connection(engine, order_42(), 9)
    assert way(engine, update(Gift).values(state="packed"), 3) == 1
    with pytest.raises(StaleToken):
        way(engine, update(Order).values(state="packed"), 3)
    assert way(engine, delete(Gift), 3) == 1


def test_an_object_is_changed_under_its_claim(engine):
    """As the page on fencing has it: the unit of work writes in the transaction of the claim."""
    with Session(engine) as session, session.begin():
        write(session, update(Order).where(Order.id == 42), 2)
        order(session, 42).state = "paid"
    with Session(engine) as session:
        order(session, 42).state = "late"
        with pytest.raises(StaleToken):
            write(session, update(Order).where(Order.id == 42), 1)
    assert rows(engine)[42] == ("paid", 2)


# At the same time.


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


several_writers = pytest.mark.parametrize("url", ["postgres", "mariadb"], indirect=True)
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
    "mysql": "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'",  # a table has it too, some time later
}


def blocked(engine: Engine) -> bool:
    with engine.connect() as connection:
        return int(connection.execute(text(WAITING[engine.dialect.name])).one()[-1]) > 0


def while_open(engine: Engine, threads: Any, earlier: tuple[Any, int], later: Callable[[], Any]) -> Future[Any]:
    """``later``, which was begun while ``earlier`` was written and not committed, and waited for it."""
    with engine.begin() as connection:
        write(connection, *earlier)
        done = threads.submit(later)
        wait_until(lambda: done.done() or blocked(engine), "the other to wait", PATIENCE)
        assert not done.done()
    found: Future[Any] = done
    return found


@several_writers
@pytest.mark.parametrize("statement", [order_42().values(state="late"), delete(orders).where(orders.c.id == 42)])
def test_who_waited_for_a_newer_token_is_refused(engine, way, threads, statement):
    newer = order_42().values(state="paid"), 2
    late = while_open(engine, threads, newer, lambda: way(engine, statement, 1))
    with pytest.raises(StaleToken) as refused:
        late.result(PATIENCE)
    assert refused.value.seen == 2
    assert rows(engine)[42] == ("paid", 2)


@several_writers
def test_who_waited_for_an_older_token_writes(engine, way, threads):
    older = order_42().values(state="early"), 1
    newer = while_open(engine, threads, older, lambda: way(engine, order_42().values(state="paid"), 2))
    assert newer.result(PATIENCE) == 1
    assert rows(engine)[42] == ("paid", 2)


@several_writers
def test_of_several_rows_one_is_enough_to_wait_for_and_be_refused(engine, way, threads):
    late = while_open(
        engine, threads, (order_42().values(state="paid"), 2), lambda: way(engine, update(orders).values(state="x"), 1)
    )
    with pytest.raises(StaleToken):
        late.result(PATIENCE)
    assert rows(engine) == {41: ("new", 0), 42: ("paid", 2), 43: ("new", 0)}


@several_writers
def test_a_newer_token_that_is_rolled_back_refuses_nobody(engine, threads):
    with engine.connect() as connection:
        write(connection, order_42().values(state="paid"), 2)
        late = threads.submit(by_connection, engine, order_42().values(state="early"), 1)
        wait_until(lambda: late.done() or blocked(engine), "the other to wait", PATIENCE)
        connection.rollback()
    assert late.result(PATIENCE) == 1
    assert rows(engine)[42] == ("early", 1)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_sees_an_old_moment_writes_nothing_late(engine, level):
    with engine.connect().execution_options(isolation_level=level) as late:
        late.execute(select(orders)).all()
        with engine.begin() as connection:
            write(connection, order_42().values(state="paid"), 2)
        with pytest.raises(OperationalError, match="could not serialize"):
            write(late, order_42().values(state="late"), 1)
    assert rows(engine)[42] == ("paid", 2)


@pytest.mark.parametrize("way", [by_connection, by_session], ids=lambda way: way.__name__)
def test_of_a_crowd_the_newest_token_stays(engine, way, threads):
    tokens = 3, 8, 1, 6, 2, 7, 4, 5
    done = [threads.submit(way, engine, order_42().values(state=str(token)), token) for token in tokens]
    errors = [each.exception(PATIENCE) for each in done]
    assert {type(error) for error in errors} <= {StaleToken, type(None)}
    assert errors[tokens.index(8)] is None
    assert rows(engine)[42] == ("8", 8)
