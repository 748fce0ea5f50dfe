"""The core alone: what needs no store, or one that misbehaves on command."""

from __future__ import annotations

import gc
import logging
import math
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import distlock
from distlock import (
    AcquireTimeout,
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    InvalidKey,
    LeaseState,
    Lock,
    LockLost,
    Manager,
    NotHeld,
    current,
    locked,
)
from distlock._core.drive import drive
from distlock._core.loops import Threaded
from distlock._core.watchdog import Watchdog
from distlock.backends.base import Busy, Claim, Grant, SyncBackend, now, proven_until
from distlock.backends.memory import MemoryBackend

PATIENCE = 20.0


@pytest.fixture
def locks() -> Iterator[Manager]:
    with distlock.connect("memory://") as manager:
        yield manager


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distlock._manager._default", None)


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
async def test_a_cancelled_call_in_a_thread_cleans_up_after_itself() -> None:
    """The thread cannot be stopped; what it brings too late is given up."""
    backend, gate = Moody(), threading.Event()
    given_up: list[Claim] = []
    backend.before["acquire"] = lambda: gate.wait(PATIENCE)
    threaded = Threaded(backend, given_up.append)
    claim = Claim("late", "k", 30.0, False)
    with anyio.move_on_after(0.05):
        await threaded.acquire(claim, now() + 5)
    assert given_up == []
    gate.set()
    await anyio.to_thread.run_sync(lambda: settled(lambda: given_up == [claim]))


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
        lease = locks.lock("k", ttl=2.0, renew=False).acquire()
        assert lease.remaining() < 1.2
        backend.after["acquire"] = lambda: time.sleep(0.3)
        late = locks.lock("late", ttl=0.2).acquire()
        assert late.state is LeaseState.LOST
        with pytest.raises(LockLost):
            late.ensure_held()
        with pytest.raises(LockLost), locks.lock("later", ttl=0.2):
            pytest.fail("the body was entered without the lock")
        lease.release()


def test_the_margin_is_the_drift_that_redlock_allows_for() -> None:
    assert proven_until(100.0, 10.0) == pytest.approx(109.898)


def test_renewals_go_out_together() -> None:
    backend = Moody()
    with Manager(backend) as locks:
        leases = [locks.lock(f"k{n}").acquire() for n in range(30)]
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
        lease = locks.lock("k", ttl=3.0).acquire()
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
        lease = locks.lock("k", ttl=1.0).acquire()
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
    lease = locks.lock("k", ttl=0.6).acquire()
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
        lease = locks.lock("k", ttl=3.0).acquire()
        for number in range(3):
            locks._watchdog.give_up(Claim(f"{number}", f"{number}", 30.0, True))
        settled(lambda: len(backend.renewals) >= 4)
        assert lease.state is LeaseState.HELD
        lease.release()
        locks._watchdog._chores.clear()


def test_dropping_a_lease_warns_and_lets_it_lapse(locks: Manager) -> None:
    lease = locks.lock("k", ttl=0.6).acquire()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del lease
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    settled(lambda: locks.inspect("k").holder is None)
    assert locks._watchdog.holds == []


# Recipes and decorators.


