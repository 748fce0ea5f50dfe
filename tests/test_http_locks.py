"""One request at a time for each resource."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import distlock

from .http_tools import KINDS, Asked, Given, Shop
from .programs import wait_until

pytestmark = pytest.mark.may_block


@pytest.fixture(params=KINDS)
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    with Shop(request.param) as shop:
        yield shop


def path_of(scope: Any) -> str | None:
    path = str(scope.get("path") or scope.get("PATH_INFO"))
    return None if path == "/free" else path


class Gate:
    """A handler that stands still until it is let go."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self, asked: Asked) -> Given:
        if asked.path == "/pay" and not self.begun.is_set():
            self.begun.set()
            assert self.end.wait(30)
        return Given()


@pytest.mark.parametrize(("status", "title"), [(423, "Locked"), (429, "Too Many Requests"), (599, "Unknown")])
def test_one_request_at_a_time_is_carried_out(shop: Shop, status: int, title: str) -> None:
    shop.handler = gate = Gate()
    shop.lock(path_of, status=status)
    first = shop.start()
    assert gate.begun.wait(30)
    busy = shop.ask()
    assert (busy.status_code, busy.headers["retry-after"]) == (status, "1")
    assert (busy.json()["type"], busy.json()["title"]) == ("about:blank", title)
    assert shop.ask(path="/other").status_code == shop.ask(path="/free").status_code == 201
    gate.end.set()
    assert first.result().status_code == 201
    assert shop.ask().status_code == 201
    assert shop.locks.list() == ()


def test_a_retry_of_who_found_it_busy_is_carried_out(shop: Shop) -> None:
    """Where requests are done once, and one at a time: that somebody was busy is no outcome."""
    shop.lock(path_of)
    shop.protect(over=True)
    with shop.locks.lock("/pay"):
        assert shop.ask().status_code == 423
    assert shop.ask().status_code == 201
    assert len(shop.asked) == 1


def test_others_wait_if_told(shop: Shop) -> None:
    shop.handler = gate = Gate()
    shop.lock(path_of, timeout=30)
    first = shop.start()
    assert gate.begun.wait(30)
    second = shop.start()
    wait_until(lambda: shop.locks.inspect("/pay").waiters, "the second request")
    gate.end.set()
    assert first.result().status_code == second.result().status_code == 201
    assert len(shop.asked) == 2


def test_a_response_that_streams_keeps_the_lock(shop: Shop) -> None:
    held: list[bool] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            held.append(shop.locks.inspect("/pay").holder is not None)
            yield b"x"

    shop.handler = lambda asked: Given(chunks=chunks())
    shop.lock(path_of)
    assert shop.ask().content == b"xxx"
    assert held == [True] * 3
    assert shop.locks.list() == ()


@pytest.mark.parametrize("late", [True, False], ids=["in the response", "before it"])
def test_an_app_that_raises_gives_the_lock_back(shop: Shop, late: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    def handler(asked: Asked) -> Given:
        return Given(chunks=chunks()) if late else Given(status=1 // 0)

    shop.handler = handler
    shop.lock(path_of)
    with pytest.raises(ZeroDivisionError):
        shop.ask()
    assert shop.locks.list() == ()


@pytest.mark.parametrize("kind", [distlock.AcquireTimeout, distlock.LockLost, distlock.BackendUnavailable])
def test_errors_of_the_app_s_own_locks_are_the_app_s(shop: Shop, kind: type[distlock.DistLockError]) -> None:
    def handler(asked: Asked) -> Given:
        raise kind("x", key="other")

    shop.handler = handler
    shop.lock(path_of)
    with pytest.raises(kind):
        shop.ask()


def test_options_that_cannot_work_are_refused_when_it_is_made(shop: Shop) -> None:
    with pytest.raises(ValueError, match="ttl"):
        shop.lock(path_of, ttl=0)
