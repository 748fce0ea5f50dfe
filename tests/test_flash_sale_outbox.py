"""Events of the flash sale: each is told, once, in the order of its own order, whoever dies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import flash_sale
import pytest
from flash_sale import outbox as events
from flash_sale.outbox import STREAM, UnknownVersion
from flash_sale.settings import Settings
from flash_sale.tables import orders, outbox, position, reading
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy import func, select, text

from distlock.contrib.sqlalchemy import StaleToken

from .flash_sale_tools import DATABASES, Databases, Killed, Sale, at_once

TUTORIAL = Path(flash_sale.__file__).parent.with_name("flash-sale.md")


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as databases:
        yield databases


@pytest.fixture(params=DATABASES)
def sale(request: pytest.FixtureRequest, databases: Databases, redis_url: str, tmp_path: Path) -> Iterator[Sale]:
    database = databases.new(request.param, tmp_path)
    with ExitStack() as stack:
        yield Sale(Settings(database=database, redis=redis_url, services="", folder=str(tmp_path)), stack)


def tell(sale: Sale, order: str, *kinds: str) -> None:
    """An order has come so far."""
    for kind in kinds:
        with sale.engine.begin() as connection:
            events.add(connection, order, kind, token=1)


def sent(sale: Sale) -> list[tuple[str, str]]:
    """Orders and types, as they are in the stream."""
    stream: Any = sale.redis.xrange(STREAM)
    return [(told["key"], told["type"]) for _, told in stream]


def where(sale: Sale) -> tuple[str, int, int]:
    """How far the consumer is: the entry, how many it has seen, and how many pieces were sold."""
    with reading(sale.engine) as connection:
        at = connection.execute(select(position)).one()
    return at.entry, at.seen, at.sold


def waiting(sale: Sale) -> int:
    with reading(sale.engine) as connection:
        unsent = select(func.count()).select_from(outbox).where(outbox.c.published_at.is_(None))
        return connection.scalars(unsent).one()


def dying(function: Callable[..., Any], after: int = 1) -> Callable[..., Any]:
    """Its process dies when it has been called so often."""
    calls = iter(range(1, after))

    def call(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        if next(calls, None) is None:
            raise Killed
        return result

    return call


def dead_before(*_: Any) -> None:
    raise Killed


def test_an_event_is_there_exactly_if_what_it_tells_of_is(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    reservation = sale.reserve()
    with monkeypatch.context() as patch:
        patch.setattr(events, "add", dying(events.add))
        with pytest.raises(Killed):
            sale.check_out(reservation)
    with reading(sale.engine) as connection:
        assert connection.scalars(select(func.count()).select_from(orders)).one() == 0
        assert connection.scalars(select(func.count()).select_from(outbox)).one() == 0
    order = sale.check_out(reservation)
    assert order is not None
    assert sale.events(order) == ["placed"]


def test_events_of_an_order_keep_their_order_whoever_writes_at_once(
    sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [sale.order() for _ in range(3)]

    def write(writer: int) -> None:
        for turn in range(3):
            tell(sale, made[(writer + turn) % 3], f"{writer}")

    at_once(8, write)
    sale.publish(monkeypatch)
    sale.consume()
    for order in made:
        written = sale.events(order)
        assert len(written) == 9
        assert [kind for key, kind in sale.heard() if key == order] == written
    assert where(sale)[1:] == (27, 0)


def test_what_a_dead_publisher_had_sent_is_sent_again_and_heard_once(
    sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = sale.order(quantity=2)
    tell(sale, order, "paid", "shipped", "completed")
    lease = sale.elect("publisher")
    with monkeypatch.context() as patch:
        patch.setattr(events, "note", dead_before)
        with pytest.raises(Killed), lease:
            sale.publish(monkeypatch, lease)
    assert waiting(sale) == 4
    sale.publish(monkeypatch)
    story = [(order, kind) for kind in ("placed", "paid", "shipped", "completed")]
    assert sent(sale) == story * 2
    assert waiting(sale) == 0
    sale.consume()
    assert sale.heard() == story
    assert where(sale)[1:] == (4, 2), "what came again is not counted"


def test_redis_refuses_a_publisher_who_is_late(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order()
    late = sale.elect("publisher")
    sale.depose(late)
    sale.publish(monkeypatch)
    tell(sale, order, "paid")
    late.ensure_held()  # so it believes
    with pytest.raises(ResponseError, match="equal or smaller"):
        sale.publish(monkeypatch, late)
    assert sent(sale) == [(order, "placed")]
    assert waiting(sale) == 1, "and it has noted nothing"


def test_a_long_outbox_is_sent_bit_by_bit(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BATCH", 3)
    order = sale.order()
    tell(sale, order, *"abcdefg")
    sale.publish(monkeypatch)
    assert [kind for _, kind in sent(sale)] == ["placed", *"abcdefg"]


def test_an_event_that_is_too_new_stops_the_consumer(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order(quantity=2)
    sale.publish(monkeypatch)
    sale.consume()
    before = where(sale)
    with monkeypatch.context() as patch:
        patch.setattr(events, "VERSION", 2)
        tell(sale, order, "completed")
    tell(sale, order, "retracted")
    sale.publish(monkeypatch)
    for _ in range(2):
        with pytest.raises(UnknownVersion), sale.elect("consumer") as lease:
            sale.consume(lease)
        assert where(sale) == before
        assert sale.heard() == [(order, "placed")]
    monkeypatch.setattr(events, "VERSION", 2)
    sale.consume()
    assert [kind for _, kind in sale.heard()] == ["placed", "completed", "retracted"]
    assert where(sale)[1:] == (3, 2)


@pytest.mark.parametrize("protocol", [2, 3])
def test_events_are_heard_by_either_protocol_of_redis(
    databases: Databases, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    redis = f"{redis_url}?protocol={protocol}"
    with ExitStack() as stack:
        sale = Sale(Settings(database=databases.new("sqlite", tmp_path), redis=redis, services="", folder=""), stack)
        order = sale.order()
        sale.publish(monkeypatch)
        sale.consume()
        assert sale.heard() == [(order, "placed")]


def test_what_a_lost_stream_had_is_sent_again_as_the_tutorial_says(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    (again,) = re.findall(r"```sql\n(.*?)```", TUTORIAL.read_text("utf-8"), re.DOTALL)
    order = sale.order(quantity=2)
    sale.publish(monkeypatch)
    sale.consume()
    tell(sale, order, "paid", "shipped")
    sale.publish(monkeypatch)  # and nobody consumes it
    sale.redis.flushdb()
    tell(sale, order, "completed")
    for _ in range(2):
        sale.publish(monkeypatch)
        sale.consume()
    assert [kind for _, kind in sale.heard()] == ["placed", "completed"]
    with sale.engine.begin() as connection:
        connection.execute(text(again))
    sale.publish(monkeypatch)
    sale.consume()
    assert [kind for _, kind in sale.heard()] == ["placed", "completed", "paid", "shipped"]
    assert where(sale)[1:] == (4, 2)
    assert waiting(sale) == 0


@pytest.mark.parametrize("after", [1, 4])
def test_the_position_of_the_consumer_and_what_it_counted_are_one(
    sale: Sale, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    order = sale.order(quantity=2)
    tell(sale, order, "paid", "shipped", "completed")
    sale.publish(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(events, "take", dying(events.take, after))
        with pytest.raises(Killed), sale.elect("consumer") as lease:
            sale.consume(lease)
    assert where(sale) == ("0-0", 0, 0)
    assert sale.heard() == []
    sale.consume()
    assert where(sale)[1:] == (4, 2)


def after_reading(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """``happens`` once, when a consumer has read the stream, and not yet written what it makes of it."""
    read = Redis.xrange

    def reads(redis: Any, *args: Any, **options: Any) -> Any:
        answer = read(redis, *args, **options)
        monkeypatch.setattr(Redis, "xrange", read)
        happens()
        return answer

    monkeypatch.setattr(Redis, "xrange", reads)


def test_a_consumer_who_is_late_counts_nothing(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read; then it is stopped, and another one does its work."""
    order = sale.order(quantity=2)
    tell(sale, order, "completed")
    sale.publish(monkeypatch)
    late = sale.elect("consumer")

    def stopped() -> None:
        sale.depose(late)
        sale.consume()

    after_reading(monkeypatch, stopped)
    with pytest.raises(StaleToken):
        sale.consume(late)
    assert where(sale)[1:] == (2, 2)


def test_a_consumer_who_took_over_too_early_counts_nothing_twice(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked where the one before it was; only then that one writes."""
    order = sale.order(quantity=2)
    tell(sale, order, "completed")
    sale.publish(monkeypatch)
    first = sale.elect("consumer")

    def late() -> None:
        with pytest.raises(StaleToken):
            sale.consume(first)

    sale.depose(first)
    second = sale.elect("consumer")
    after_reading(monkeypatch, late)
    sale.consume(second)
    assert where(sale)[1:] == (2, 2)
    assert Counter(sale.heard()) == {(order, "placed"): 1, (order, "completed"): 1}
