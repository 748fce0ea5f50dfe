"""What other programs, signals and bad luck may do to file locks."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock import BackendError, BackendUnavailable, DistLockError, LeaseState, LockLost, Manager
from distlock.backends.base import Busy, Claim, now
from distlock.backends.file._flock import LockFile

from .children import untraced
from .test_file import files, folder, locks, nothing_left, settled

__all__ = ("folder", "locks")

PATIENCE = 20.0


def test_a_link_is_not_followed(folder: Path, locks: Manager) -> None:
    """In a folder that others can write to, someone may lay one to a file of ours."""
    locks.lock("warm").acquire().release()
    victim = folder / "victim"
    victim.write_text("precious")
    (folder / "default" / "k.lock").symlink_to(victim)
    with pytest.raises(BackendUnavailable):
        locks.lock("k").acquire()
    assert victim.read_text() == "precious"


def test_a_dropped_lease_is_free_when_its_time_is_over(folder: Path, locks: Manager) -> None:
    lease = locks.lock("k", ttl=0.5).acquire()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del lease
    with distlock.connect(f"file://{folder}") as others, others.lock("k", timeout=PATIENCE):
        pass


def test_who_waits_is_told_when_the_manager_is_closed(folder: Path) -> None:
    with distlock.connect(f"file://{folder}") as others:
        locks, errors = distlock.connect(f"file://{folder}"), []
        held = others.lock("k").acquire()

        def wait() -> None:
            try:
                locks.lock("k").acquire()
            except DistLockError as error:
                errors.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        settled(lambda: len(locks.inspect("k").waiters) == 1)
        locks.close()
        thread.join(PATIENCE)
        assert "was closed" in errors[0]
        held.release()
        with others.lock("k", timeout=PATIENCE):
            pass


def test_a_waiter_that_does_not_come_lets_other_processes_in(folder: Path, locks: Manager) -> None:
    """An event loop that is blocked, or has ended with its task pending."""
    backend = locks._backend
    held = locks.lock("k").acquire()
    claim = Claim("sleeper", "k", 30.0, True)
    busy = backend.acquire(claim, now() + 1)
    assert isinstance(busy, Busy)
    watch = backend.watch(busy, lambda: None, now() + 1)
    with distlock.connect(f"file://{folder}") as others:
        got = threading.Event()

        def wait() -> None:
            with others.lock("k"):
                got.set()

        thread = threading.Thread(target=wait)
        thread.start()
        settled(lambda: len(others.inspect("k").waiters) == 1)
        held.release()
        assert got.wait(PATIENCE)
        thread.join()
    watch.close()


def test_no_room_for_a_thread_is_no_harm(folder: Path, locks: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    with locks.lock("watched", ttl=60), distlock.connect(f"file://{folder}") as others:
        held = others.lock("k").acquire()

        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with locks.lock("deleted at once", timeout=0):
                pass
            assert "deleted%20at%20once.lock" not in files(folder)
            with pytest.raises(BackendError, match="no thread"):
                locks.lock("k").acquire()
        held.release()
        with locks.lock("k", timeout=PATIENCE):
            pass
    settled(lambda: nothing_left(folder))


def _use(url: str) -> None:
    with distlock.connect(url) as locks, locks.lock("k"):
        pass
    lock = distlock.connect(url).lock("k")
    lock.acquire().release()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_worker_of_multiprocessing_leaves_no_file(folder: Path, method: str) -> None:
    """It ends without a word to anyone, right after its last release."""
    context: Any = multiprocessing.get_context(method)
    worker = context.Process(target=_use, args=(f"file://{folder}",))
    worker.start()
    worker.join(PATIENCE)
    assert worker.exitcode == 0
    settled(lambda: files(folder) == [])


CODE = """
import signal, sys, distlock
locks = distlock.connect(sys.argv[1])
hits = 0
def hit(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, hit)
while hits < 150:
    try:
        # Another one each time: between the end of a body and the first step of its block's exit nothing can be done.
        lock = locks.lock(f"k{hits}")
        signal.setitimer(signal.ITIMER_REAL, 0.0003 + hits % 17 * 0.0001)
        for _ in range(200):  # a finalizer may have swallowed it
            with lock:
                pass
        hits += 1
    except KeyboardInterrupt:
        hits += 1
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 0)
print("alive", flush=True)
with distlock.connect(sys.argv[1]).lock("other", timeout=10):
    pass
