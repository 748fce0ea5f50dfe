"""The flash sale never sells what it does not have, and never keeps what nobody bought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from flash_sale import stock, tables
from flash_sale.live import snapshot
from flash_sale.settings import Settings
from flash_sale.shop import Wish
from flash_sale.tables import customers, engine_of, orders, product, reading, reservations, steps
from pydantic import ValidationError
from sqlalchemy import Column, event, func, select, text, true, update

import distlock

from .flash_sale_tools import DATABASES, Databases, Sale, at_once
from .programs import bind_free_port


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as databases:
        yield databases


@pytest.fixture(params=DATABASES)
def settings(request: pytest.FixtureRequest, databases: Databases, redis_url: str, tmp_path: Path) -> Settings:
    database = databases.new(request.param, tmp_path)
    return Settings(database=database, redis=redis_url, services="", folder=str(tmp_path), stock=10)


@pytest.fixture
def sale(settings: Settings) -> Iterator[Sale]:
    with ExitStack() as stack:
        yield Sale(settings, stack)


@pytest.fixture
def brief(sale: Sale) -> Sale:
    """The time of its reservations is over at once."""
    sale.settings = replace(sale.settings, reservation=-1)
    return sale


def books(sale: Sale) -> tuple[int, Counter[str], int]:
    """What is available, how many pieces are in which state of reservations, and what customers count as theirs."""
    with reading(sale.engine) as connection:
        available = connection.scalars(select(product.c.available)).one()
        states = select(reservations.c.state, func.sum(reservations.c.quantity)).group_by(reservations.c.state)
        pieces = Counter({state: int(number) for state, number in connection.execute(states)})
        taken = connection.scalars(select(func.coalesce(func.sum(customers.c.taken), 0))).one()
    return available, pieces, int(taken)


def test_a_crowd_gets_all_there_is_and_no_more(sale: Sale) -> None:
    def buy(customer: int) -> int:
        for quantity in (2, 1):
            with suppress(stock.SoldOut):
                sale.reserve(f"customer {customer}", quantity)
                return quantity
        return 0

    assert sum(at_once(20, buy)) == sale.settings.stock
    assert books(sale) == (0, {"held": 10}, 10)


def test_a_customer_gets_no_more_than_the_limit_from_any_number_of_windows(sale: Sale) -> None:
    def buy(window: int) -> int:
        with suppress(stock.LimitReached):
            sale.reserve("greedy")
            return 1
        return 0

    assert sum(at_once(10, buy)) == sale.settings.limit
    assert books(sale) == (8, {"held": 2}, 2)


def test_who_is_refused_has_taken_nothing(sale: Sale) -> None:
    for customer in range(5):
        sale.reserve(f"customer {customer}", 2)
    with pytest.raises(stock.SoldOut):
        sale.reserve("late")
    with pytest.raises(stock.LimitReached):
        sale.reserve("late", 3)
    assert books(sale) == (0, {"held": 10}, 10)


def test_more_than_a_database_can_count_is_no_wish() -> None:
    with pytest.raises(ValidationError):
        Wish(customer="somebody", quantity=10**30)
    with pytest.raises(ValidationError):
        Wish(customer="somebody", quantity=-1)


@pytest.mark.parametrize("text", ["\0", "x" * 70_000], ids=["nul", "long"])
@pytest.mark.parametrize("field", ["customer", "reservation", "card", "address"])
def test_what_no_row_and_no_address_takes_is_refused_at_the_door(sale: Sale, field: str, text: str) -> None:
    """PostgreSQL takes no NUL; a refund has the card in its URL, and would fail for ever."""
    if field == "customer":
        answer = sale.post("/reservations", "key", customer=text, quantity=1)
    else:
        payment = {"reservation": sale.reserve(), "card": "good", "address": "home", field: text}
        answer = sale.post("/checkout", "key", **payment)
    assert answer.status_code == 422


def test_a_key_too_long_for_an_index_is_refused_at_the_door(sale: Sale) -> None:
    """The middleware knows no end of its parameters."""
    payment = {"reservation": sale.reserve(), "card": "good", "address": "home"}
    assert sale.post("/checkout", 'key";more="' + "x" * 3000, **payment).status_code == 422
    assert sale.post("/checkout", 'other";more="' + "x" * 200, **payment).status_code == 202


def test_sweepers_put_back_what_expired_once(brief: Sale) -> None:
    for _ in range(8):
        brief.reserve()
    ordered = brief.order()
    assert sum(at_once(6, lambda sweeper: stock.expire(brief.engine))) == 8
    assert books(brief) == (9, {"expired": 8, "ordered": 1}, 1)
    assert brief.state(ordered) == "placed"


def test_what_has_time_left_stays_reserved(sale: Sale) -> None:
    sale.reserve()
    assert stock.expire(sale.engine) == 0
    assert books(sale) == (9, {"held": 1}, 1)


def test_a_reservation_gives_one_order_however_often_it_is_checked_out(sale: Sale) -> None:
    reservation = sale.reserve(quantity=2)
    found = at_once(8, lambda window: sale.check_out(reservation))
    assert None not in found
    assert len({*found}) == 1
    assert sale.events(str(found[0])) == ["placed"]
    assert sale.check_out(reservation, "another card", purchase="another") is None


def test_a_purchase_gives_one_order_though_redis_has_forgotten_its_keys(sale: Sale) -> None:
    """The same two requests reserve once more, and what was reserved for nothing expires."""

    def click() -> tuple[str, str]:
        reserved = sale.post("/reservations", "reserve", customer="ada", quantity=1).json()["reservation"]
        ordered = sale.post("/checkout", "buy", reservation=reserved, card="good", address="home")
        return reserved, ordered.json()["order"]

    first, order = click()
    assert click() == (first, order)
    sale.redis.flushdb()
    second, again = click()
    assert second != first
    assert again == order
    assert books(sale)[1] == {"ordered": 1, "held": 1}


def test_reservations_of_one_purchase_give_one_order_at_the_same_time(sale: Sale) -> None:
    for number in range(4):
        customer, start = f"customer {number}", Barrier(2)
        reserved = [sale.reserve(customer) for _ in range(2)]

        def buy(window: int, reserved: list[str] = reserved, start: Barrier = start) -> str | None:
            start.wait()
            return sale.check_out(reserved[window], purchase="one")

        found = at_once(2, buy)
        assert None not in found
        assert len({*found}) == 1, "and those of other customers, under the same key, are theirs"
    assert books(sale)[1] == {"ordered": 4, "held": 4}


def test_what_has_expired_gives_no_order(brief: Sale) -> None:
    reservation = brief.reserve()
    stock.expire(brief.engine)
    assert brief.check_out(reservation) is None
    assert brief.check_out("never reserved") is None


def test_an_order_is_given_back_once(sale: Sale) -> None:
    reservation = sale.reserve(quantity=2)
    stock.give_back(sale.engine, reservation)  # nobody ordered it
    assert books(sale) == (8, {"held": 2}, 2)
    order = sale.check_out(reservation)
    at_once(6, lambda worker: stock.give_back(sale.engine, reservation))
    assert books(sale) == (10, {"returned": 2}, 0)
    assert sale.check_out(reservation) == order, "it is not ordered again"


def test_either_the_checkout_or_the_sweeper_gets_a_reservation(brief: Sale) -> None:
    for _ in range(15):
        reservation, start = brief.reserve(), Barrier(2)

        def race(who: int, reservation: str = reservation, start: Barrier = start) -> object:
            start.wait()
            return brief.check_out(reservation) if who else stock.expire(brief.engine)

        expired, order = at_once(2, race)
        assert (expired == 1) is (order is None)
        stock.give_back(brief.engine, reservation)
        assert brief.live()["product"]["available"] == brief.settings.stock


def test_everyone_at_once_waits_for_nobody_for_ever(brief: Sale) -> None:
    """Customers, product and reservations are locked by all who are here; PostgreSQL would end a deadlock."""

    def shop(customer: int) -> None:
        for turn in range(6):
            with suppress(stock.SoldOut, stock.LimitReached):
                reservation = brief.reserve(f"customer {(customer + turn) % 4}")
                if turn % 3:
                    brief.check_out(reservation)
                if turn % 3 == 1:
                    stock.give_back(brief.engine, reservation)
            stock.expire(brief.engine)

    at_once(8, shop)
    while stock.expire(brief.engine):
        pass
    available, pieces, taken = books(brief)
    assert available + pieces["ordered"] == brief.settings.stock
    assert taken == pieces["ordered"]
    assert not pieces["held"]


def test_what_is_shown_is_of_one_moment(sale: Sale) -> None:
    """Else, of what is reserved while it is counted, it would show less sold than nothing."""
    sale.reserve()
    other = engine_of(sale.settings.database)

    @event.listens_for(sale.engine, "after_cursor_execute")
    def reserve_meanwhile(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "product.available" in statement and "UPDATE" not in statement:
            stock.reserve(other, sale.settings, "quick", 1)

    shown = sale.live()["product"]
    other.dispose()
    assert (shown["available"], shown["reserved"], shown["sold"]) == (9, 1, 0)


def test_that_nobody_knows_of_the_locks_is_not_that_there_are_none(sale: Sale) -> None:
    assert sale.live()["locks"] == []
    with bind_free_port() as bound:  # nobody listens
        url = f"redis://127.0.0.1:{bound.getsockname()[1]}"
        with distlock.connect(url, namespace="flash") as locks:
            shown = snapshot(sale.engine, locks, sale.settings)
    assert shown["locks"] is None
    assert "refused" in shown["trouble"]


def test_who_is_stopped_in_a_transaction_does_not_stop_the_sale(
    databases: Databases, redis_url: str, tmp_path: Path
) -> None:
    """PostgreSQL takes its locks from it. (SQLite has one writer, and nobody who could.)"""
    settings = Settings(database=databases.new("postgresql", tmp_path), redis=redis_url, services="", folder="")
    with ExitStack() as stack:
        sale = Sale(settings, stack)
        engine = engine_of(settings.database)
        stack.callback(engine.dispose)
        with engine.connect() as stopped:
            stopped.execute(update(product).values(available=0))
            assert sale.reserve()
            stopped.invalidate()


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
@pytest.mark.parametrize("column", [steps.c.due_at, reservations.c.expires_at], ids=str)
def test_what_is_late_is_found_by_an_index(sale: Sale, column: Column[float]) -> None:
    """However many steps and reservations there have been. They are looked for ten times a second."""
    late = select(column).where(
        column <= tables.now(), reservations.c.state == "held" if column.table is reservations else true()
    )
    with sale.engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = connection.scalars(
            text(f"EXPLAIN {late.compile(sale.engine, compile_kwargs={'literal_binds': True})}")
        ).all()
    assert any("Index Cond" in line and column.name in line for line in plan), plan


def test_of_all_that_was_ordered_nothing_is_written_if_one_thing_cannot_be(
    sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation = sale.reserve()

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flash_sale.outbox.add", fail)
    with pytest.raises(KeyboardInterrupt):
        sale.check_out(reservation)
    with reading(sale.engine) as connection:
        assert connection.scalars(select(func.count()).select_from(orders)).one() == 0
    assert books(sale) == (9, {"held": 1}, 1)


def test_settings_come_back_from_the_environment(settings: Settings) -> None:
    changed = Settings(**{**vars(settings), "stock": 7, "backoff": 0.1 + 0.2, "faults": "a,b"})
    assert Settings.of(changed.environment()) == changed
    assert Settings.of({**changed.environment(), "PATH": "/bin"}) == changed


def test_settings_that_must_be_given_are_asked_for(settings: Settings) -> None:
    environment = settings.environment()
    del environment["FLASH_STOCK"], environment["FLASH_REDIS"]
    with pytest.raises(KeyError, match="FLASH_REDIS"):
        Settings.of(environment)
    assert Settings.of({**environment, "FLASH_REDIS": "r"}).stock == Settings.stock
