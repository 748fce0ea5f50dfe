"""What the page shows."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any

from sqlalchemy import Connection, Engine, case, func, select

from distlock import BackendError, Inspection, Manager

from .settings import Settings
from .tables import now, orders, outbox, position, product, reading, reservations, steps

__all__ = ("PERIOD", "Live", "snapshot")

PERIOD = 0.5
"""Seconds for which a picture is shown."""


class Live:
    """The same picture for all who watch: the stores are asked once, however many these are. Thread-safe."""

    def __init__(self, engine: Engine, locks: Manager, settings: Settings) -> None:
        self._of = engine, locks, settings
        self._looking = threading.Lock()
        self._text = ""
        self._since = -math.inf

    def text(self) -> str:
        """A `snapshot` as JSON, not older than `PERIOD`."""
        with self._looking:
            if time.monotonic() >= self._since + PERIOD:
                self._text = json.dumps(snapshot(*self._of))
                self._since = time.monotonic()
            return self._text


def snapshot(engine: Engine, locks: Manager, settings: Settings) -> dict[str, Any]:
    """The sale as it is now, for JSON."""
    with reading(engine) as connection:
        shown = {
            "product": _product(connection, settings),
            "orders": _orders(connection),
            "recent": _recent(connection),
            "stuck": _stuck(connection),
            "outbox": _outbox(connection),
            "feed": dict(connection.execute(select(position.c.seen, position.c.sold)).mappings().one()),
        }
    try:
        return {**shown, "locks": [_lock(each) for each in locks.list() if each.holder], "trouble": None}
    except BackendError as error:
        return {**shown, "locks": None, "trouble": str(error)}


def _product(connection: Connection, settings: Settings) -> dict[str, Any]:
    found = connection.execute(select(product.c.stock, product.c.available)).one()
    held = select(func.coalesce(func.sum(reservations.c.quantity), 0)).where(reservations.c.state == "held")
    reserved = connection.scalars(held).one()
    return {
        "name": "The last lamp",
        "price": settings.price,
        "stock": found.stock,
        "available": found.available,
        "reserved": reserved,
        "sold": found.stock - found.available - reserved,
    }


def _orders(connection: Connection) -> dict[str, int]:
    counted = connection.execute(select(orders.c.state, func.count().label("number")).group_by(orders.c.state)).all()
    states = dict.fromkeys(("placed", "completed", "compensating", "compensated"), 0)
    return states | {each.state: each.number for each in counted}


def _recent(connection: Connection) -> list[dict[str, Any]]:
    age = (now() - orders.c.placed_at).label("age")
    newest = select(orders.c.id, orders.c.customer, orders.c.state, age).order_by(orders.c.placed_at.desc()).limit(20)
    shown = {order["id"]: {**order, "steps": []} for order in connection.execute(newest).mappings()}
    of_them = select(steps).where(steps.c.order.in_(shown)).order_by(steps.c.position)
    for step in connection.execute(of_them).mappings():
        told = {name: step[name] for name in ("name", "state", "attempts", "error")}
        shown[step["order"]]["steps"].append(told)
    return list(shown.values())


def _stuck(connection: Connection) -> list[dict[str, Any]]:
    """What could not be undone yet. A try that runs may succeed; of those before it, nobody has heard that they did."""
    next_try = (steps.c.due_at - now()).label("next_try_in")
    failed = (steps.c.attempts - case((steps.c.state == "running", 1), else_=0)).label("failed")
    step = select(steps.c.order, steps.c.name.label("step"), failed, steps.c.error, next_try)
    undoing = step.join(orders, steps.c.order == orders.c.id).where(orders.c.state == "compensating")
    stuck = undoing.where(steps.c.due_at.is_not(None), failed > 0).order_by(failed.desc())
    return [dict(each) for each in connection.execute(stuck.limit(20)).mappings()]


def _outbox(connection: Connection) -> dict[str, int]:
    written, published = connection.execute(select(func.count(), func.count(outbox.c.published_at))).one()
    return {"waiting": written - published, "published": published}


def _lock(found: Inspection) -> dict[str, Any]:
    assert found.holder is not None
    return {
        "key": found.key,
        "host": found.holder.host,
        "pid": found.holder.pid,
        "held_for": found.holder.held_for,
        "expires_in": found.holder.ttl,
        "token": found.holder.token,
        "waiters": len(found.waiters),
        "job": found.holder.metadata.get("job", ""),
    }