print("done", flush=True)
"""


def test_interrupts_at_any_moment_hang_nothing(folder: Path) -> None:
    """Ctrl-C in the middle of a Condition's ``with`` left it locked for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, f"file://{folder}"],
        env=untraced(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.stdout == "alive\ndone\n", done.stderr


def test_a_file_that_is_just_being_deleted_is_not_taken(folder: Path, locks: Manager) -> None:
    """One attempt means one: not that the file was locked for a moment to be deleted."""
    with distlock.connect(f"file://{folder}") as others:
        for _ in range(40):
            others.lock("k").acquire().release()
            time.sleep(0.0995)
            lease = locks.lock("k").try_acquire()
            assert lease is not None
            lease.release()


@pytest.mark.parametrize("how", ["by another thread", "by a signal handler"])
def test_what_is_given_up_twice_at_once_is_given_up_once(
    folder: Path, locks: Manager, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The second time, the file may be the next one's already."""
    backend, claim = locks._backend, Claim("twice", "k", 30.0, False)
    backend.acquire(claim, now() + 1)
    others: list[threading.Thread] = []
    unlock = LockFile.unlock

    def give_up() -> None:
        backend.withdraw(claim, now() + 1, in_flight=True)

    def unlock_interrupted(file: LockFile) -> None:
        unlock(file)
        if not others:
            others.append(threading.Thread(target=give_up))
            if how == "by another thread":
                others[0].start()
                others[0].join(0.2)  # it waits for us, or does harm
            else:
                give_up()

    with monkeypatch.context() as patch:
        patch.setattr(LockFile, "unlock", unlock_interrupted)
        give_up()
    if others[0].ident:
        others[0].join()
    with locks.lock("k", timeout=0):
        assert locks.lock("k").try_acquire() is None
    settled(lambda: nothing_left(folder))


def test_force_waits_for_the_holder_to_give_up(folder: Path, locks: Manager) -> None:
    """The kernel takes no lock away, so until its next renewal nobody else gets in."""
    with distlock.connect(f"file://{folder}") as others:
        lease = locks.lock("k", ttl=300).acquire()
        assert others.force_release("k", token=lease.token)
        assert others.lock("k").try_acquire() is None
        assert lease.ensure_held() == lease.token
        with pytest.raises(LockLost):
            lease.extend()  # asks, as a renewal does
        with others.lock("k", timeout=PATIENCE) as newer:  # the word left for the old one means nothing to it
            newer.extend()
            assert not others.force_release("k", token=lease.token)
            newer.extend()
    settled(lambda: nothing_left(folder))


def test_a_lent_file_is_not_kept_for_the_next_lease(locks: Manager) -> None:
    """Else a child of an earlier lease, which has it open, would keep others out of a later one."""
    lease = locks.lock("k").acquire()
    lent = os.dup(lease.descriptors[0])
    lease.release()
    with locks.lock("k"):
        fcntl.flock(lent, fcntl.LOCK_UN)  # if it were the same open file, this would let everyone in
        assert locks.lock("k").try_acquire() is None
        with distlock.connect(locks.address) as others:
            assert others.lock("k").try_acquire() is None
    os.close(lent)


def test_a_lent_file_keeps_others_out_after_a_loss(folder: Path, locks: Manager) -> None:
    with distlock.connect(f"file://{folder}") as others:
        lease = locks.lock("k", ttl=2.0, renew=False).acquire()
        with subprocess.Popen(["sleep", "60"], pass_fds=lease.descriptors) as child:
            settled(lambda: lease.state is LeaseState.LOST and not locks._watchdog._chores)
            assert others.lock("k").try_acquire() is None
            child.kill()
            child.wait()
            with others.lock("k", timeout=PATIENCE):
                pass
