"""The shop with one of its protections switched off, to see what that one is for.

Each is done to the program from outside (`flash_sale.trial.entry`), as a careless change would.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from redis import Redis
from sqlalchemy import Connection, Engine, select, update

from .. import outbox, shop, stock, worker
from ..clients import Services
from ..saga import Saga
from ..settings import Settings
from ..tables import customers, engine_of, orders, product, reading, reservations
from .faults import replace

__all__ = ("ENDLESS", "PROTECTIONS", "install")

MEANWHILE = 0.02
"""Seconds in which two of them meet, also on a machine that does one thing at a time."""


def install(settings: Settings) -> None:
    """Switches it off in this process."""
    for name in filter(None, settings.without.split(",")):
        {**PROTECTIONS, "library": library}[name](settings)


def conditional_decrement(settings: Settings) -> None:
    """Read what is left, compare, write: two who read the same both sell it."""
    read, reserve = threading.local(), stock.reserve

    def reserve_by_reading(engine: Engine, settings: Settings, customer: str, quantity: int) -> str:
        with reading(engine) as connection:
            read.available = connection.scalars(select(product.c.available)).one()
        time.sleep(MEANWHILE)
        return reserve(engine, settings, customer, quantity)

    def take(connection: Connection, quantity: int) -> bool:
        connection.execute(update(product).values(available=read.available - quantity))
        return bool(read.available >= quantity)

    replace(stock, reserve=reserve_by_reading, take=take)


def limit(settings: Settings) -> None:
    """The same with what the customer has taken."""
    read, reserve = threading.local(), stock.reserve

    def reserve_by_reading(engine: Engine, settings: Settings, customer: str, quantity: int) -> str:
        with reading(engine) as connection:
            taken = connection.scalars(select(customers.c.taken).where(customers.c.name == customer)).one_or_none()
        read.taken = taken or 0
        time.sleep(MEANWHILE)
        return reserve(engine, settings, customer, quantity)

    def count(connection: Connection, customer: str, quantity: int, limit: int) -> bool:
        this = update(customers).where(customers.c.name == customer)
        connection.execute(this.values(taken=read.taken + quantity))
        return bool(read.taken + quantity <= limit)

    replace(stock, reserve=reserve_by_reading, count=count)


def expiry(settings: Settings) -> None:
    """Nobody puts back what was reserved and never paid for."""
    replace(stock, expire=lambda engine: 0)


def _unprotected(app: object, locks: object, settings: Settings) -> None:
    """Each click is a request of its own."""


def _orders_of_a_purchase(settings: Settings) -> None:
    """Any number. The unique index goes with what stands before it, for it would cover for that."""
    engine = engine_of(settings.database)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX IF EXISTS orders_of_a_purchase")
    engine.dispose()


def idempotency_key(settings: Settings) -> None:
    """Each click is a request of its own, and gets an order of its own."""
    _orders_of_a_purchase(settings)
    replace(shop, protect=_unprotected)


def conditional_order(settings: Settings) -> None:
    """Whoever checks out gets an order, whatever has become of the reservation."""
    _orders_of_a_purchase(settings)

    def order(connection: Connection, reservation: str) -> bool:
        this = update(reservations).where(reservations.c.id == reservation)
        return connection.execute(this.values(state="ordered")).rowcount == 1

    replace(stock, order=order)


class _NoLease:
    """In the place of a lease: no proof, no token."""

    token = 0
    __enter__ = __exit__ = ensure_held = lambda *args: None


def _write_plainly(saga: Saga, connection: Connection, order: str, lease: object, state: str) -> None:
    connection.execute(update(orders).where(orders.c.id == order).values(state=state))


def lock(settings: Settings) -> None:
    """Any number of workers drive an order at the same time. No lock gives no token, so nothing is fenced."""
    replace(Saga, lock=lambda saga, order: _NoLease(), fence=_write_plainly)


def fence(settings: Settings) -> None:
    """The lock is there; who is late writes all the same."""
    replace(Saga, fence=_write_plainly)


def step_id(settings: Settings) -> None:
    """Services are asked under a new id at each try."""
    replace(Services, step_id=lambda services, step: str(uuid.uuid4()))


def overdue(settings: Settings) -> None:
    """Nobody looks for steps that were begun and are not heard of any more."""
    begin = Saga.begin

    def begun(saga: Saga, step: Any, lease: Any) -> None:
        begin(saga, step, lease)
        with saga._engine.begin() as connection:
            saga._set(connection, step, due_at=None)

    replace(Saga, begin=begun)


def compensation_retry(settings: Settings) -> None:
    """What cannot be undone at once is dropped."""

    def dropped(saga: Saga, step: Any, lease: Any, error: Exception) -> None:
        with saga._writing(step, lease) as connection:
            saga._set(connection, step, due_at=None)
            saga._set_due(connection, step, step.position - 1)

    replace(Saga, undo_later=dropped)


def the_outbox(settings: Settings) -> None:
    """Events are sent while the order is written: two stores, and no transaction over both."""
    redis: Redis = Redis.from_url(settings.redis, decode_responses=True)

    def send(connection: Connection, order: str, kind: str, token: int) -> None:
        this = update(orders).where(orders.c.id == order).values(events=orders.c.events + 1)
        told = connection.execute(this.returning(orders.c.events, orders.c.quantity)).one()
        event: dict[Any, Any] = {"event": str(uuid.uuid4()), "key": order, "number": told.events, "type": kind}
        body = json.dumps({"quantity": told.quantity})
        redis.xadd(outbox.STREAM, {**event, "version": outbox.VERSION, "body": body})

    replace(outbox, add=send)


def election(settings: Settings) -> None:
    """Every publisher publishes. No lock gives no token, so Redis cannot tell who is late."""
    elected, send = worker.elected, outbox.send

    def alone(locks: Any, name: str, ttl: float, work: Any) -> None:
        elected(locks, f"{name}-{os.getpid()}", ttl, work)

    def send_slowly(redis: Any, event: Any, entry: str) -> None:
        time.sleep(MEANWHILE)
        send(redis, event, "*")

    replace(worker, elected=alone)
    replace(outbox, send=send_slowly)


def idempotent_consumer(settings: Settings) -> None:
    """What comes twice counts twice."""
    is_new = outbox.is_new

    def counted(connection: Connection, event: dict[str, str], seen: int) -> bool:
        return is_new(connection, {**event, "event": str(uuid.uuid4())}, seen)

    replace(outbox, is_new=counted)


def library(settings: Settings) -> None:
    """The same shop without distlock: no protection at all that takes a lock or a token. To compare the speed."""

    def alone(locks: Any, name: str, ttl: float, work: Any) -> None:
        work(_NoLease())

    lock(settings)
    replace(shop, protect=_unprotected)
    replace(worker, elected=alone)
    replace(outbox, write=lambda connection, statement, lease: connection.execute(statement))


ENDLESS = ("expiry", "lock", "overdue")
"""Without these something may stay as it is for ever."""

PROTECTIONS: dict[str, Callable[[Settings], None]] = {
    "conditional-decrement": conditional_decrement,
    "limit": limit,
    "expiry": expiry,
    "idempotency-key": idempotency_key,
    "conditional-order": conditional_order,
    "lock": lock,
    "fence": fence,
    "step-id": step_id,
    "overdue": overdue,
    "compensation-retry": compensation_retry,
    "outbox": the_outbox,
    "election": election,
    "idempotent-consumer": idempotent_consumer,
}
