"""Events, for the rest of the company: written with what they tell of, published later, consumed once.

1. `add` writes an event in the transaction that changes the order: both are there, or neither.
2. One elected worker, the holder of the lock ``publisher``, sends them to a Redis stream, in order. It may die between
   sending and noting that it has: then its successor sends some again.
3. The consumer writes down which events it has had, in the transaction of what it makes of them.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from redis import Redis
from sqlalchemy import Connection, Engine, Row, insert, select, update

from distlock import Lease
from distlock.contrib.sqlalchemy import write

from .tables import feed, insert_new, now, orders, outbox, position, reading

__all__ = ("STREAM", "VERSION", "UnknownVersion", "add", "consume", "publish")

STREAM = "flash:events"
VERSION = 1
"""Of the body's schema. A consumer knows older ones too, and stops at a newer one."""
TOLD = ("event", "key", "number", "version", "type", "body")
BATCH = 10
"""How many are noted as sent at a time, and so may be sent again."""
PAUSE = 0.1
"""Seconds between two looks at an outbox that was empty."""


class UnknownVersion(Exception):
    """The event is newer than this program. It is not skipped: bring this program up to date."""


def add(connection: Connection, order: str, kind: str, token: int) -> None:
    """An event, in the transaction that writes the order: the order's row is locked, so its events have an order."""
    told = connection.execute(
        update(orders)
        .where(orders.c.id == order)
        .values(events=orders.c.events + 1)
        .returning(orders.c.events, orders.c.quantity, orders.c.cents)
    ).one()
    body = json.dumps({"order": order, "quantity": told.quantity, "cents": told.cents})
    event = {"event": str(uuid.uuid4()), "key": order, "number": told.events, "version": VERSION, "type": kind}
    connection.execute(insert(outbox).values(**event, body=body, token=token))


def publish(engine: Engine, redis: Redis, lease: Lease) -> None:
    """Sends events as long as the lease is held, and raises `LockLost` then."""
    waiting = select(outbox).where(outbox.c.published_at.is_(None)).order_by(outbox.c.id).limit(BATCH)
    sent = 0
    while True:
        with reading(engine) as connection:
            batch = connection.execute(waiting).all()
        for event in batch:
            lease.ensure_held()
            sent += 1
            send(redis, event, f"{lease.token}-{sent}")
        note(engine, batch)
        if not batch:
            time.sleep(PAUSE)
            lease.ensure_held()


def send(redis: Redis, event: Row[Any], entry: str) -> None:
    """Ids of a stream only rise. With the fencing token in front, Redis refuses one who is late: a ResponseError."""
    told: dict[Any, Any] = {name: event._mapping[name] for name in TOLD}
    redis.xadd(STREAM, told, id=entry)


def note(engine: Engine, batch: Any) -> None:
    """That they are sent."""
    if batch:
        with engine.begin() as connection:
            those = update(outbox).where(outbox.c.id.in_([event.id for event in batch]))
            connection.execute(those.values(published_at=now()))


def consume(engine: Engine, redis: Redis, lease: Lease) -> None:
    """Counts what was sold, as long as the lease is held; `StaleToken` if somebody else has gone on meanwhile."""
    with engine.begin() as connection:  # first, so that one who is late does not move it any more
        write(connection, update(position).values(entry=position.c.entry), lease)
        at = connection.scalars(select(position.c.entry)).one()
    while True:
        lease.ensure_held()
        redis.xread({STREAM: at}, count=1, block=500)  # it only waits: what it gives is another thing in RESP3
        entries: Any = redis.xrange(STREAM, f"({at}", count=100)
        if entries:
            at = entries[-1][0]
            with engine.begin() as connection:
                write(connection, update(position).values(entry=at), lease)  # first: nobody else counts meanwhile
                for _, event in entries:
                    take(connection, event)


def take(connection: Connection, event: dict[str, str]) -> None:
    """One event, which may have come before."""
    if int(event["version"]) > VERSION:
        raise UnknownVersion(f"event {event['event']} has version {event['version']}, and {VERSION} is known here")
    seen = connection.scalars(select(position.c.seen)).one() + 1
    if is_new(connection, event, seen):
        sold = json.loads(event["body"])["quantity"] if event["type"] == "completed" else 0
        connection.execute(update(position).values(seen=seen, sold=position.c.sold + sold))


def is_new(connection: Connection, event: dict[str, str], seen: int) -> bool:
    """Whether it has not come before. Its row and what is made of it are one transaction."""
    told = {"event": event["event"], "key": event["key"], "number": int(event["number"]), "type": event["type"]}
    return insert_new(connection, feed, **told, seen=seen)