def test_one_recipe_is_shared_by_threads(locks: Manager) -> None:
    lock, inside, most = locks.lock("k"), 0, []

    def work() -> None:
        nonlocal inside
        for _ in range(20):
            with lock:
                inside += 1
                most.append(inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_block_may_be_left_in_another_thread(locks: Manager) -> None:
    """Frameworks enter a dependency in one thread of their pool and leave it in another."""
    lock = locks.lock("k")
    entering = threading.Thread(target=lock.__enter__)
    entering.start()
    entering.join()
    lock.__exit__(None, None, None)
    with locks.lock("k", timeout=0):
        pass
    with pytest.raises(RuntimeError, match="0 are open"):
        lock.__exit__(None, None, None)


def test_a_block_left_elsewhere_is_refused_when_two_are_open(locks: Manager) -> None:
    first, second = locks.lock("a"), locks.lock("a", reentrant=True)
    lock = locks.lock("shared", reentrant=True, owner="me")
    threads = [threading.Thread(target=lock.__enter__) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    with pytest.raises(RuntimeError, match="2 are open elsewhere"):
        lock.__exit__(None, None, None)
    assert first != second
    from distlock._lease import blocks

    for lease in [block for stack in list(blocks._stacks.values()) for block in stack if block.entered_by is lock]:
        lease.__exit__(None, None, None)  # type: ignore[attr-defined]


def test_a_thread_cannot_be_cancelled(locks: Manager) -> None:
    with pytest.raises(ConfigurationError, match="async with"), locks.lock("k", when_lost="cancel"):
        pass


def test_decorators_hold_the_lock(locks: Manager) -> None:
    class Order:
        id = 42

    @locks.locked("orders:{order.id}:{kind!s:>3}")
    def ship(order: Order, kind: str = "x") -> str:
        """Ships."""
        return current().key

    @locks.lock("nightly-{report}")
    def report() -> str:
        return current().key

    class Shop:
        name = "s"

        @locks.locked("{self.name}:{args[0]}")
        def open(self, *args: int) -> str:
            return current().key

        @staticmethod
        @locks.locked("static:{n}")
        def static(n: int) -> str:
            return current().key

    assert ship(Order()) == "orders:42:  x"
    assert ship.__doc__ == "Ships."
    assert report() == "nightly-{report}"
    assert Shop().open(7) == "s:7"
    assert Shop.static(3) == "static:3"
    with pytest.raises(NotHeld):
        current()


@pytest.mark.anyio
async def test_decorators_hold_the_lock_in_coroutines(locks: Manager) -> None:
    @locks.locked("k:{n}")
    async def work(n: int) -> str:
        await anyio.lowlevel.checkpoint()
        return current().key

    assert await work(n=1) == "k:1"


def test_what_cannot_be_decorated_is_refused(locks: Manager) -> None:
    lock = locks.lock("k")

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> Any:
        yield 1

    for function in (generator, async_generator):
        with pytest.raises(TypeError, match="generator"):
            lock(function)
        with pytest.raises(TypeError, match="generator"):
            locked("k")(function)
    things: list[Any] = [staticmethod(print), classmethod(print), property(print)]
    for thing in things:
        with pytest.raises(TypeError, match="put the lock below @"):
            lock(thing)
    things = [int, 5]
    for thing in things:
        with pytest.raises(TypeError, match="decorates functions"):
            lock(thing)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{nobody}", "names 'nobody'"),
        ("{}", "names ''"),
        ("{0}", "names '0'"),
        ("{n", "does not parse"),
        ("", "is empty"),
        (5, "must be a str"),
        ("{n:{width}}", "names 'width'"),
    ],
)
def test_a_template_is_checked_when_it_decorates(template: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):

        @locked(template)
        def work(n: int) -> None: ...


def test_a_key_that_comes_out_empty_is_said_at_the_call(locks: Manager) -> None:
    @locks.locked("{name}")
    def work(name: str) -> None: ...

    with pytest.raises(InvalidKey):
        work("")


def test_a_recipe_does_not_travel() -> None:
    with pytest.raises(TypeError, match="make it anew"):
        pickle.dumps(distlock.lock("k"))
    assert repr(distlock.lock("k", ttl=5)) == "<Lock 'k' ttl=5>"


