"""The core alone: what needs no store, or one that misbehaves on command."""

from __future__ import annotations

import gc
import logging
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import distlock
from distlock import (
    AcquireTimeout,
    BackendError,
    BackendUnavailable,
    LeaseState,
    LockLost,
    Manager,
    NotHeld,
    Unsupported,
)
from distlock._core.drive import drive
from distlock._core.loops import Threaded
from distlock._core.watchdog import Watchdog
from distlock.backends.base import Busy, Claim, Grant, Subscription, Wake, now, proven_until
from distlock.backends.memory import MemoryBackend

from .programs import wait_until

PATIENCE = 20.0


@pytest.fixture
def locks() -> Iterator[Manager]:
    with distlock.connect("memory://") as manager:
        yield manager


class Moody(MemoryBackend):
    """A real backend whose answers a test may hold back, spoil or lose."""

    never_blocks = False

    def __init__(self) -> None:
        super().__init__("moody")
        self.renewals: list[int] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def acquire(self, claim: Claim, deadline: float) -> Any:
        return self._do("acquire", lambda: super(Moody, self).acquire(claim, deadline))

    def renew(self, grants: Sequence[Grant], deadline: float) -> Any:
        self.renewals.append(len(grants))
        return self._do("renew", lambda: super(Moody, self).renew(grants, deadline))

    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._do("withdraw", lambda: super(Moody, self).withdraw(claim, deadline, in_flight=in_flight))

    def release(self, grant: Grant, deadline: float) -> Any:
        return self._do("release", lambda: super(Moody, self).release(grant, deadline))

    def _do(self, name: str, call: Callable[[], Any]) -> Any:
        self.before.get(name, lambda: None)()
        outcome = call()
        self.after.get(name, lambda: None)()
        return outcome


def down() -> None:
    raise BackendUnavailable("the moody store is down", backend="moody", sent=True)


