"""The sale with everything going wrong at once, and without each of its protections."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from flash_sale import outbox
from flash_sale.running.console import ending_in_order, run
from flash_sale.services import database_of, metadata
from flash_sale.settings import Settings
from flash_sale.tables import reading
from flash_sale.trial import crowd
from flash_sale.trial.audit import Finding, read, reader, sent_once
from flash_sale.trial.commands import _paces
from flash_sale.trial.crowd import Crowd, crowd_of
from flash_sale.trial.faults import _First, happened
from flash_sale.trial.load import ALL_FAULTS, Report, _Sale, sale
from flash_sale.trial.without import PROTECTIONS

from .flash_sale_tools import Killed, Sale
from .postgres_servers import PostgresServer

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, str(ROOT / "docs" / "tutorials" / "flash_sale"))


class Broken(NamedTuple):
    """What a protection is for."""

    claim: str
    """That does not hold without it."""
    faults: tuple[str, ...] = ()
    """That it takes."""


WITHOUT = {
    "conditional-decrement": Broken("sold ≤ stock, and the rest is there"),
    "limit": Broken("no more than 2 for a customer"),
    "expiry": Broken("no reservation left hanging"),
    "idempotency-key": Broken("one order for each purchase, however often clicked"),
    "conditional-order": Broken("one order for each purchase, however often clicked", ("shop-dies",)),
    "lock": Broken("events of an order: each once, and in order"),
    "fence": Broken("tokens rise", ("saga-pauses",)),
    "step-id": Broken("one charge for each completed order, no other", ("saga-dies",)),
    "overdue": Broken("every order completed or compensated", ("saga-dies",)),
    "compensation-retry": Broken("one charge for each completed order, no other"),
    "outbox": Broken("events of an order: each once, and in order", ("write-dies",)),
    "election": Broken("one publisher: at most 0 events sent again"),
    "idempotent-consumer": Broken("events of an order: each once, and in order", ("publisher-dies",)),
}


def wrong(report: Report) -> dict[str, tuple[str, ...]]:
    return {finding.claim: finding.breaches for finding in report.breaches}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_books_are_right_whatever_happens(database: str) -> None:
    """Processes are killed in the middle, one is stopped for longer than its lease, and Redis restarts."""
    if database == "sqlite":
        report = sale(clients=60, stock=40, rush=3)
    else:
        with PostgresServer() as server:
            report = sale(clients=60, stock=40, rush=3, database=server.url)
    assert wrong(report) == {}
    assert set(report.happened) == set(ALL_FAULTS)
    assert report.purchases > 15


def test_who_reads_the_books_may_be_slow() -> None:
    """Slower than PostgreSQL allows the shop to be in a transaction."""
    with PostgresServer() as server, reader(server.url) as engine, reading(engine) as connection:
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "0"


def test_each_takeover_may_send_a_batch_again(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One publisher is killed when it has sent an event, and the next one when it has sent a batch; no more."""

    def die(*_: object) -> None:
        raise Killed

    def send_and_die(redis: Any, event: Any, entry: str) -> None:
        send(redis, event, entry)
        raise Killed

    send = outbox.send
    settings = Settings(database=f"sqlite:///{tmp_path}/shop.db", redis=redis_url, services="", folder=str(tmp_path))
    with ExitStack() as stack:
        shop = Sale(settings, stack)
        with reader(database_of(settings)) as services:
            metadata.create_all(services)
        for _ in range(outbox.BATCH + 2):
            shop.order()
        for death in ({"send": send_and_die}, {"note": die}):
            with monkeypatch.context() as patch, shop.elect("publisher") as lease:
                patch.setattr(outbox, *death.popitem())
                with pytest.raises(Killed):
                    shop.publish(monkeypatch, lease)
        shop.publish(monkeypatch)
        assert sent_once(read(settings, ())) == Finding("one publisher: at most 20 events sent again", "11 again", ())

        (last,) = shop.redis.xrevrange(outbox.STREAM, count=1)
        token, _, number = last[0].partition("-")
        for again in range(10):
            shop.redis.xadd(outbox.STREAM, last[1], id=f"{token}-{int(number) + 1 + again}")
        assert sent_once(read(settings, ())).breaches == ("21 were sent again",)


@pytest.mark.timeout(900)
def test_a_server_of_somebody_else_is_not_restarted(redis_url: str) -> None:
    report = sale(clients=10, stock=10, rush=0.5, redis=redis_url, faults=("redis-restarts",))
    assert wrong(report) == {}
    assert report.happened == []


def test_each_protection_has_its_row() -> None:
    assert list(WITHOUT) == list(PROTECTIONS)


def test_the_tutorial_tells_of_each_fault_and_protection() -> None:
    told = (ROOT / "docs" / "tutorials" / "flash-sale.md").read_text("utf-8")
    names = (*ALL_FAULTS, *PROTECTIONS)
    assert [name for name in names if not re.search(rf"^\| *`?{name}`? *\|", told, re.MULTILINE)] == []


