"""Rows that refuse a late write, through SQLAlchemy: transactions at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, delete, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from distlock.contrib.sqlalchemy import StaleToken, write

from .programs import wait_until
from .sqlalchemy_tools import (
    DATABASES,
    PATIENCE,
    WAYS,
    Databases,
    Way,
    by_connection,
    by_session,
    order_42,
    orders,
    rows,
    shop,
)


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
        written_since_it_looked(engine, late)
        with pytest.raises(OperationalError, match="could not serialize"):
            write(late, order_42().values(state="late"), 1)
    assert rows(engine)[42] == ("paid", 2)


def written_since_it_looked(engine: Engine, late: Connection) -> None:
    """42, by a newer token."""
    late.execute(select(orders)).all()
    with engine.begin() as connection:
        write(connection, order_42().values(state="paid"), 2)


LATE = [order_42().values(state="late"), delete(orders).where(orders.c.id == 42), update(orders).values(state="late")]


@pytest.mark.parametrize("url", ["mariadb"], indirect=True)
@pytest.mark.parametrize("driver", ["mysql+pymysql", "mariadb+pymysql"])
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("statement", LATE)
def test_who_has_looked_before_a_newer_token_wrote_is_told_of_it(engine, driver, level, statement):
    named = create_engine(engine.url.set(drivername=driver), poolclass=NullPool, isolation_level=level)
    with named.connect() as late:
        late.execute(text("SET innodb_snapshot_isolation = OFF"))
        written_since_it_looked(engine, late)
        with pytest.raises(StaleToken) as refused:
            write(late, statement, 1)
        assert refused.value.seen == 2
    assert rows(engine) == {41: ("new", 0), 42: ("paid", 2), 43: ("new", 0)}


@pytest.mark.parametrize("url", ["mariadb"], indirect=True)
@pytest.mark.parametrize("statement", LATE)
def test_a_strict_snapshot_that_was_overtaken_is_an_error_of_the_database(engine, statement):
    """As MariaDB has them from 11.6 on, unless it is told otherwise."""
    with engine.connect() as late:
        late.execute(text("SET innodb_snapshot_isolation = ON"))
        written_since_it_looked(engine, late)
        with pytest.raises(OperationalError, match="Record has changed since last read"):
            write(late, statement, 1)
    assert rows(engine) == {41: ("new", 0), 42: ("paid", 2), 43: ("new", 0)}


@pytest.mark.parametrize("way", [by_connection, by_session], ids=lambda way: way.__name__)
def test_of_a_crowd_the_newest_token_stays(engine, way, threads):
    tokens = 3, 8, 1, 6, 2, 7, 4, 5
    done = [threads.submit(way, engine, order_42().values(state=str(token)), token) for token in tokens]
    errors = [each.exception(PATIENCE) for each in done]
    assert {type(error) for error in errors} <= {StaleToken, type(None)}
    assert errors[tokens.index(8)] is None
    assert rows(engine)[42] == ("8", 8)
