"""Rows that refuse a late write, through SQLAlchemy, on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    delete,
    event,
    insert,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

import distlock
from distlock import AsyncLease, ConfigurationError, DistLockError, Lease, LockLost
from distlock.contrib.sqlalchemy import StaleToken, fence_column, fenced, write

from .sqlalchemy_tools import (
    DATABASES,
    WAYS,
    Databases,
    Gift,
    Order,
    Way,
    by_async_session,
    by_connection,
    by_session,
    lines,
    order,
    order_42,
    orders,
    returned,
    rows,
    shop,
    written,
)

RETURNING = ["sqlite", "postgres"]
"""Those whose UPDATE can tell what it wrote."""


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as databases:
        yield databases


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> str:
    return databases.url(request.param, tmp_path)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    with shop(url) as engine:
        yield engine


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def leases() -> tuple[Lease, Lease]:
    """Of two holders, one after the other."""
    with distlock.connect("memory://") as locks:
        with locks.lock("orders:42") as first:
            pass
        with locks.lock("orders:42") as second:
            pass
    return first, second


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


@pytest.mark.parametrize("token", [8, 9])
def test_it_asks_twice(engine, token):
    by_connection(engine, order_42(), 9)
    asked: list[str] = []
    with engine.begin() as connection, suppress(StaleToken):
        event.listen(connection, "before_cursor_execute", lambda *args: asked.append(args[2].split()[0]))
        write(connection, order_42().values(state="paid"), token)
    assert asked == ["UPDATE", "SELECT"]


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


def test_objects_are_those_of_the_database_after_a_write_that_was_refused(engine):
    statement = update(Order).where(Order.id <= 42).values(state="paid")
    with Session(engine) as session:
        free, taken = order(session, 41), order(session, 42)
        session.commit()
        by_connection(engine, order_42().values(state="shipped"), 5)
        with pytest.raises(StaleToken):
            write(session, statement, 4)
        session.rollback()
        assert [(each.state, each.written_by) for each in (free, taken)] == [("new", 0), ("shipped", 5)]


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