@pytest.mark.timeout(2700)
def test_each_protection_is_needed() -> None:
    """In one test, so that no two sales share the processors: they are what the others of this run wait for."""
    unneeded = {}
    for protection, broken in WITHOUT.items():
        # Enough for everyone: whoever comes too late for a piece shows nothing.
        report = sale(clients=40, stock=80, rush=1, without=protection, faults=broken.faults)
        if broken.claim not in wrong(report):
            unneeded[protection] = (wrong(report), report.happened)
    assert unneeded == {}


def test_a_fault_waits_for_a_victim(tmp_path: Path) -> None:
    """All processes of a role may have just died of another fault."""

    class System:
        url = ""
        settings = Settings(database=f"sqlite:///{tmp_path}/x", redis="", services="", folder=str(tmp_path), stock=0)

        def __init__(self) -> None:
            self.asked: list[str] = []
            self.killed: list[int] = []

        def pids(self, role: str) -> list[int]:
            self.asked.append(role)
            return [] if self.asked.count(role) == 1 else [len(self.asked)]

        def kill(self, pid: int) -> None:
            self.killed.append(pid)

    system: Any = System()
    anyio.run(_Sale(system, clients=0, rush=0, faults=set(), tell=print)._kill)
    assert system.killed == [2, 4, 6]


def test_a_fault_that_dies_as_it_is_noted_may_happen_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them may strike in two threads of one process. One that is noted has the process and the order with it."""
    first = _First(str(tmp_path), "saga-pauses")

    def die() -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", die)
        with pytest.raises(Killed):
            first("order")
    assert happened(str(tmp_path), "saga-pauses") is None
    assert first("order")
    assert not first("another")
    assert happened(str(tmp_path), "saga-pauses") == (os.getpid(), "order")


@pytest.mark.timeout(900)
def test_a_breach_is_the_status() -> None:
    few = ("--clients", "10", "--stock", "20", "--rush", "0.5")  # for everyone, twice
    done = subprocess.run(
        [*COMMAND, "load", *few, "--without", "idempotency-key"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "2 orders of one purchase" in done.stdout


@pytest.mark.timeout(900)
def test_its_pace_is_measured() -> None:
    done = subprocess.run(
        [*COMMAND, "throughput", "--seconds", "1", "--clients", "4", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    assert [row[1].strip(" -") for row in table] == ["shop", "", "without distlock", "with it"]


def test_a_pace_of_nothing_has_no_ratio() -> None:
    """On a machine that is busy with other things nothing may be bought while it is measured."""
    assert _paces([8.0, 9.0], [0.0, 3.0]) == ("8 (8–9)", "3.00")
    assert _paces([0.0], [0.0]) == ("0 (0–0)", "–")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("x", "the database: Could not parse"),
        ("sqlite:////no/x.db", "the database: each sale gets a new one: give a URL of PostgreSQL"),
        ("postgresql+psycopg://user@127.0.0.1:port/x", "the database: invalid literal"),
        ("postgresql+psycopg://user@127.0.0.1:1/x", "the database: connection failed"),
    ],
)
@pytest.mark.parametrize("command", ["load", "throughput"])
def test_a_server_that_is_none_is_status_2(command: str, url: str, says: str) -> None:
    ended = subprocess.run([*COMMAND, command, "--database", url], capture_output=True, text=True, timeout=150)
    assert ended.returncode == 2
    *_, last = ended.stderr.splitlines()
    assert last.startswith(f"flash_sale: {says}")


@pytest.fixture
def status(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[object, str]]]:
    """The status of a command that does this, and what it says."""
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def of(work: Callable[[], Awaitable[None]]) -> tuple[object, str]:
        with pytest.raises(SystemExit) as caught, ending_in_order():
            run(work)
        return caught.value.code, capfd.readouterr().err

    yield of
    for each, handler in handlers.items():
        signal.signal(each, handler)


def test_a_shop_that_does_not_answer_is_no_breach(
    monkeypatch: pytest.MonkeyPatch, status: Callable[..., tuple[object, str]]
) -> None:
    monkeypatch.setattr(crowd, "PATIENCE", 0.0)
    code, said = status(Crowd("http://127.0.0.1:9", crowd_of(clients=2, rush=0, limit=2)).buy)  # where nobody is
    assert code == 2
    assert re.fullmatch(r"flash_sale: /reservations gave no answer in 0.0 s, but ConnectError.*\n", said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_crowd(number: signal.Signals, status: Callable[..., tuple[object, str]]) -> None:
    """It may come in any task's turn; nothing is told of it but that it has ended, and a second one changes nothing."""
    cancelled = []

    async def interrupted() -> None:
        signal.raise_signal(number)
        signal.raise_signal(number)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number)

    async def crowd() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(interrupted)

    assert status(crowd) == (130, "flash_sale: it has ended\n")
    assert cancelled == [number]