@pytest.mark.parametrize(
    "options",
    [
        {"max_hold": 0},
        {"max_hold": math.inf},
        {"max_hold": "1"},
        {"renew": 1},
        {"reentrant": "yes"},
        {"when_lost": "ignore"},
        {"owner": ""},
        {"owner": 5},
        {"owner": "x" * 513},
        {"metadata": {"a": 1}},
        {"metadata": {"a": "x" * 5000}},
        {"ttl": 10**400},
    ],
)
def test_options_are_checked_before_any_io(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        distlock.lock("k", **options)


def test_at_least_is_checked(locks: Manager) -> None:
    with locks.lock("k") as lease, pytest.raises(ValueError, match="at_least"):
        lease.ensure_held(-1)


# Where locks live.


def test_the_bare_lock_uses_the_environment(
    default: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    monkeypatch.setattr("distlock.backends.file._COMMON", str(tmp_path))
    folder = tmp_path / f"distlock-{os.getuid()}"
    monkeypatch.delenv("DISTLOCK_URL", raising=False)
    monkeypatch.setenv("DISTLOCK_NAMESPACE", "shop")
    lock = distlock.lock("k")
    for _ in range(2):
        with lock as lease:
            assert lease.backend == f"file://{folder}"
            assert (folder / "shop" / "k.lock").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "machine only" in caplog.text
    assert str(folder) in caplog.text
    distlock.configure("memory://other")
    with lock as lease:
        assert lease.backend.startswith("memory://other")


def test_distlock_url_is_used_without_a_warning(
    default: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DISTLOCK_URL", "memory://environment")
    with distlock.lock("k") as lease:
        assert "environment" in lease.backend

    @locked("{n}")
    def work(n: int) -> str:
        return current().key

    assert work(5) == "5"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nowhere", {}, "not a URL"),
        ("nowhere://", {}, "no backend for nowhere://; there are: file, memory"),
        ("memory://a/b", {}, "a name and nothing else"),
        ("memory://", {"namespace": "a:b"}, "namespace"),
        ("memory://", {"namespace": ""}, "namespace"),
        ("memory://", {"op_timeout": 0}, "op_timeout"),
        ("memory://", {"op_timeout": math.inf}, "op_timeout"),
        (5, {}, "cannot connect to a int"),
    ],
)
def test_what_cannot_be_connected_to_is_said(target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        distlock.connect(target, **options)


def test_secrets_of_a_wrong_url_are_not_repeated() -> None:
    for url in ("user:geheim@host", "redis://u:geheim@host:port/0", "memory://u:geheim@x/y"):
        with pytest.raises(ConfigurationError) as caught:
            distlock.connect(url)
        assert "geheim" not in str(caught.value)


def test_an_entry_point_adds_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    point = EntryPoint("mine", "distlock.backends.memory:open_url", "distlock.backends")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: EntryPoints([point]))
    with distlock.connect("mine://", namespace="x") as locks:
        assert locks.address == "memory://x"


def test_a_backend_is_taken_as_it_is() -> None:
    with distlock.connect(MemoryBackend("given")) as locks:
        assert locks.address == "memory://given"
        assert repr(locks) == "<distlock.Manager memory://given>"
        assert isinstance(locks._backend, SyncBackend)
        assert locks._backend.native() is None
    locks.close()
    assert repr(locks).endswith("closed>")


def test_a_shared_memory_store_is_shared_by_name() -> None:
    with distlock.connect("memory://shared") as one, distlock.connect("memory://shared") as two:
        with one.lock("k"):
            assert two.lock("k").try_acquire() is None
        with distlock.connect("memory://shared", namespace="other") as three, one.lock("k"), three.lock("k", timeout=0):
            pass


@pytest.mark.anyio
async def test_a_manager_is_an_async_context_manager() -> None:
    async with distlock.connect("memory://") as locks, locks.lock("k") as lease:
        assert repr(lease).startswith("<AsyncLease 'k' token=1 held")
    with pytest.raises(distlock.DistLockError, match="was closed"):
        await locks.lock("k").acquire_async()


def test_the_async_api_needs_a_loop(locks: Manager) -> None:
    with pytest.raises(ConfigurationError, match="no event loop"):
        drive(locks.lock("k").acquire_async())


# Errors.


def test_errors_survive_pickling() -> None:
    error = AcquireTimeout("late", key="k", backend="b", holder=distlock.Holder("me", token=5))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (str(copy), copy.key, copy.backend) == ("late", "k", "b")
    assert copy.holder.token == 5


def test_errors_are_also_what_they_are_elsewhere() -> None:
    assert issubclass(AcquireTimeout, TimeoutError)
    assert issubclass(BackendUnavailable, ConnectionError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(InvalidKey, ValueError)
    assert issubclass(distlock.Deadlock, RuntimeError)


def test_what_a_stranger_wrote_about_itself_is_no_error() -> None:
    for about in ("", "[]", '{"m": 5}', '{"p": "x"}', "null"):
        assert distlock.Waiter.read("me", about).owner == "me"
    holder = distlock.Holder.found("me", '{"h":"web-3","p":4242,"s":"orders.py:88"}', token=17, held_for=12.3, ttl=1.0)
    assert str(holder) == "web-3 pid 4242 (orders.py:88) for 12.3 s, token 17"
    assert holder.since is not None
    assert abs(holder.since + 12.3 - time.time()) < 60
    assert distlock.Holder("me").since is None


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_afresh(locks: Manager) -> None:
    lease = locks.lock("k").acquire()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with locks.lock("k", timeout=0):  # memory is its own
                status = 0 if lease.state is LeaseState.LOST else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert isinstance(locks.lock("other"), Lock)
    lease.release()


@pytest.mark.parametrize("token", [0, -1, True, "5", 2**63, None])
def test_force_takes_a_token_and_nothing_else(token: Any) -> None:
    with distlock.connect("memory://") as locks, pytest.raises(ValueError, match="token"):
        locks.force_release("k", token=token)


def test_force_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with distlock.connect("memory://") as locks, locks.lock("k", when_lost="warn") as lease:
        locks.force_release("k", token=lease.token)
        assert f"'k' (token {lease.token}) was ended by force" in caplog.text
