"""What is left to sell. No lock: each change is one conditional UPDATE, and the database lets one of them through.

A lock around "read, compare, write" would cost two round trips more, and protect only from those who take it too.
"""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, Engine, insert, select, update

from .settings import Settings
from .tables import customers, insert_new, now, product, reading, reservations

__all__ = ("LimitReached", "SoldOut", "expire", "give_back", "order", "reserve")


class SoldOut(Exception):
    """So many are not available: not now, but reservations may expire."""


class LimitReached(Exception):
    """So many are not for one customer."""


def reserve(engine: Engine, settings: Settings, customer: str, quantity: int) -> str:
    """Takes ``quantity`` pieces for a while, or raises `SoldOut` or `LimitReached`. Gives the reservation's id."""
    reservation = str(uuid.uuid4())
    with engine.begin() as connection:  # all of it or, if anything is raised, nothing
        insert_new(connection, customers, name=customer, taken=0)
        if not count(connection, customer, quantity, settings.limit):
            raise LimitReached
        if not take(connection, quantity):  # last, as everyone waits for this row
            raise SoldOut
        expires = now() + settings.reservation
        values = {"id": reservation, "customer": customer, "quantity": quantity, "state": "held", "expires_at": expires}
        connection.execute(insert(reservations).values(values))
    return reservation


def count(connection: Connection, customer: str, quantity: int, limit: int) -> bool:
    """What a customer has taken. False: it would be too much."""
    taken = customers.c.taken
    within = update(customers).where(customers.c.name == customer, taken + quantity <= limit)
    return connection.execute(within.values(taken=taken + quantity)).rowcount == 1


def take(connection: Connection, quantity: int) -> bool:
    """The conditional atomic decrement. False: there are not so many."""
    available = product.c.available
    left = update(product).where(product.c.id == 1, available >= quantity)
    return connection.execute(left.values(available=available - quantity)).rowcount == 1


def order(connection: Connection, reservation: str) -> bool:
    """The reservation waits no longer: an order has it. False: it has been put back, or ordered before."""
    return _move(connection, reservation, "held", "ordered")


def give_back(engine: Engine, reservation: str) -> None:
    """Undoes an order's reservation, once: whoever asks again changes nothing."""
    with engine.begin() as connection:
        if _move(connection, reservation, "ordered", "returned"):
            _put_back(connection, reservation)


def expire(engine: Engine) -> int:
    """Puts back what nobody has paid for in time; how many reservations. Any number of workers may do it at once."""
    late = select(reservations.c.id).where(reservations.c.state == "held", reservations.c.expires_at <= now())
    with reading(engine) as connection:
        found = connection.scalars(late.limit(100)).all()
    return sum(_expire(engine, reservation) for reservation in found)


def _expire(engine: Engine, reservation: str) -> bool:
    with engine.begin() as connection:
        expired = _move(connection, reservation, "held", "expired")
        if expired:
            _put_back(connection, reservation)
    return expired


def _move(connection: Connection, reservation: str, before: str, after: str) -> bool:
    moved = update(reservations).where(reservations.c.id == reservation, reservations.c.state == before)
    return connection.execute(moved.values(state=after)).rowcount == 1


def _put_back(connection: Connection, reservation: str) -> None:
    which = select(reservations.c.customer, reservations.c.quantity).where(reservations.c.id == reservation)
    customer, quantity = connection.execute(which).one()
    taken, available = customers.c.taken, product.c.available
    connection.execute(update(customers).where(customers.c.name == customer).values(taken=taken - quantity))
    connection.execute(update(product).where(product.c.id == 1).values(available=available + quantity))
