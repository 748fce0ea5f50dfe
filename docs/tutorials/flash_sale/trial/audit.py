"""After the sale: whether the books are right. What they say is read from the databases, whoever wrote it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis import Redis
from sqlalchemy import Connection, Engine, Table, create_engine, make_url, select

from .. import outbox as events
from ..saga import STEPS
from ..services import database_of, deeds
from ..settings import Settings
from ..tables import customers, engine_of, feed, orders, outbox, position, product, reading, reservations, steps

__all__ = ("Books", "Finding", "Purchase", "audit", "read", "reader")

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Purchase:
    """What a customer was told, for one purchase."""

    key: str
    """The ``Idempotency-Key`` of its checkout."""
    answers: list[str] = field(default_factory=list)
    """The orders, a click each."""


@dataclass(frozen=True)
class Finding:
    """One thing that must hold."""

    claim: str
    seen: str
    breaches: tuple[str, ...]
    """What is wrong; empty if it holds."""


@dataclass(frozen=True)
class Books:
    """All that is written anywhere."""

    settings: Settings
    purchases: Sequence[Purchase]
    available: int
    counted: int
    """Pieces that were sold, as the consumer of the events has it."""
    customers: Rows
    reservations: Rows
    orders: Rows
    steps: Rows
    outbox: Rows
    feed: Rows
    deeds: Rows
    sent: Sequence[str]
    """The events in the stream, each as often as it is there."""
    publishers: int
    """How many were elected, one after the other, and sent any: each under a token of its own."""


def read(settings: Settings, purchases: Sequence[Purchase]) -> Books:
    """The books as they are now."""
    with (
        reader(settings.database) as shop,
        reader(database_of(settings)) as services,
        reading(shop) as ours,
        reading(services) as theirs,
        Redis.from_url(settings.redis) as redis,
    ):
        stream: Any = redis.xrange(events.STREAM)
        return Books(
            settings=settings,
            purchases=purchases,
            available=ours.scalars(select(product.c.available)).one(),
            counted=ours.scalars(select(position.c.sold)).one(),
            customers=_all(ours, customers),
            reservations=_all(ours, reservations),
            orders=_all(ours, orders),
            steps=_all(ours, steps),
            outbox=_all(ours, outbox),
            feed=_all(ours, feed),
            deeds=_all(theirs, deeds),
            sent=[told[b"event"].decode() for _, told in stream],
            publishers=len({entry.split(b"-")[0] for entry, _ in stream}),
        )


@contextmanager
def reader(url: str) -> Iterator[Engine]:
    """For one who reads alone, and may be slow: PostgreSQL ends the sessions of the shop's own engine when they stand
    still. Leaves no connection behind."""
    slow = make_url(url).get_backend_name() == "postgresql"
    engine = create_engine(url) if slow else engine_of(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _all(connection: Connection, table: Table) -> Rows:
    first = [*table.primary_key.columns]
    return [dict(row) for row in connection.execute(select(table).order_by(*first)).mappings()]


def audit(books: Books) -> list[Finding]:
    """Each claim, with what is wrong with it."""
    return [check(books) for check in CHECKS]


def _kept(books: Books) -> Rows:
    """Orders that were not taken back."""
    return [order for order in books.orders if order["state"] != "compensated"]


def sold_at_most_the_stock(books: Books) -> Finding:
    sold = sum(order["quantity"] for order in _kept(books))
    held = sum(each["quantity"] for each in books.reservations if each["state"] == "held")
    wrong = []
    if sold > books.settings.stock:
        wrong.append(f"{sold - books.settings.stock} too many")
    if books.available + held + sold != books.settings.stock:
        wrong.append(f"{books.available} left and {held} reserved: that is not the stock")
    return Finding("sold ≤ stock, and the rest is there", f"{sold} of {books.settings.stock}", tuple(wrong))


def within_the_limit(books: Books) -> Finding:
    bought: Counter[str] = Counter()
    for order in _kept(books):
        bought[order["customer"]] += order["quantity"]
    wrong = [f"{name} has {number}" for name, number in bought.items() if number > books.settings.limit]
    has: Counter[str] = Counter()
    for each in books.reservations:
        has[each["customer"]] += each["quantity"] if each["state"] in ("held", "ordered") else 0
    counted = {customer["name"]: customer["taken"] for customer in books.customers}
    wrong += [f"{name} has {has[name]}, and {taken} count" for name, taken in counted.items() if taken != has[name]]
    most = max(bought.values(), default=0)
    return Finding(f"no more than {books.settings.limit} for a customer", f"most: {most}", tuple(wrong))


def one_order_a_purchase(books: Books) -> Finding:
    wrong = [
        *_more_than_one("order", "reservation", (order["reservation"] for order in books.orders)),
        *_more_than_one("order", "purchase", (order["purchase"] for order in books.orders)),
        *(f"{len(set(each.answers))} answers" for each in books.purchases if len(set(each.answers)) > 1),
    ]
    clicks = sum(len(each.answers) for each in books.purchases)
    return Finding("one order for each purchase, however often clicked", f"{clicks} clicks", tuple(wrong))


def one_charge_an_order(books: Books) -> Finding:
    state = {order["id"]: order["state"] for order in books.orders}
    charged = Counter(deed["order"] for deed in books.deeds if _stands(deed, "charges"))
    wrong = _more_than_one("charge", "order", charged.elements())
    wrong += [f"{each} is paid for, and has no order" for each in charged if each not in state]
    wrong += [f"{each} is {state[each]}, and paid for" for each in charged if state.get(each) == "compensated"]
    unpaid = [each for each in state if state[each] == "completed" and not charged[each]]
    wrong += [f"{each} is completed, and not paid for" for each in unpaid]
    return Finding("one charge for each completed order, no other", f"{charged.total()} charges", tuple(wrong))


def every_order_ended(books: Books) -> Finding:
    ends = Counter(order["state"] for order in books.orders)
    wrong = [f"{ends[state]} {state}" for state in ("placed", "compensating") if ends[state]]
    due = sum(step["due_at"] is not None for step in books.steps)
    wrong += [f"{due} steps are due"] if due else []
    seen = f"{ends['completed']} completed, {ends['compensated']} compensated"
    return Finding("every order completed or compensated", seen, tuple(wrong))


def deeds_as_the_order_says(books: Books) -> Finding:
    """Parcels and letters; the money has a claim of its own."""
    done: dict[str, Counter[str]] = defaultdict(Counter)
    for deed in books.deeds:
        done[deed["order"]][deed["kind"]] += deed["state"] == "done"
    wrong = []
    for order in books.orders:
        wanted = int(order["state"] == "completed")
        has = done[order["id"]]
        if {has["parcels"], has["letters"]} != {wanted}:
            wrong.append(f"{order['id']} is {order['state']}: {has['parcels']} parcels, {has['letters']} letters")
    parcels = sum(_stands(deed, "parcels") for deed in books.deeds)
    return Finding("one parcel and one letter for each completed order", f"{parcels} parcels", tuple(wrong))


def nothing_left_reserved(books: Books) -> Finding:
    states = Counter(each["state"] for each in books.reservations)
    ordered = {each["id"] for each in books.reservations if each["state"] == "ordered"}
    astray = ordered - {order["reservation"] for order in _kept(books)}
    wrong = [f"{states['held']} held"] if states["held"] else []
    wrong += [f"{len(astray)} ordered, by no order"] if astray else []
    seen = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return Finding("no reservation left hanging", seen, tuple(wrong))


def outbox_is_empty(books: Books) -> Finding:
    waiting = [event for event in books.outbox if event["published_at"] is None]
    wrong = [f"{len(waiting)} wait"] if waiting else []
    seen = {event["event"] for event in books.feed}
    lost = [event for event in books.outbox if event["published_at"] is not None and event["event"] not in seen]
    wrong += [f"{len(lost)} were sent and not consumed"] if lost else []
    return Finding("the outbox is empty, and all of it consumed", f"{len(books.outbox)} events", tuple(wrong))


def events_tell_the_story(books: Books) -> Finding:
    """Of each order, what the rest of the company has heard, in that order."""
    heard: dict[str, list[str]] = {order["id"]: [] for order in books.orders}
    for event in sorted(books.feed, key=lambda event: event["seen"]):
        heard.setdefault(event["key"], []).append(event["type"])
    wrong = [f"{order}: {', '.join(story)}" for order, story in heard.items() if tuple(story) not in STORIES]
    return Finding("events of an order: each once, and in order", f"{len(books.feed)} heard", tuple(wrong))


def events_add_up(books: Books) -> Finding:
    sold = sum(order["quantity"] for order in books.orders if order["state"] == "completed")
    wrong = [f"{sold} were sold"] if sold != books.counted else []
    return Finding("the consumer has counted what was sold", f"{books.counted}", tuple(wrong))


def sent_once(books: Books) -> Finding:
    """But for a batch at each takeover: it was sent, and not noted yet."""
    twice = len(books.sent) - len(set(books.sent))
    elected = books.settings.without not in ("election", "outbox")  # else there is no token in what is sent, but a time
    allowed = max(0, books.publishers - 1) * events.BATCH if elected else 0
    wrong = [f"{twice} were sent again"] if twice > allowed else []
    return Finding(f"one publisher: at most {allowed} events sent again", f"{twice} again", tuple(wrong))


def tokens_rise(books: Books) -> Finding:
    last: dict[str, int] = {}
    wrong = []
    for event in sorted(books.outbox, key=lambda event: event["number"]):
        if event["token"] < last.get(event["key"], 0):
            wrong.append(f"{event['key']}: {event['type']} was written with an older token")
        last[event["key"]] = event["token"]
    return Finding("tokens rise", f"{len({event['token'] for event in books.outbox})} tokens", tuple(wrong))


CHECKS: tuple[Callable[[Books], Finding], ...] = (
    sold_at_most_the_stock,
    within_the_limit,
    one_order_a_purchase,
    one_charge_an_order,
    every_order_ended,
    deeds_as_the_order_says,
    nothing_left_reserved,
    outbox_is_empty,
    events_tell_the_story,
    events_add_up,
    sent_once,
    tokens_rise,
)


def _stands(deed: Mapping[str, Any], kind: str) -> bool:
    return bool(deed["kind"] == kind and deed["state"] == "done")


def _more_than_one(what: str, of: str, found: Iterable[str]) -> list[str]:
    return [f"{number} {what}s of one {of}" for number in Counter(found).values() if number > 1]


def _stories() -> Iterable[tuple[str, ...]]:
    """How an order may go: to its end, or back from any step."""
    forward = [step.done for step in STEPS]
    yield tuple(forward)
    for failed in range(1, len(STEPS)):
        for undone_from in (failed - 1, failed):  # refused, or nobody knows
            back = [step.undone for step in STEPS[undone_from::-1]]
            yield (*forward[:failed], "failed", *back)


STORIES = frozenset(_stories())
