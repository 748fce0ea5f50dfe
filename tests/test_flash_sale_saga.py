"""An order of the flash sale is completed or taken back, whatever refuses, is down, comes late or dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from flash_sale import worker
from flash_sale.clients import Refused, Services, Unavailable
from flash_sale.saga import Saga
from flash_sale.settings import Settings
from sqlalchemy import event

from distlock import Lease
from distlock.contrib.sqlalchemy import StaleToken

from .flash_sale_tools import DATABASES, LEASE, Databases, Killed, Sale, ServicesServer, at_once
from .programs import bind_free_port

DONE = {"charges": "done", "parcels": "done", "letters": "done"}
COMPLETED = ["placed", "paid", "shipped", "completed"]


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with Databases() as databases:
        yield databases


@pytest.fixture(scope="module")
def services() -> Iterator[ServicesServer]:
    with ServicesServer() as server:
        yield server


@pytest.fixture(params=DATABASES)
def sale(
    request: pytest.FixtureRequest, databases: Databases, services: ServicesServer, redis_url: str, tmp_path: Path
) -> Iterator[Sale]:
    """Whatever is to be tried later is due at once."""
    settings = Settings(
        database=databases.new(request.param, tmp_path),
        redis=redis_url,
        services=services.url,
        folder=str(services.folder),
        stock=500,
        lease=LEASE,
        overdue=0,
        backoff=0,
    )
    services.clear()
    with ExitStack() as stack:
        yield Sale(settings, stack)


class Asking(Services):
    """Notes what it has asked for, and by which method."""

    asked: list[str]

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked = []

    def do(self, step: Any) -> None:
        self.asked.append(step.name)
        super().do(step)

    def undo(self, step: Any) -> None:
        self.asked.append(f"un{step.name}")
        super().undo(step)


class NoLetters(Asking):
    def do(self, step: Any) -> None:
        super().do(step)
        if step.name == "notify":
            raise Refused("notify: no such address")


class Deaf(Asking):
    """Parcels are sent, and it never hears of it."""

    def do(self, step: Any) -> None:
        super().do(step)
        if step.name == "ship":
            raise Unavailable("ship: no answer")


class DeafOnce(Asking):
    """The parcel is sent, and it does not hear of it. When it asks again, it hears that there are no parcels."""

    def do(self, step: Any) -> None:
        if "ship" in self.asked:
            raise Refused("ship: out of parcels")
        super().do(step)
        if step.name == "ship":
            raise Unavailable("ship: no answer")


def asked_by(saga: Saga) -> list[str]:
    assert isinstance(saga._services, Asking)
    return saga._services.asked


def begun(sale: Sale, order: str) -> tuple[Saga, Any, Lease]:
    """A worker that has begun the next step of an order, and was then stopped for longer than its lease."""
    saga = sale.saga()
    lease = sale.held(saga.lock(order))
    step: Any = saga._due(order)
    saga.begin(step, lease)
    sale.depose(lease)
    return saga, step, lease


def test_an_order_is_paid_shipped_and_told_of(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order(quantity=2)
    assert sale.saga().overdue() == [order]
    sale.drive()
    assert sale.state(order) == "completed"
    assert sale.steps(order) == ["done"] * 4
    assert sale.events(order) == COMPLETED
    assert sale.deeds(order) == DONE
    assert sale.saga().overdue() == []
    assert sale.breaches(monkeypatch) == []
    assert sale.live()["feed"] == {"seen": 4, "sold": 2}


@pytest.mark.parametrize(
    ("card", "address", "asked", "events", "steps"),
    [
        ("declined", "home", ["pay"], ["compensated"], ["undone", "refused", "waiting", "waiting"]),
        (
            "good",
            "nowhere",
            ["pay", "ship", "unpay"],
            ["refunded", "compensated"],
            ["undone", "undone", "refused", "waiting"],
        ),
    ],
)
def test_what_was_done_before_a_refusal_is_undone(
    sale: Sale, card: str, address: str, asked: list[str], events: list[str], steps: list[str]
) -> None:
    order = sale.order(card, address)
    saga = sale.saga(services=Asking)
    sale.drive(saga)
    assert asked_by(saga) == asked
    assert sale.state(order) == "compensated"
    assert sale.events(order) == [*COMPLETED[: len(asked) // 2 + 1], "failed", *events]
    assert sale.steps(order) == steps
    assert "done" not in sale.deeds(order).values()
    assert sale.live()["product"]["available"] == sale.settings.stock


def test_the_last_step_is_undone_first(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order()
    saga = sale.saga(services=NoLetters)
    sale.drive(saga)
    assert asked_by(saga) == ["pay", "ship", "notify", "unship", "unpay"]
    assert sale.events(order) == ["placed", "paid", "shipped", "failed", "recalled", "refunded", "compensated"]
    assert sale.steps(order) == ["undone", "undone", "undone", "refused"]


def test_a_lost_answer_is_asked_for_again(sale: Sale) -> None:
    order = sale.order("lost-reply")
    sale.drive()
    assert sale.deeds(order) == DONE
    assert sale.events(order) == COMPLETED


def test_a_refund_that_fails_is_seen_and_tried_again(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order("refund-fails", "nowhere")
    saga = sale.saga(backoff=1000.0, longest=1000.0)
    for failed in (1, 2):
        sale.drive(saga)
        assert sale.state(order) == "compensating"
        (stuck,) = sale.live()["stuck"]
        assert stuck.pop("next_try_in") > 0
        assert stuck == {"order": order, "step": "pay", "failed": failed, "error": "pay: refunds are down"}
        sale.make_due()
    sale.drive(saga)
    assert sale.live()["stuck"] == []
    assert sale.deeds(order) == {"charges": "undone"}
    assert sale.breaches(monkeypatch) == []


def test_a_refund_is_tried_however_often_it_has_failed(sale: Sale) -> None:
    sale.order("refund-fails", "nowhere")
    saga = sale.saga(backoff=1000.0, longest=1000.0)
    sale.drive(saga)
    sale.make_due(attempts=5000)
    sale.drive(saga)
    (stuck,) = sale.live()["stuck"]
    assert stuck["failed"] == 5001
    assert stuck["next_try_in"] > 0


def test_what_failed_to_be_undone_is_seen_and_nothing_else(sale: Sale) -> None:
    """Not that it could not be done, before; not a try that runs; but one that ended as nobody has thought of."""
    seen: list[list[tuple[str, int, str]]] = []
    faults = iter([Unavailable("ship: down"), None, ValueError("pay: too much"), None])

    class Watching(Services):
        def do(self, step: Any) -> None:
            if step.name == "ship":
                raise Unavailable("ship: no answer")
            super().do(step)

        def undo(self, step: Any) -> None:
            seen.append([(each["step"], each["failed"], each["error"]) for each in sale.live()["stuck"]])
            if fault := next(faults):
                raise fault
            super().undo(step)

    order = sale.order()
    saga = sale.saga(services=Watching, attempts=1)
    with pytest.raises(ValueError, match="too much"):
        sale.drive(saga)
    sale.drive(saga)
    assert seen == [[], [("ship", 1, "ship: down")], [], [("pay", 1, None)]]
    assert sale.live()["stuck"] == []
    assert sale.state(order) == "compensated"


@pytest.mark.parametrize("kind", [Deaf, DeafOnce], ids=["never-heard", "then-refused"])
def test_what_may_have_been_done_is_undone_and_cannot_be_done_later(
    sale: Sale, kind: type[Services], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = sale.order()
    stopped = sale.saga()
    stopped_at: list[Any] = []
    saga = sale.saga(services=kind, attempts=2)
    begin = saga.begin

    def note(step: Any, lease: Lease) -> None:
        stopped_at.append(step)
        begin(step, lease)

    monkeypatch.setattr(saga, "begin", note)
    sale.drive(saga)
    assert sale.events(order) == ["placed", "paid", "failed", "recalled", "refunded", "compensated"]
    assert sale.deeds(order) == {"charges": "undone", "parcels": "undone"}
    for step in stopped_at[:2]:
        with pytest.raises(Refused):
            stopped._services.do(step)
    assert sale.deeds(order) == {"charges": "undone", "parcels": "undone"}
    assert sale.breaches(monkeypatch) == []


def test_a_request_that_comes_after_its_undoing_is_refused(sale: Sale) -> None:
    """A worker was stopped before it asked; another one asked in its place, was refused, and went back."""
    order = sale.order()
    stopped, step, _ = begun(sale, order)

    class NoMoney(Services):
        def do(self, step: Any) -> None:
            raise Refused("pay: no money today")

    sale.drive(sale.saga(services=NoMoney))
    assert sale.state(order) == "compensated"
    with pytest.raises(Refused):
        stopped._services.do(step)
    assert sale.deeds(order) == {"charges": "undone"}


def test_services_that_are_down_are_asked_until_they_are_up(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order()
    with bind_free_port() as bound:  # nobody listens
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        lost = sale.saga(services=lambda ours: Services(replace(ours, services=url)), backoff=1000.0, longest=1000.0)
        for _ in range(sale.settings.attempts):
            sale.drive(lost)
            sale.make_due()
    assert sale.state(order) == "compensating"
    assert sale.live()["stuck"][0]["step"] == "pay"
    sale.drive()
    assert sale.events(order) == ["placed", "failed", "refunded", "compensated"]
    assert sale.breaches(monkeypatch) == []


class Deaths:
    """Before each transaction, each commit, and before and after each request; the worker dies at one of them."""

    def __init__(self, sale: Sale) -> None:
        self._before: int | None = None
        for name in ("begin", "commit"):
            event.listen(sale.engine, name, self.point)

    def point(self, *_: object) -> None:
        if self._before is None:
            return
        self._before -= 1
        if self._before < 0:
            self._before = None
            raise Killed

    def dies(self, work: Callable[[], None], after: int) -> bool:
        """Whether it died, of what comes after so many."""
        self._before = after
        try:
            with suppress(Killed):
                work()
            return self._before is None
        finally:
            self._before = None

    def services(self) -> type[Services]:
        deaths = self

        class Mortal(Services):
            def _ask(self, *args: Any, **request: Any) -> None:
                deaths.point()
                try:
                    super()._ask(*args, **request)
                finally:
                    deaths.point()

        return Mortal


@pytest.mark.parametrize(
    ("card", "address", "end"),
    [
        ("lost-reply", "home", "completed"),
        ("refund-fails", "nowhere", "compensated"),
    ],
)
def test_others_go_on_wherever_a_worker_dies(
    sale: Sale, monkeypatch: pytest.MonkeyPatch, card: str, address: str, end: str
) -> None:
    deaths = Deaths(sale)
    doomed, heir = sale.saga(services=deaths.services()), sale.saga()
    for point in count():
        order = sale.order(card, address)
        died = deaths.dies(lambda order=order: doomed.advance(order), point)  # type: ignore[misc]
        sale.drive(heir)
        assert sale.state(order) == end, point
        if end == "completed":
            assert (sale.events(order), sale.deeds(order)) == (COMPLETED, DONE), point
        if not died:
            break
    assert point > 15
    assert sale.breaches(monkeypatch) == []


def test_one_worker_drives_an_order_and_the_other_leaves(sale: Sale) -> None:
    order = sale.order()
    asked, answer = Event(), Event()

    class Slow(Asking):
        def do(self, step: Any) -> None:
            asked.set()
            assert answer.wait(60)
            super().do(step)

    first, second = sale.saga(services=Slow), sale.saga(services=Asking)
    with ThreadPoolExecutor(1) as other:
        driving = other.submit(first.advance, order)
        assert asked.wait(60)
        assert second.overdue() == [order], "it looks as if nobody were at it"
        second.advance(order)
        answer.set()
        driving.result(60)
    assert asked_by(second) == []
    assert sale.events(order) == COMPLETED


class Scans:
    """In the place of a worker's pool and pauses: what was found in a scan is driven when the next is to begin."""

    def __init__(self) -> None:
        self._found: list[tuple[Future[None], Callable[[], None]]] = []
        self.number = 0

    def __enter__(self) -> Scans:
        return self

    def __exit__(self, *_: object) -> None:
        """All is done."""

    def submit(self, drive: Callable[..., None], *about: Any) -> Future[None]:
        future: Future[None] = Future()
        self._found.append((future, partial(drive, *about)))
        return future

    def end(self) -> None:
        self.number += 1
        while self._found:
            future, drive = self._found.pop()
            future.set_result(drive())


