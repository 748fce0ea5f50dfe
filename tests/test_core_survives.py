"""What threads, signals, cancellation, garbage collection and bad luck may do to the core."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import anyio
import pytest

import distlock
from distlock import (
    AcquireTimeout,
    BackendUnavailable,
    ConfigurationError,
    DistLockError,
    Lease,
    LeaseState,
    LockLost,
    Manager,
    locked,
)
from distlock.backends.base import Claim, Grant, Renewal, now
from distlock.testing import Tap

PATIENCE = 20.0


@pytest.fixture
def tap() -> Iterator[Tap]:
    with distlock.connect("memory://") as locks:
        yield Tap(locks._backend)


@pytest.fixture
def locks(tap: Tap) -> Iterator[Manager]:
    with Manager(tap) as manager:
        yield manager


def settled(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def _is_lost(lease: Lease) -> bool:
    return lease.state is LeaseState.LOST


def silent(deadline: float) -> None:
    """As a request that gets no answer."""
    time.sleep(max(0.0, deadline - now()))
    raise BackendUnavailable("no answer", backend="tap", sent=True)


# Threads that fail, and requests that stall.


def test_a_loss_that_cannot_be_told_does_not_cost_the_other_leases(
    locks: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for one more thread, just when a callback is to run in one."""
    good = locks.lock("good", ttl=6.0).acquire()
    bad = locks.lock("bad", ttl=0.3, renew=False).acquire()
    bad.on_lost(lambda: None)
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "distlock-on-lost":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    settled(lambda: bad.state is LeaseState.LOST)
    before = good._hold.deadline
    settled(lambda: good._hold.deadline > before)
    good.release()


