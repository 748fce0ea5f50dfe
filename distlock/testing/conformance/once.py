"""Work that is to be done once, for stores that keep results."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import anyio
import pytest

from ... import (
    BackendUnavailable,
    IdempotencyMismatch,
    InProgress,
    LockLost,
    Manager,
    NotHeld,
    ReplayedError,
    ResultUnavailable,
    TooLarge,
)
from ..colours import World, async_case, case
from .cancelling import at_every_step

__all__ = ("OnceConformance",)

_TTL = 600.0
"""Seconds: no result is over before the test is."""


class _Declined(Exception):
    """The outcome of a payment, as good as any other."""


class _Clerk:
    """Does a work, and counts how often."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runs = 0

    async def do(self, key: str = "k", result: Any = "done", *, locks: Manager | None = None, **terms: Any) -> Any:
        """What whoever wants it done gets."""
        once = (locks or self._world.locks).once(key, ttl=terms.pop("ttl", _TTL), **terms)
        async with self._world.block(once) as work:
            if work.replayed:
                return work.result
            self.runs += 1
            if isinstance(result, BaseException):
                raise result
            return await self._world.complete(work, result)


class OnceConformance:
    """Subclass it, with a fixture ``store`` that gives a `distlock.testing.Store`."""

    @case
    async def test_what_was_done_is_replayed(self, world: World) -> None:
        clerk = _Clerk(world)
        assert await clerk.do(result={"id": 7}) == {"id": 7}
        async with world.block(world.other.once("k", ttl=_TTL)) as work:
            assert work.replayed
            assert work.result == {"id": 7}
            assert work.operation.state == "completed"
            assert work.operation.by.pid
            assert work.operation.took >= 0
            expires_in = work.operation.expires_in
            assert expires_in is None or 0 < expires_in <= _TTL  # None: that would have been one more request
            with pytest.raises(NotHeld, match="before"):
                work.lease  # noqa: B018
        assert clerk.runs == 1

    @case
    async def test_nothing_is_a_result_too(self, world: World) -> None:
        """aws-powertools/powertools-lambda-python took a falsy result for none."""
        nothing: tuple[Any, ...] = (None, 0, "", [], {}, False)
        for number, result in enumerate(nothing):
            clerk = _Clerk(world)
            first = await clerk.do(f"k{number}", result)
            again = await clerk.do(f"k{number}", "other", locks=world.other)
            assert (first, again) == (result, result)
            assert clerk.runs == 1

    @case
    async def test_those_who_come_meanwhile_wait_for_the_result(self, world: World) -> None:
        clerk = _Clerk(world)
        async with world.block(world.locks.once("k", ttl=_TTL)) as work:
            assert not work.replayed
            tasks = [
                world.start(lambda locks=locks: clerk.do(locks=locks))  # type: ignore[misc]
                for locks in (world.locks, world.other, world.other)
            ]
            await world.until(lambda: len(world.other.results.get("k").waiters) >= 2)  # type: ignore[union-attr]
            assert not any(task.done for task in tasks)
            await world.complete(work, [1, 2])
        assert [await task.result() for task in tasks] == [[1, 2]] * 3
        assert clerk.runs == 0

    @case
    async def test_duplicates_are_done_once(self, world: World) -> None:
        clerk = _Clerk(world)

        async def ask(number: int) -> Any:
            return await clerk.do(result=number, locks=world.locks if number % 2 else world.other, fingerprint="same")

        tasks = [world.start(lambda number=number: ask(number)) for number in range(16)]  # type: ignore[misc]
        answers = [await task.result() for task in tasks]
        assert clerk.runs == 1
        assert len(set(answers)) == 1

    @case
    async def test_what_is_in_progress_is_waited_for_no_longer_than_asked(self, world: World) -> None:
        clerk = _Clerk(world)
        async with world.block(world.locks.once("k", ttl=_TTL, metadata={"request": "r1"})) as work:
            with pytest.raises(InProgress, match="in progress"):
                await clerk.do(locks=world.other, timeout=0)
            with pytest.raises(InProgress, match=r"not done in 0\.2 s") as caught:
                await clerk.do(locks=world.other, timeout=0.2)
            assert caught.value.key == "k"
            holder = caught.value.holder
            assert holder is None or holder.metadata["request"] == "r1"
            found = await world.aside(lambda: world.other.results.get("k"))
            assert (found.state, found.token, found.waiters) == ("in progress", work.lease.token, ())
            await world.complete(work)
        assert clerk.runs == 0

    @case
    async def test_another_request_under_the_key_is_refused(self, world: World) -> None:
        clerk = _Clerk(world)
        async with world.block(world.locks.once("k", ttl=_TTL, fingerprint={"a": 1, "b": 2})) as work:
            with pytest.raises(IdempotencyMismatch, match="another request"):
                await clerk.do(locks=world.other, fingerprint={"a": 1, "b": 3})
            with pytest.raises(IdempotencyMismatch):
                await clerk.do(locks=world.other, fingerprint={"a": 1, "b": 3}, timeout=0)
            await world.complete(work, "first")
        with pytest.raises(IdempotencyMismatch):
            await clerk.do(locks=world.other, fingerprint={"a": 1, "b": 3})
        # The same in another order is the same (powertools-lambda-python#639).
        assert await clerk.do(locks=world.other, fingerprint={"b": 2, "a": 1}) == "first"
        assert clerk.runs == 0

    @case
    async def test_what_is_shown_of_a_request_is_what_it_said_of_itself(self, world: World) -> None:
        said = {"request": "r1"}
        async with world.block(world.locks.once("k", ttl=_TTL, fingerprint=1, metadata=said)) as work:
            found = await world.aside(lambda: world.other.results.get("k"))
            assert found.by.metadata == said
            await world.complete(work)
            assert work.operation.by.metadata == said
        found = await world.aside(lambda: world.other.results.get("k"))
        assert found.by.metadata == said
        assert found.fingerprint == work.operation.fingerprint is not None

    @case
    async def test_work_that_failed_is_done_again(self, world: World) -> None:
        clerk = _Clerk(world)
        for error in (ValueError("no"), KeyboardInterrupt(), SystemExit(3)):
            with pytest.raises(type(error)):
                await clerk.do(result=error)
        assert await clerk.do(result="yes", locks=world.other, timeout=0) == "yes"
        assert clerk.runs == 4

    @case
    async def test_whoever_waits_takes_over_from_work_that_failed(self, world: World) -> None:
        clerk = _Clerk(world)
        tasks = []
        with pytest.raises(ValueError, match="no"):
            async with world.block(world.locks.once("k", ttl=_TTL)):
                tasks.append(world.start(lambda: clerk.do(locks=world.other)))
                await world.until(lambda: len(world.other.results.get("k").waiters) == 1)  # type: ignore[union-attr]
                raise ValueError("no")
        assert await tasks[0].result() == "done"
        assert clerk.runs == 1

    @case
    async def test_an_error_that_was_to_be_kept_is_replayed(self, world: World) -> None:
        clerk = _Clerk(world)
        with pytest.raises(_Declined, match="no money"):
            await clerk.do(result=_Declined("no money"), store_errors=_Declined)
        with pytest.raises(ReplayedError, match="no money") as caught:
            await clerk.do(store_errors=_Declined)
        assert caught.value.type.endswith("_Declined")
        assert caught.value.message == "no money"
        assert clerk.runs == 1
        with pytest.raises(KeyError):  # of another kind
            await clerk.do("other", KeyError("x"), store_errors=_Declined)
        assert await clerk.do("other", store_errors=_Declined) == "done"

    @async_case
    async def test_cancelled_work_is_done_again(self, world: World) -> None:
        clerk = _Clerk(world)

        async def work() -> None:
            async with world.block(world.locks.once("k", ttl=_TTL)):
                clerk.runs += 1
                await world.sleep(60)

        task = world.start(work)
        await world.until(lambda: clerk.runs)
        await task.cancel()
        assert await clerk.do(locks=world.other, timeout=0) == "done"

    @async_case
    async def test_work_that_is_cancelled_anywhere_is_done_or_free(self, world: World) -> None:
        """At each of its steps: never in progress with nobody at it, nor done without a record."""
        for number, cancelled in enumerate(at_every_step()):
            clerk, key = _Clerk(world), f"k{number}"
            await cancelled(lambda clerk=clerk, key=key: clerk.do(key, "first"))  # type: ignore[misc]
            expected = "first" if clerk.runs else "second"
            assert await clerk.do(key, "second", locks=world.other, timeout=20) == expected
            assert await clerk.do(key, "third", timeout=20) == expected

    @case
    async def test_a_superseded_worker_does_not_overwrite_the_result(self, world: World) -> None:
        clerk = _Clerk(world)

        async def succeed() -> Any:
            while True:
                with suppress(LockLost):  # its own lease, which a busy machine lets end
                    return await clerk.do(result="second", locks=world.other)

        with pytest.raises(LockLost):
            async with world.block(world.locks.once("k", ttl=_TTL, lease=3)) as work:
                results = await world.aside(world.other.results_manager)
                assert await world.force_release(results, "k", work.lease.token)
                second = world.start(succeed)
                # Else an event loop would end the body as soon as the loss is known.
                with anyio.CancelScope(shield=True) if world.is_async else nullcontext():
                    assert await second.result() == "second"
                    await world.complete(work, "first")
        assert await _Clerk(world).do() == "second"

    @case
    async def test_a_worker_whose_claim_was_taken_away_keeps_no_result(self, world: World) -> None:
        with pytest.raises(LockLost):
            async with world.block(world.locks.once("k", ttl=_TTL)) as work:
                results = await world.aside(world.other.results_manager)
                assert await world.force_release(results, "k", work.lease.token)
                await world.complete(work, "first")
        assert await world.aside(lambda: world.locks.results.get("k")) is None

    @case
    async def test_work_is_completed_once(self, world: World) -> None:
        async with world.block(world.locks.once("k", ttl=_TTL)) as work:
            with pytest.raises(NotHeld, match="not done yet"):
                work.result  # noqa: B018
            assert await world.complete(work, 1) == 1
            with pytest.raises(NotHeld, match="already"):
                await world.complete(work, 2)
            assert work.result == 1
        assert await _Clerk(world).do() == 1

    @case
    async def test_work_whose_result_cannot_be_kept_is_not_done_again(self, world: World) -> None:
        """The work has been done, whatever became of what it gave."""
        for key, result, limit in (("a", {1, 2}, 100), ("b", "long" * 100, 100)):
            clerk = _Clerk(world)
            with pytest.raises(ResultUnavailable, match="is not kept") as caught:
                await clerk.do(key, result, limit=limit)
            assert caught.value.result == result
            with pytest.raises(ResultUnavailable, match="not kept"):
                await clerk.do(key, locks=world.other)
            assert clerk.runs == 1

    @case
    async def test_what_was_done_is_kept_even_if_the_store_was_away_just_then(self, world: World) -> None:
        for key, fault in (("down", "down"), ("cut", "cut")):
            locks, tap = await world.tap_results()
            clerk = _Clerk(world)
            moment = tap.before if fault == "down" else tap.after
            moment["complete"] = tap.once(getattr(tap, fault), 2)
            with pytest.raises(ResultUnavailable, match="in the background") as caught:
                await clerk.do(key, "paid", locks=locks)
            assert caught.value.result == "paid"
            assert isinstance(caught.value.__cause__, BackendUnavailable)
            assert await clerk.do(key, "again", locks=world.other) == "paid"
            assert clerk.runs == 1

    @case
    async def test_work_whose_result_the_store_refuses_is_not_done_again(self, world: World) -> None:
        locks, tap = await world.tap_results()

        def refuse() -> None:
            raise TooLarge("too large")

        tap.before["complete"] = tap.once(refuse, 2)  # it is tried twice
        clerk = _Clerk(world)
        with pytest.raises(ResultUnavailable, match="too large") as caught:
            await clerk.do("k", "paid", locks=locks)
        assert caught.value.result == "paid"
        with pytest.raises(ResultUnavailable, match="too large"):
            await clerk.do("k", "again", locks=world.other)
        assert clerk.runs == 1

    @case
    async def test_what_is_not_stored_yet_is_tried_once_more_when_its_manager_closes(self, world: World) -> None:
        locks, tap = await world.tap_results()
        tap.before["complete"] = tap.down
        with pytest.raises(ResultUnavailable, match="in the background"):
            await _Clerk(world).do("k", "paid", locks=locks)
        await world.until(lambda: tap.calls["complete"] > 1)
        tap.before["complete"] = lambda: None
        await world.aside(locks.close)
        assert await _Clerk(world).do("k", "again", locks=world.other, timeout=0) == "paid"

    @case
    async def test_a_claim_whose_reply_was_lost_is_found(self, world: World) -> None:
        locks, tap = await world.tap_results()
        tap.after["acquire"] = tap.once(tap.cut)
        clerk = _Clerk(world)
        assert await clerk.do(locks=locks) == "done"
        tap.after["acquire"] = tap.once(tap.cut)
        assert await clerk.do(locks=locks) == "done"
        assert clerk.runs == 1

    @case
    async def test_the_first_costs_two_requests_and_a_replay_one(self, world: World) -> None:
        locks, tap = await world.tap_results()
        await _Clerk(world).do(locks=locks)
        assert (tap.calls["acquire"], tap.calls["complete"], tap.calls["release"]) == (1, 1, 0)
        await _Clerk(world).do(locks=locks, fingerprint="f")
        assert (tap.calls["acquire"], tap.calls["complete"], sum(tap.calls.values())) == (2, 1, 3)

    @case
    async def test_a_result_ends_with_its_ttl(self, world: World) -> None:
        clerk = _Clerk(world)
        await clerk.do(ttl=1)
        await world.until(lambda: world.other.results.get("k") is None)
        assert list(await world.aside(world.other.results.list)) == []
        await clerk.do(ttl=_TTL)
        assert clerk.runs == 2

    @case
    async def test_how_long_a_result_is_kept_may_be_known_at_its_end_only(self, world: World) -> None:
        async with world.block(world.locks.once("k", ttl=_TTL)) as work:
            with pytest.raises(ValueError, match="ttl"):
                await world.complete(work, ttl=0)
            await world.complete(work, ttl=2 * _TTL)
        found = await world.aside(lambda: world.other.results.get("k"))
        assert _TTL < found.expires_in <= 2.2 * _TTL  # a store may keep it for a little longer

    @case
    async def test_what_is_forgotten_is_done_again(self, world: World) -> None:
        clerk = _Clerk(world)
        results = world.other.results
        assert not await world.aside(lambda: results.forget("k"))
        await clerk.do()
        assert await world.aside(lambda: results.forget("k"))
        await clerk.do()
        assert clerk.runs == 2
        async with world.block(world.locks.once("busy", ttl=_TTL)) as work:
            assert not await world.aside(lambda: results.forget("busy"))
            work.lease.ensure_held()
            await world.complete(work)

    @case
    async def test_all_of_it_is_listed(self, world: World) -> None:
        clerk = _Clerk(world)
        await clerk.do("pay:1", fingerprint=1)
        await clerk.do("ship:1")
        with pytest.raises(_Declined):
            await clerk.do("pay:2", _Declined("no"), store_errors=_Declined)
        async with world.block(world.locks.once("pay:3", ttl=_TTL)) as work:
            found = await world.aside(lambda: world.other.results.list("pay:"))
            states = {each.key: each.state for each in found}
            assert states == {"pay:1": "completed", "pay:2": "failed", "pay:3": "in progress"}
            await world.complete(work)
        if world.is_async:
            assert (await world.other.results.get_async("pay:1")).fingerprint  # type: ignore[union-attr]
            assert len(await world.other.results.list_async()) == 4
            assert await world.other.results.forget_async("pay:1")

    @case
    async def test_any_name_is_a_key_of_its_own(self, world: World) -> None:
        names = ["{}", "{", "}", "a:b", "a", "ab", "a/b", " ", "\0", "a\nb", "🔒", "x" * 512, "a}:r", "a}:q", "*", "?"]
        for name in names:
            await _Clerk(world).do(name, name)
        for name in names:
            assert await _Clerk(world).do(name, "other", locks=world.other) == name
        found = await world.aside(world.locks.results.list)
        assert sorted(each.key for each in found) == sorted(names)

    @case
    async def test_a_lock_of_the_same_name_is_another_thing(self, world: World) -> None:
        async with world.block(world.locks.lock("k", timeout=0)):
            assert await _Clerk(world).do("k", timeout=0) == "done"
            assert [each.key for each in await world.list()] == ["k"]
            assert [each.state for each in await world.aside(world.locks.results.list)] == ["completed"]
        async with world.block(world.other.lock("k", timeout=0)):
            pass

    @case
    async def test_tokens_rise(self, world: World) -> None:
        tokens = []
        for locks in (world.locks, world.other, world.locks):
            with pytest.raises(ValueError, match="no"):
                async with world.block(locks.once("k", ttl=_TTL)) as work:
                    tokens.append(work.lease.token)
                    raise ValueError("no")
        assert tokens == sorted(set(tokens))

    @case
    async def test_nothing_is_left_of_what_was_forgotten(self, world: World) -> None:
        clerk = _Clerk(world)
        async with world.block(world.locks.once("k", ttl=_TTL)) as work:
            with pytest.raises(InProgress):
                await clerk.do(locks=world.other, timeout=0.1)
            await world.complete(work)
        await clerk.do(locks=world.other)
        assert await world.aside(lambda: world.locks.results.forget("k"))
        await world.until(lambda: not list(world.other.results.list()))
        await world.until(lambda: not world.store.left())