def test_orders_that_others_are_at_are_in_nobodys_way(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are overdue for longest, and as many as a worker takes at once."""
    monkeypatch.setattr(worker, "THREADS", 2)
    scans, other, saga = Scans(), sale.saga(), sale.saga()
    for _ in range(worker.THREADS):
        sale.held(other.lock(sale.order()))
    behind = sale.order()

    def pause(seconds: float) -> None:
        scans.end()
        if sale.state(behind) == "completed":
            raise Killed
        assert scans.number < 100, "it has never been looked at"

    monkeypatch.setattr(worker, "ThreadPoolExecutor", lambda threads: scans)
    monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(worker, "Saga", lambda *_: saga)
    with pytest.raises(Killed):
        worker.drive_orders(sale.engine, sale.locks, sale.settings)


def test_many_threads_share_few_connections(sale: Sale, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [sale.order("good", ("home", "nowhere")[number % 2]) for number in range(16)]
    saga = sale.saga()
    at_once(16, lambda number: saga.advance(orders[number]))
    assert sale.live()["orders"] == {"placed": 0, "completed": 8, "compensating": 0, "compensated": 8}
    assert sale.breaches(monkeypatch) == []


@pytest.mark.parametrize("how", ["begin", "record", "turn back", "try again"])
def test_who_comes_back_too_late_writes_nothing(sale: Sale, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = sale.order()
    late, step, lease = begun(sale, order)
    sale.drive()
    lease.ensure_held()  # so it believes
    error = Unavailable("no answer")
    writes: dict[str, Callable[[], None]] = {
        "begin": lambda: late.begin(step, lease),
        "record": lambda: late.record(step, lease),
        "turn back": lambda: late.turn_back(step, lease, error, undo_from=0),
        "try again": lambda: late.undo_later(step, lease, error),
    }
    with pytest.raises(StaleToken):
        writes[how]()
    assert sale.state(order) == "completed"
    assert sale.events(order) == COMPLETED
    assert sale.saga().overdue() == []
    assert sale.breaches(monkeypatch) == []


@pytest.mark.parametrize("card", ["good", "declined"])
def test_who_comes_back_when_another_has_only_looked_writes_nothing(
    sale: Sale, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what that one has seen would be true no more: a step would be done, and its event told, twice."""
    order = sale.order(card)
    late, late_step, late_lease = begun(sale, order)
    refused: list[str] = []

    class Looking(Saga):
        def begin(self, step: Any, lease: Lease) -> None:
            if not refused:
                with pytest.raises(StaleToken):
                    late.record(late_step, late_lease)
                refused.append(step.name)
            super().begin(step, lease)

    sale.saga(kind=Looking).advance(order)
    assert refused == ["pay"]
    sale.drive()
    assert sale.state(order) == ("completed" if card == "good" else "compensated")
    assert sale.breaches(monkeypatch) == []
