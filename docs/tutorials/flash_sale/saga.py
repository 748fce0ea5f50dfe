"""An order, from its checkout to its letter, or back again.

The customer has reserved; now the order is paid, shipped and told of, by three services that are slow, refuse, and lose
answers. What was done before a step that is refused is undone, in reverse. All that is known of it is in the database,
so any worker can go on where another one died:

* a step is written down *before* it runs, with the time after which it is overdue;
* an order is driven under the lock ``order:<id>``: two workers never drive it at the same time, however slow it is;
* each write is fenced by the lock's token: one who was stopped for too long, and comes back, changes nothing;
* services are asked under the id ``<order>-<step>``, the same at each try: what was done already is not done again.

This is an example. For more than one such process, look at Temporal or DBOS, which do this for any program.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Engine, Row, insert, select, update

from distlock import Lease, Manager
from distlock.contrib.sqlalchemy import write

from . import outbox, stock
from .clients import Refused, Services, Unavailable
from .settings import Settings
from .tables import now, orders, reading, steps

__all__ = ("STEPS", "Saga", "place")

log = logging.getLogger("flash_sale.saga")


@dataclass(frozen=True)
class Step:
    """What it is called, and the events of having done and undone it."""

    name: str
    done: str
    undone: str


STEPS = (
    Step("reserve", "placed", "compensated"),
    Step("pay", "paid", "refunded"),
    Step("ship", "shipped", "recalled"),
    Step("notify", "completed", "retracted"),
)


def place(connection: Connection, order: dict[str, Any]) -> None:
    """A new order, whose first step has been done: the rest is for the workers."""
    connection.execute(insert(orders).values(**order, state="placed", placed_at=now(), events=0))
    for position, step in enumerate(STEPS):
        values = {"order": order["id"], "position": position, "name": step.name, "attempts": int(position == 0)}
        state, due = ("done", None) if position == 0 else ("waiting", now() if position == 1 else None)
        connection.execute(insert(steps).values(**values, state=state, due_at=due))
    outbox.add(connection, order["id"], STEPS[0].done, token=0)


class Saga:
    """One worker's view of all orders. Thread-safe."""

    def __init__(self, engine: Engine, locks: Manager, services: Services, settings: Settings) -> None:
        self._engine = engine
        self._locks = locks
        self._services = services
        self._settings = settings

    def overdue(self, limit: int = 1000) -> list[str]:
        """Orders with a step that is to be done now, or that was begun and is not heard of any more."""
        late = select(steps.c.order).where(steps.c.due_at <= now()).order_by(steps.c.due_at).limit(limit)
        with reading(self._engine) as connection:
            return list(connection.scalars(late))

    def advance(self, order: str) -> None:
        """Takes an order as far as it goes now, unless another worker is at it."""
        lease = self.lock(order)
        if lease is None:
            return
        with lease:
            self._claim(order, lease)
            while (step := self._due(order)) is not None:
                lease.ensure_held()
                if step.order_state == "placed":
                    self._do(step, lease)
                else:
                    self._undo(step, lease)

    def lock(self, order: str) -> Lease | None:
        """The right to drive an order; None: somebody else has it."""
        recipe = self._locks.lock(f"order:{order}", ttl=self._settings.lease, metadata={"job": "saga"})
        return recipe.try_acquire()

    def _claim(self, order: str, lease: Lease) -> None:
        """Whoever had the order before writes nothing from here on, so what is read next stays true."""
        with self._engine.begin() as connection:
            self.fence(connection, order, lease, orders.c.state)

    def _due(self, order: str) -> Row[Any] | None:
        """The step that is next, with what there is to know of its order."""
        step = select(steps, orders, orders.c.state.label("order_state")).join(orders, steps.c.order == orders.c.id)
        with reading(self._engine) as connection:
            return connection.execute(step.where(steps.c.order == order, steps.c.due_at <= now())).one_or_none()

    # Forward

    def _do(self, step: Row[Any], lease: Lease) -> None:
        self.begin(step, lease)
        try:
            self._services.do(step)
        except Refused as error:
            untried = step.attempts == 0  # else what nobody heard of may have been done
            self.turn_back(step, lease, error, undo_from=step.position - 1 if untried else step.position)
        except Unavailable as error:
            if step.attempts + 1 < self._settings.attempts:
                self._try_again(step, lease, error)
            else:
                self.turn_back(step, lease, error, undo_from=step.position)  # it may have been done
        else:
            self.record(step, lease)

    def begin(self, step: Row[Any], lease: Lease) -> None:
        """Written down before it runs: should this worker die, somebody will look."""
        with self._writing(step, lease) as connection:
            overdue = now() + self._settings.overdue
            self._set(connection, step, state="running", attempts=step.attempts + 1, due_at=overdue)

    def record(self, step: Row[Any], lease: Lease) -> None:
        """It is done. The next one is due, or the order is completed."""
        last = step.position == len(STEPS) - 1
        with self._writing(step, lease, STEPS[step.position].done, "completed" if last else "placed") as connection:
            self._set(connection, step, state="done", due_at=None, error=None)
            self._set_due(connection, step, step.position + 1)

    # Back

    def turn_back(self, step: Row[Any], lease: Lease, error: Exception, undo_from: int) -> None:
        """From here on it is undone, the last step first."""
        log.warning("order %s is given up at %s: %s", step.order, step.name, error)
        with self._writing(step, lease, "failed", "compensating") as connection:
            self._set(connection, step, state="refused", due_at=None, error=str(error))
            self._set_due(connection, step, undo_from)

    def _undo(self, step: Row[Any], lease: Lease) -> None:
        self.begin(step, lease)
        try:
            if step.position == 0:
                stock.give_back(self._engine, step.reservation)
            else:
                self._services.undo(step)
        except (Refused, Unavailable) as error:
            self.undo_later(step, lease, error)
            return
        first = step.position == 0
        state = "compensated" if first else "compensating"
        with self._writing(step, lease, STEPS[step.position].undone, state) as connection:
            self._set(connection, step, state="undone", due_at=None, error=None)
            self._set_due(connection, step, step.position - 1)

    def undo_later(self, step: Row[Any], lease: Lease, error: Exception) -> None:
        """However often it fails: somebody's money is in it. The page shows it meanwhile."""
        self._try_again(step, lease, error)

    # Writing

    def _try_again(self, step: Row[Any], lease: Lease, error: Exception) -> None:
        doubled = self._settings.backoff * 2 ** min(step.attempts, 30)  # for ever, and floats end at 2**1024
        pause = min(self._settings.longest, doubled) * random.uniform(0.5, 1)
        log.info("order %s, %s: %s; again in %.1f s", step.order, step.name, error, pause)
        with self._writing(step, lease) as connection:
            self._set(connection, step, state="waiting", due_at=now() + pause, error=str(error))

    @contextmanager
    def _writing(self, step: Row[Any], lease: Lease, event: str = "", state: str = "") -> Iterator[Connection]:
        """A transaction on an order, refused (`StaleToken`) if somebody with a later lease has written to it."""
        lease.ensure_held()
        with self._engine.begin() as connection:
            self.fence(connection, step.order, lease, state or step.order_state)
            if event:
                outbox.add(connection, step.order, event, lease.token)
            yield connection

    def fence(self, connection: Connection, order: str, lease: Lease, state: str | Column[str]) -> None:
        """The order's own row, which guards all that is written in this transaction."""
        write(connection, update(orders).where(orders.c.id == order).values(state=state), lease)

    def _set(self, connection: Connection, step: Row[Any], **values: Any) -> None:
        this = steps.c.order == step.order, steps.c.position == step.position
        connection.execute(update(steps).where(*this).values(**values))

    def _set_due(self, connection: Connection, step: Row[Any], position: int) -> None:
        that = steps.c.order == step.order, steps.c.position == position
        connection.execute(update(steps).where(*that).values(due_at=now(), attempts=0, error=None))
