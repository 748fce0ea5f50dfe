"""What people write: recipes, decorators, URLs, and the errors that they meet."""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import distlock
from distlock import (
    AcquireTimeout,
    BackendUnavailable,
    ConfigurationError,
    InvalidKey,
    LeaseState,
    Lock,
    Manager,
    NotHeld,
    current,
    locked,
)
from distlock._core.drive import drive
from distlock.backends.base import SyncBackend
from distlock.backends.memory import MemoryBackend


@pytest.fixture
def locks() -> Iterator[Manager]:
    with distlock.connect("memory://") as manager:
        yield manager


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distlock._default._default", None)


# Recipes and decorators.


def test_who_asks_by_a_stack_of_blocks_is_named(locks: Manager) -> None:
    with ExitStack() as stack:
        stack.enter_context(locks.lock("k"))
        holder = locks.inspect("k").holder
    assert holder is not None
    assert holder.site.startswith("test_core_recipes.py:")


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


def said_here(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The levels of what this thread has logged; what earlier tests have left may log, too."""
    return [record.levelname for record in caplog.records if record.thread == threading.get_ident()]


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
    assert said_here(caplog) == ["WARNING"]
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
    assert said_here(caplog) == []


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nowhere", {}, "not a URL"),
        ("nowhere://", {}, "no backend for nowhere://; there are: etcd, etcd\\+tls, file, memory"),
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
