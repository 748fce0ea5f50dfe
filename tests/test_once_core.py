"""Work that is done once: what does not depend on the store."""

from __future__ import annotations

import enum
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import distlock
from distlock import ConfigurationError, IdempotencyMismatch, LockLost, ResultUnavailable
from distlock.idempotency import canonical
from distlock.testing import Store, World, case
from distlock.testing.colours import async_case

from .programs import wait_until

TTL = 600.0


@pytest.fixture
def store() -> Store:
    return Store(connect=lambda **_: distlock.connect("memory://once-core"), lose=lambda key: None)


@pytest.mark.may_block
class TestCompleting:
    @case
    async def test_a_claim_that_runs_out_before_the_outcome_is_known_is_lost_and_withdrawn(self, world: World) -> None:
        """Nothing goes on in the background then, and nobody is told so."""
        locks, tap = await world.tap_results()
        works: list[Any] = []

        def runs_out() -> None:
            works[0].lease._hold.lose("its time was over")
            tap.down()

        tap.before["complete"] = runs_out
        with pytest.raises(LockLost, match="its time was over"):
            await self.completed(world, locks, works)
        async with world.block(locks.once("runs out", ttl=TTL, timeout=30)) as work:
            assert not work.replayed

    async def completed(self, world: World, locks: distlock.Manager, works: list[Any]) -> None:
        async with world.block(locks.once("runs out", ttl=TTL)) as work:
            works.append(work)
            await world.complete(work, "paid")

    @async_case
    async def test_a_loss_after_the_outcome_was_given_cuts_nothing_short(self, world: World) -> None:
        locks, tap = await world.tap_results()
        tap.before["complete"] = tap.down
        after = False
        async with world.block(locks.once("cut", ttl=TTL)) as work:
            with pytest.raises(ResultUnavailable):
                await world.complete(work, "paid")
            work.lease._hold.lose("its time was over")
            await world.sleep(0.01)
            after = True
        assert after

    @case
    async def test_the_log_says_what_became_of_it(self, world: World) -> None:
        locks, tap = await world.tap_results()
        tap.before["complete"] = tap.once(tap.down)
        with decided() as decisions:
            async with world.block(locks.once(f"log {world.name}", ttl=TTL)) as work:
                with pytest.raises(ResultUnavailable):
                    await world.complete(work, "paid")
            await world.until(lambda: len(decisions) == 3)
        assert sorted(decisions) == ["claimed", "completed", "not stored yet"]  # the last two by two threads


@contextmanager
def decided() -> Iterator[list[str]]:
    """What the log says meanwhile."""
    decisions: list[str] = []
    log, handler = logging.getLogger("distlock.idempotency"), logging.Handler()
    handler.emit = lambda record: decisions.append(record.distlock["decision"])  # type: ignore[attr-defined, method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield decisions
    log.setLevel(logging.NOTSET)
    log.removeHandler(handler)


class Words:
    """A serializer that does not keep to its protocol."""

    def __init__(self, dumps: Any) -> None:
        self._dumps = dumps

    def dumps(self, result: Any) -> bytes:
        return self._dumps(result)  # type: ignore[no-any-return]

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


@pytest.mark.parametrize("dumps", [json.dumps, lambda result: None], ids=["str", "None"])
def test_work_whose_serializer_gives_no_bytes_is_not_done_again(dumps: Any) -> None:
    runs = []
    with distlock.connect("memory://") as locks:

        @locks.idempotent("k", ttl=TTL, serializer=Words(dumps))
        def pay() -> str:
            runs.append(1)
            return "paid"

        for _ in range(2):
            with pytest.raises(ResultUnavailable):
                pay()
    assert runs == [1]


def test_who_completed_it_knows_when() -> None:
    with distlock.connect("memory://") as locks, locks.once("k", ttl=TTL) as work:
        work.complete()
        assert work.operation is not None
        assert work.operation.began_at
        assert work.operation.took is not None
        assert work.operation.expires_in == TTL


def test_a_function_whose_name_others_have_too_needs_a_template() -> None:
    """aws-powertools/powertools-lambda-python#1535"""

    def run(order: int) -> int:
        return order

    main: Any = lambda order: order  # noqa: E731
    main.__qualname__, main.__module__ = "main", "__main__"
    with distlock.connect("memory://") as locks:
        for function in (run, main, lambda order: order):
            with pytest.raises(ConfigurationError, match="give a template"):
                locks.idempotent(ttl=TTL)(function)
            assert locks.idempotent(f"{id(function)}:{{order}}", ttl=TTL)(function)(7) == 7


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


def test_flags_together_are_told_apart_on_every_python() -> None:
    assert canonical(Access.READ | Access.WRITE) != canonical(Access.READ | Access.RUN)
    assert '":3}' in canonical(Access.READ | Access.WRITE)


def test_no_fingerprint_at_all_is_another_one_than_any() -> None:
    with distlock.connect("memory://") as locks:

        @locks.idempotent("pay:{order}", ttl=TTL, fingerprint=lambda order, cents=None: cents)
        def pay(order: int, cents: int | None = None) -> str:
            return f"paid {cents}"

        assert pay(1) == pay(1) == "paid None"
        with pytest.raises(IdempotencyMismatch):
            pay(1, 9900)


def test_what_is_given_is_not_changed_afterwards() -> None:
    metadata = {"request": "r1"}
    with distlock.connect("memory://") as locks:
        once = locks.once("k", ttl=TTL, metadata=metadata)
        metadata["request"] = 5  # type: ignore[assignment]
        with once as work:
            work.complete()
        wait_until(lambda: locks.results.get("k") is not None, "its record")