def settled(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


# Driving and adapting.


def test_a_coroutine_that_suspends_without_a_loop_is_a_bug_that_says_so() -> None:
    class Suspending:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def work() -> None:
        await Suspending()

    with pytest.raises(RuntimeError, match="suspended outside an event loop"):
        drive(work())


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_call_in_a_thread_cleans_up_after_itself(fails: bool) -> None:
    """The thread cannot be stopped; what it brings too late it gives back itself: its manager may be closed."""
    backend, asked, gate = Moody(), threading.Event(), threading.Event()
    withdrawn: list[str] = []
    backend.after["withdraw"] = lambda: withdrawn.append("k")
    if fails:
        backend.before["withdraw"] = lambda: 1 / 0
    given_up: list[Claim] = []

    def late() -> None:
        asked.set()
        gate.wait(PATIENCE)

    backend.before["acquire"] = late
    threaded = Threaded(backend, given_up.append)
    claim = Claim("late", "k", 30.0, False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(threaded.acquire, claim, now() + PATIENCE)
        await anyio.to_thread.run_sync(asked.wait, PATIENCE)
        tasks.cancel_scope.cancel()
    assert given_up == []
    gate.set()
    if fails:
        await anyio.to_thread.run_sync(lambda: settled(lambda: given_up == [claim]))
    else:
        await anyio.to_thread.run_sync(lambda: settled(lambda: withdrawn))
        assert given_up == []
        assert backend.inspect("k", now() + 5).holder is None


@pytest.mark.anyio
async def test_a_crowd_of_acquirers_does_not_keep_a_release_out() -> None:
    backend, gate = Moody(), threading.Event()
    locks = Manager(backend)
    lease = await locks.lock("mine").acquire_async()
    backend.before["acquire"] = lambda: gate.wait(PATIENCE)
    async with anyio.create_task_group() as tasks:
        for n in range(40):
            tasks.start_soon(locks.lock(f"k{n}").try_acquire_async)
        await anyio.sleep(0.05)
        with anyio.fail_after(PATIENCE / 2):
            await lease.release()
        gate.set()
        tasks.cancel_scope.cancel()
    await locks.aclose()


# Time.


def test_validity_counts_from_before_the_request() -> None:
    """DistributedLock (.NET): the reply took most of the ttl, and the lease was believed for a whole one."""
    backend = Moody()
    with Manager(backend) as locks:
        backend.after["acquire"] = lambda: time.sleep(0.8)
        lease = locks.lock("k", ttl=20.0, renew=False).acquire()
        assert lease.remaining() < 19.2
        lease.release()
        backend.after["acquire"] = lambda: time.sleep(0.3)
        late = locks.lock("late", ttl=0.2).acquire()
        assert late.state is LeaseState.LOST
        with pytest.raises(LockLost):
            late.ensure_held()
        with pytest.raises(LockLost), locks.lock("later", ttl=0.2):
            pytest.fail("the body was entered without the lock")


class Slow(Moody):
    """Its first answers come when the lease that they grant is over."""

    def __init__(self, slow: int = 1) -> None:
        super().__init__()
        self.slow = slow
        self.asked = self.watches = 0

    def acquire(self, claim: Claim, deadline: float) -> Any:
        self.asked += 1
        slow = self.asked <= self.slow
        outcome = super().acquire(claim, deadline)
        return outcome._replace(deadline=now()) if slow else outcome

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        self.watches += 1
        return super().watch(busy, wake, deadline)


@pytest.mark.parametrize("timeout", [0, None])
def test_a_lease_that_is_over_when_it_comes_is_asked_for_again(timeout: float | None) -> None:
    """While a server fails over, or behind a silent connection, an answer may take longer than the lease lasts."""
    with Manager(Slow()) as locks, locks.lock("k", ttl=60, timeout=timeout) as lease:
        lease.ensure_held()


@pytest.mark.anyio
async def test_a_lease_that_is_over_when_it_comes_is_asked_for_again_in_a_loop() -> None:
    async with Manager(Slow()) as locks, locks.lock("k", ttl=60) as lease:
        lease.ensure_held()


def test_who_was_given_it_meanwhile_keeps_it() -> None:
    """The second request is answered by the truth: it is another's now."""
    backend = Slow()
    others: list[distlock.Lease] = []
    with Manager(backend) as locks:

        def answer_late() -> None:
            backend.after.clear()
            others.append(locks.lock("k", ttl=60, timeout=PATIENCE).acquire())  # as soon as the first is over

        backend.after["acquire"] = answer_late
        with pytest.raises(AcquireTimeout):
            locks.lock("k", ttl=0.1, timeout=0).acquire()
        others[0].release()


def test_who_had_it_for_a_moment_is_watched_for_once_more() -> None:
    """A store that grants a lock watches no more for who waited: another one has it now, and will give it up."""
    backend = Slow(0)
    others: list[distlock.Lease] = []
    with Manager(backend) as locks, ThreadPoolExecutor(1) as threads:
        first = locks.lock("k", ttl=60).acquire()
        waiter = threads.submit(locks.lock("k", ttl=0.1).acquire, timeout=PATIENCE)
        wait_until(lambda: backend.watches == 1, "it to wait")

        def answer_late() -> None:
            backend.after.clear()
            others.append(locks.lock("k", ttl=60, timeout=PATIENCE).acquire())  # as soon as the first is over

        backend.slow = backend.asked + 1
        backend.after["acquire"] = answer_late
        first.release()
        wait_until(lambda: backend.watches == 3, "it to wait again")  # the other one has waited, too
        others[0].release()
        with suppress(LockLost):  # a slow machine may take longer than its ttl from here to there
            waiter.result(PATIENCE).release()


def test_a_store_that_is_gone_when_it_is_asked_again_is_told_later() -> None:
    """There was a grant: what became of it is not known, so that it is given up in the background."""
    backend = Slow()

    def unreachable() -> None:
        raise BackendUnavailable("nobody listens", backend="moody")

    given_up = threading.Event()
    backend.before["withdraw"] = given_up.set
    backend.after["acquire"] = lambda: backend.before.update(acquire=unreachable)
    with Manager(backend, op_timeout=0.5) as locks:
        with pytest.raises(BackendUnavailable):
            locks.lock("k", ttl=60).acquire()
        assert given_up.wait(PATIENCE)


def test_a_ttl_shorter_than_an_answer_is_asked_for_twice_and_no_more() -> None:
    backend = Slow(slow=1000)
    with Manager(backend) as locks, pytest.raises(LockLost), locks.lock("k", ttl=60, renew=False):
        pytest.fail("the body was entered without the lock")
    assert backend.asked == 2


def test_the_margin_is_the_drift_that_redlock_allows_for() -> None:
    assert proven_until(100.0, 10.0) == pytest.approx(109.898)


def test_renewals_go_out_together() -> None:
    backend = Moody()
    with Manager(backend) as locks:
        leases = [locks.lock(f"k{n}").acquire() for n in range(30)]
        with locks._watchdog._looking:
            for lease in leases:
                lease._hold.renew_at = now()
        locks._watchdog._nudge()
        settled(lambda: backend.renewals)
        assert backend.renewals == [30]
        for lease in leases:
            lease.release()


def test_a_blip_is_unknown_and_then_held_again() -> None:
    """mithril: one failed renewal, and the lock was given up."""
    backend = Moody()
    with Manager(backend) as locks:
        lease = locks.lock("k", ttl=6.0).acquire()
        backend.before["renew"] = down
        settled(lambda: lease.state is LeaseState.UNKNOWN)
        assert lease.ensure_held() == lease.token
        del backend.before["renew"]
        settled(lambda: lease.state is LeaseState.HELD)
        lease.release()


@pytest.mark.parametrize("error", [down, lambda: 1 / 0])
def test_an_outage_is_a_loss_before_the_store_would_let_anyone_in(error: Callable[[], object]) -> None:
    backend, lost = Moody(), threading.Event()
    with Manager(backend) as locks:
        lease = locks.lock("k", ttl=3.0).acquire()
        lease._hold.on_lost(lost.set)
        assert lease._hold.deadline < backend._locks["k"].expires
        backend.before["renew"] = backend.before["withdraw"] = error
        assert lost.wait(PATIENCE)
        assert lease.state is LeaseState.LOST
        backend.before.clear()


def test_loss_is_announced_while_the_store_hangs() -> None:
    """The watchdog comes back from a request in time for the next announcement."""
    backend, lost, gate = Moody(), threading.Event(), threading.Event()
    with Manager(backend) as locks:
        lease = locks.lock("k", ttl=1.0).acquire()
        lease.on_lost(lost.set)
        deadlines: list[float] = []
        original = backend.renew

        def hang(grants: Sequence[Grant], deadline: float) -> Any:
            deadlines.append(deadline)
            gate.wait(max(0.0, deadline - now()))
            down()
            return original(grants, deadline)

        backend.renew = hang  # type: ignore[method-assign]
        assert lost.wait(PATIENCE)
        assert all(deadline <= lease._hold.deadline + 0.021 for deadline in deadlines)


def test_short_holds_do_not_wake_the_watchdog(locks: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    nudges = []
    original = Watchdog._nudge

    def nudge(self: Watchdog) -> None:
        nudges.append(1)
        original(self)

    monkeypatch.setattr(Watchdog, "_nudge", nudge)
    for _ in range(100):
        with locks.lock("k"):
            pass
    assert len(nudges) <= 5  # the first one, and what came before the thread had run


def test_an_extension_that_crosses_a_renewal_counts(locks: Manager) -> None:
    """The renewal was asked for with the old length: its reply must not set it again."""
    lease = locks.lock("k", ttl=30).acquire()
    hold = lease._hold
    before = hold.grant
    lease.extend(5)
    hold.renewed(before, now(), proven_until(now(), 30))
    assert lease.remaining() <= 5
    lease.release()


# Giving up.


def test_an_unanswered_release_goes_on_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    backend = Moody()
    with Manager(backend, op_timeout=1.0) as locks:
        backend.before["release"] = backend.before["withdraw"] = down
        with caplog.at_level(logging.WARNING, "distlock"), locks.lock("k"):
            pass
        assert "goes on in the background" in caplog.text
        lease = locks.lock("other").acquire()
        with pytest.raises(BackendUnavailable):
            lease.release()
        assert lease.state.value == "unknown"
        with pytest.raises(NotHeld):
            lease.ensure_held()
        backend.before.clear()
        settled(lambda: not backend._locks)
        lease.release()  # gone at the second try: the first one has done it
        assert lease.state is LeaseState.RELEASED


def test_an_error_of_the_store_is_no_timeout() -> None:
    backend = Moody()

    def refuse() -> None:
        raise BackendError("no", key="k")

    with Manager(backend) as locks:
        for mood in (down, refuse):
            backend.before["acquire"] = mood
            with pytest.raises(BackendError) as caught:
                locks.lock("k", timeout=0.3).acquire()
            assert not isinstance(caught.value, AcquireTimeout)
        backend.before.clear()


def test_a_lost_reply_is_asked_for_again() -> None:
    """redis-py, python-redis-lock: the winner was told that someone else has it."""
    backend, losses = Moody(), iter([down, down])
    backend.after["acquire"] = lambda: next(losses, lambda: None)()
    with Manager(backend) as locks:
        lease = locks.lock("k").acquire()
        assert lease.token == 1
        lease.release()
        assert not backend._locks


def test_a_ctrl_c_between_the_grant_and_the_lease_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Moody()
    with Manager(backend) as locks:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(locks, "_kept", interrupt)
        with pytest.raises(KeyboardInterrupt):
            locks.lock("k").acquire()
        settled(lambda: not backend._locks)


def test_a_ctrl_c_while_waiting_leaves_the_queue() -> None:
    backend = Moody()
    with Manager(backend) as locks, locks.lock("k"):

        def interrupt() -> None:
            raise KeyboardInterrupt

        backend.after["acquire"] = interrupt
        with pytest.raises(KeyboardInterrupt):
            locks.lock("k", timeout=5).acquire()
        backend.after.clear()
        assert not backend._locks["k"].queue


def test_a_wake_up_that_is_lost_costs_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distlock._core.acquire.RECHECK", 0.2)

    class Deaf(Moody):
        def acquire(self, claim: Claim, deadline: float) -> Grant | Busy:
            outcome = super().acquire(claim, deadline)
            return Busy(claim, outcome.holder) if isinstance(outcome, Busy) else outcome

        def watch(self, busy: Busy, wake: Any, deadline: float) -> Any:
            return super().watch(busy, lambda: None, deadline)

    with Manager(Deaf()) as locks:
        lease = locks.lock("k").acquire()
        threading.Timer(0.05, lease.release).start()
        with locks.lock("k", timeout=PATIENCE):
            pass


def test_a_manager_that_nobody_closed_ends_with_its_last_lease() -> None:
    locks = distlock.connect("memory://")
    lease = locks.lock("k").acquire()
    thread = locks._watchdog._thread
    assert thread is not None
    del locks
    gc.collect()
    assert thread.is_alive()  # the lease is kept alive still
    lease.release()
    del lease
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_who_is_told_of_a_loss_may_close_the_manager() -> None:
    """aioredlock: the watchdog that noticed the loss ended by waiting for itself."""
    backend = Moody()
    locks = Manager(backend)
    told = threading.Event()

    def close() -> None:
        locks.close()
        told.set()

    lease = locks.lock("k", ttl=0.6).acquire()
    lease.on_lost(close)
    backend._locks.clear()  # as a store that lost it
    assert told.wait(PATIENCE)
    assert locks._watchdog._thread is not None
    assert not locks._watchdog._thread.is_alive()
    assert lease.state is LeaseState.LOST


def test_what_was_left_over_is_not_finished_at_the_cost_of_the_leases() -> None:
    """redisson#3194: one request that gets no answer must not keep the others waiting."""

    class Silent(Moody):
        def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
            time.sleep(max(0.0, deadline - now()))
            raise BackendUnavailable("no answer", backend=self.address)

    backend = Silent()
    with Manager(backend, op_timeout=5.0) as locks:
        lease = locks.lock("k", ttl=6.0).acquire()
        for number in range(3):
            locks._watchdog.give_up(Claim(f"{number}", f"{number}", 30.0, True))
        settled(lambda: len(backend.renewals) >= 3)
        assert lease.state is LeaseState.HELD
        lease.release()
        locks._watchdog._chores.clear()


def test_a_store_without_transactions_guards_none(locks: Manager) -> None:
    with locks.lock("k") as lease, pytest.raises(Unsupported, match=r"memory has no transactions.*\[memory://"):
        lease.guard()
    with pytest.raises(NotHeld):
        lease.guard()


def test_dropping_a_lease_warns_and_lets_it_lapse(locks: Manager) -> None:
    gc.collect()  # what earlier tests have left may warn, too
    lease = locks.lock("k", ttl=3.0).acquire()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del lease
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    settled(lambda: locks.inspect("k").holder is None)
    settled(lambda: not locks._watchdog.holds)