def test_a_watchdog_that_could_not_start_is_started_by_the_next_lease(
    locks: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with locks.lock("first", ttl=6.0):
        pass
    lease = locks.lock("k", ttl=6.0).acquire()
    before = lease._hold.deadline
    settled(lambda: lease._hold.deadline > before)
    lease.release()


def test_answers_that_do_not_match_are_no_answers(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, no_answers = tap, iter([True, True])

    def renew(grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        return [] if next(no_answers, False) else Tap.renew(backend, grants, deadline)

    monkeypatch.setattr(backend, "renew", renew)
    with Manager(backend) as locks:
        lease = locks.lock("k", ttl=6.0).acquire()
        before = lease._hold.deadline
        settled(lambda: lease._hold.deadline > before)
        assert lease.state is LeaseState.HELD
        lease.release()


def test_a_renewal_without_an_answer_does_not_use_up_the_time_of_another_lease(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renew(grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        if any(grant.claim.key == "slow" for grant in grants):
            silent(deadline)
        return Tap.renew(tap, grants, deadline)

    monkeypatch.setattr(tap, "renew", renew)
    with Manager(tap, op_timeout=5.0) as locks:
        slow = locks.lock("slow", ttl=10.0).acquire()
        good = locks.lock("good", ttl=4.5).acquire()  # less than op_timeout
        before = good._hold.deadline
        slow._hold.renew_at = now()
        locks._watchdog._nudge()
        settled(lambda: good._hold.deadline > before or good.state is LeaseState.LOST)
        assert good.state is not LeaseState.LOST
        good.release()
        slow.release()


def test_a_claim_that_turns_up_while_it_is_given_up_is_given_up_again(tap: Tap, locks: Manager) -> None:
    """The grant came while the watchdog's withdrawal was on its way back."""
    claim = Claim("late", "k", 60.0, True)
    arrived = threading.Event()

    def late() -> None:
        tap.acquire(claim, now() + PATIENCE)
        locks._watchdog.give_up(claim)
        arrived.set()

    tap.after["withdraw"] = tap.once(late)
    locks._watchdog.give_up(claim)
    assert arrived.wait(PATIENCE)
    settled(lambda: locks.inspect("k").holder is None)


@pytest.mark.anyio
@pytest.mark.may_block
async def test_a_crowd_that_gets_no_answer_does_not_stretch_the_timeout_of_another(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap, "acquire", lambda claim, deadline: silent(deadline))
    with Manager(tap, op_timeout=6.0) as locks:

        async def ask() -> None:
            with pytest.raises(BackendUnavailable):
                await locks.lock("k").acquire_async(timeout=None)

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(ask)
            await anyio.sleep(0.2)
            started = time.monotonic()
            with pytest.raises(BackendUnavailable):
                await locks.lock("k").acquire_async(timeout=0.3)
            assert time.monotonic() - started < 4
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("timeout", [0.0, None])
def test_a_store_that_cannot_be_reached_is_asked_once(tap: Tap, locks: Manager, timeout: float | None) -> None:
    asked: list[int] = []

    def down() -> None:
        asked.append(1)
        tap.down()

    tap.before["acquire"] = down
    with pytest.raises(BackendUnavailable):
        locks.lock("k", timeout=timeout).acquire()
    assert len(asked) == 1


@pytest.mark.parametrize("side", ["before", "after"])
def test_ctrl_c_in_the_first_request_leaves_nothing_held(tap: Tap, locks: Manager, side: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    getattr(tap, side)["acquire"] = tap.once(interrupt)
    with pytest.raises(KeyboardInterrupt):
        locks.lock("k").acquire()
    assert tap.backend.inspect("k", now() + PATIENCE).holder is None  # before the caller goes on


def test_an_error_is_gone_once_it_is_dealt_with(tap: Tap, locks: Manager) -> None:
    """And so is all that its frames hold: no cycle that waits for the garbage collector."""
    tap.before["acquire"] = tap.down
    gc.collect()
    gc.disable()
    try:
        try:
            locks.lock("k", timeout=0.1).acquire()
        except BackendUnavailable as error:
            seen = weakref.ref(error)
        assert seen() is None
    finally:
        gc.enable()


# Ends of all kinds.


@pytest.mark.anyio
async def test_a_manager_closes_though_its_task_was_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with distlock.connect("memory://") as locks:
            lease = await locks.lock("k", ttl=60).acquire_async()
            scope.cancel()
            await anyio.sleep_forever()
    assert lease.state is LeaseState.LOST
    assert "closed" in repr(locks)


def test_who_waits_while_the_manager_is_closed_gets_no_lease_that_nobody_renews() -> None:
    with distlock.connect("memory://survives") as others:
        held = others.lock("k").acquire()
        locks = distlock.connect("memory://survives")
        errors: list[DistLockError] = []

        def wait() -> None:
            try:
                locks.lock("k").acquire()
            except DistLockError as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        settled(lambda: others.inspect("k").waiters)
        locks.close()
        held.release()
        thread.join(PATIENCE)
        assert "was closed" in str(errors[0])
        assert others.inspect("k").holder is None


def test_a_collection_in_the_watchdog_is_no_deadlock(locks: Manager) -> None:
    """A lease is finalized by whichever thread the collector runs in, also one that is about to renew it."""
    lease = locks.lock("k", ttl=60).acquire()
    hold = lease._hold
    with hold._lock, locks._watchdog._changed, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        done = threading.Thread(target=lambda: None)
        del lease
        gc.collect()
        locks._watchdog.close(join=False)
        done.start()
    assert hold.count == 0


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["_enter", "_exit", "release"])
def test_a_signal_in_the_entry_or_the_exit_of_a_block_leaves_no_lock_held(
    locks: Manager, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    """What a handler raises (Ctrl-C, an alarm, a task limit) comes out between any two steps."""

    class TooLate(BaseException):
        pass

    real, first = getattr(Lease, step), iter([True])

    def interrupted(lease: Lease) -> None:
        if not next(first, False):
            real(lease)
            return
        if when == "after":
            real(lease)
        raise TooLate

    monkeypatch.setattr(Lease, step, interrupted)
    with pytest.raises(TooLate), locks.lock("k", ttl=60):
        pass
    settled(lambda: locks.inspect("k").holder is None)
    with pytest.raises(distlock.NotHeld):
        distlock.current()


# One lease in several hands.


def test_two_threads_that_release_one_lease_have_released_it(tap: Tap, locks: Manager) -> None:
    lease, gate = locks.lock("k").acquire(), threading.Event()
    tap.before["release"] = tap.once(lambda: gate.wait(PATIENCE) and None)
    errors: list[DistLockError] = []

    def release() -> None:
        try:
            lease.release()
        except DistLockError as error:
            errors.append(error)

    first = threading.Thread(target=release)
    first.start()
    settled(lambda: lease._hold.giving_up)
    release()
    gate.set()
    first.join(PATIENCE)
    assert errors == []
    assert lease.state is LeaseState.RELEASED


def test_what_is_being_released_is_not_entered_again(locks: Manager) -> None:
    lease = locks.lock("k", reentrant=True).acquire()
    assert lease._hold.leave()  # as in another thread, which is about to send its release
    assert not lease._hold.enter_again()
    lease.release()


def test_a_lease_has_one_block(locks: Manager) -> None:
    with locks.lock("k").acquire() as lease:
        with pytest.raises(RuntimeError, match="open already"), lease:
            pass
        assert lease.ensure_held()


def test_a_release_in_the_background_is_no_deadlock(tap: Tap, locks: Manager) -> None:
    tap.after["release"] = tap.once(tap.cut)
    lease = locks.lock("k").acquire()
    with lease:
        with pytest.raises(BackendUnavailable):
            lease.release()
        with locks.lock("k", timeout=PATIENCE):
            pass
    settled(lambda: lease.state is LeaseState.RELEASED)


def test_an_extension_without_an_answer_is_an_error(tap: Tap, locks: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "extend", lambda grant, ttl, deadline: Renewal(LeaseState.UNKNOWN))
    with locks.lock("k").acquire() as lease, pytest.raises(BackendUnavailable, match="did not say"):
        lease.extend(60)


# Blocks of event loops.


@pytest.mark.anyio
async def test_a_body_that_has_released_its_lease_is_not_cancelled_for_it(locks: Manager) -> None:
    finished = False
    lock = locks.lock("k", ttl=1.0, renew=False, reentrant=True, when_lost="warn")
    async with lock, locks.lock("k", reentrant=True) as inner:
        await inner.release()
        await anyio.sleep(1.5)
        finished = True
    assert finished


@pytest.mark.anyio
async def test_the_loss_is_a_note_of_a_group_of_errors_too(locks: Manager) -> None:
    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("the body's own")

    with pytest.raises(BaseException) as caught:  # noqa: PT011, PT012 - a group, which 3.10 does not know
        async with locks.lock("k", ttl=2.0, renew=False), anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()
    assert not isinstance(caught.value, LockLost)
    assert any("is lost" in note for note in getattr(caught.value, "__notes__", []))


def test_a_waiter_whose_loop_stands_still_costs_the_next_one_a_second() -> None:
    with distlock.connect("memory://") as locks:
        backend: Any = locks._backend
        held = locks.lock("k", ttl=60).acquire()
        stopped = Claim("stopped", "k", 60.0, True)
        backend.acquire(stopped, now() + 1)
        got = threading.Event()

        def wait() -> None:
            with locks.lock("k", ttl=60):
                got.set()

        thread = threading.Thread(target=wait)
        thread.start()
        settled(lambda: len(locks.inspect("k").waiters) == 2)
        held.release()
        assert got.wait(PATIENCE)
        thread.join()


def test_memory_forgets_what_has_expired() -> None:
    """spring#3655: a million names are not a million entries."""
    with distlock.connect("memory://") as locks:
        backend: Any = locks._backend
        for number in range(100):
            backend.acquire(Claim(f"{number}", f"k{number}", 0.1, False), now() + 1)
        settled(lambda: locks.list() == ())
        assert backend._locks == {}


# Decorators.


def test_what_hides_its_kind_is_not_run_without_the_lock(locks: Manager) -> None:
    async def work() -> None:
        raise AssertionError("it ran")

    def generate() -> Iterator[int]:
        yield 1

    def wrapper() -> Any:
        return work()

    class Generator:
        def __call__(self) -> Iterator[int]:
            yield 1

    with pytest.raises(TypeError, match="is a generator"):
        locks.lock("k")(Generator())
    for function in (wrapper, lambda: generate()):
        with pytest.raises(TypeError, match="without the lock"):
            locks.lock("k")(function)()
    with pytest.raises(TypeError, match="wrap it in a def"):
        locked("k")(max)


@pytest.mark.anyio
async def test_an_object_with_an_async_call_is_decorated_as_what_it_is(locks: Manager) -> None:
    class Work:
        async def __call__(self) -> str:
            holder = (await locks.inspect_async("k")).holder
            return "held" if holder is not None else "free"

    assert await locks.lock("k")(Work())() == "held"


# What is passed in.


def test_impossible_options_are_said() -> None:
    with distlock.connect("memory://") as locks:
        with pytest.raises(ConfigurationError, match="UTF-8"):
            locks.lock("k", owner="\ud800")
        for metadata in (5, ["a"]):
            wrong: Any = metadata
            with pytest.raises(ConfigurationError, match="maps str to str"):
                locks.lock("k", metadata=wrong)
        with pytest.raises(ConfigurationError, match="namespace already"):
            distlock.connect(locks._backend, namespace="shop")
        lease = locks.lock("k", when_lost="cancel").acquire()
        with pytest.raises(ConfigurationError, match="async with"):
            lease.__enter__()
        lease.release()


def test_why_a_lease_ended_is_said() -> None:
    with distlock.connect("memory://") as locks:
        for options, why in (
            ({"ttl": 0.3, "renew": False}, "not to be renewed"),
            ({"ttl": 3.0, "max_hold": 4.0}, "max_hold is over"),
        ):
            more: Any = options
            lease = locks.lock("k", **more).acquire()
            settled(partial(_is_lost, lease))
            with pytest.raises(LockLost, match=why):
                lease.ensure_held()


def test_blocks_of_a_forked_child_are_not_locked_for_ever(locks: Manager) -> None:
    from distlock._lease import blocks

    with blocks._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
        if pid == 0:
            taken = threading.Thread(target=lambda: blocks._lock.acquire())
            taken.start()
            taken.join(5)
            os._exit(1 if taken.is_alive() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_timeout_while_the_store_hangs_is_a_timeout(tap: Tap) -> None:
    with Manager(tap, op_timeout=PATIENCE) as locks, locks.lock("k"):
        tap.before["withdraw"] = tap.once(lambda: time.sleep(0.1))
        with pytest.raises(AcquireTimeout):
            locks.lock("k").acquire(timeout=0.05)
