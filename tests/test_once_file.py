"""Results on files: what the disk, other programs and bad luck may do to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock import (
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    LockLost,
    Manager,
    ResultUnavailable,
)
from distlock.backends.base import Busy, Claim, Done, Grant, Subscription, now
from distlock.backends.file import FileBackend, _results
from distlock.backends.file._flock import LockFile
from distlock.backends.file._results import FileResults

from .interruption import Interruption
from .test_file import folder, locks, settled

__all__ = ("folder", "locks")

TTL = 600.0


@pytest.fixture
def results(folder: Path) -> Iterator[Callable[[], FileResults]]:
    """Makes stores of the same results, as several processes have them."""
    with ExitStack() as exits:

        def make() -> FileResults:
            backend = FileBackend(folder).results()
            assert isinstance(backend, FileResults)
            exits.callback(backend.close)
            return backend

        yield make


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each completion looks at the records."""
    monkeypatch.setattr(_results, "CHANCE", 1)
    monkeypatch.setattr(_results, "FOLDERS", 1)


def do(locks: Manager, key: str = "k", result: Any = "done", ttl: float = TTL) -> Any:
    with locks.once(key, ttl=ttl, timeout=20) as work:
        return work.result if work.replayed else work.complete(result)


def files(folder: Path) -> list[str]:
    """Of the results, with their endings; the locks' linger for a moment."""
    return sorted(path.name for path in (folder / "default+results").glob("*/*"))


def lock_files(folder: Path) -> list[str]:
    return [path.name for path in (folder / "default+results").glob("*.lock")]


def the_record(folder: Path) -> Path:
    (record,) = (folder / "default+results").glob("*/*.record")
    return record


def granted(results: FileResults, claim: Claim) -> Grant:
    answer = results.acquire(claim, now() + 5)
    assert isinstance(answer, Grant)
    return answer


def claim(name: str, key: str = "k", *, wait: bool = False) -> Claim:
    return Claim(name, key, 30.0, wait)


def test_a_result_is_for_the_eyes_of_its_user_alone(folder: Path, locks: Manager) -> None:
    before = os.umask(0)
    try:
        do(locks)
    finally:
        os.umask(before)
    assert the_record(folder).stat().st_mode & 0o777 == 0o600


def test_no_namespace_has_the_folder_of_results(folder: Path, locks: Manager) -> None:
    do(locks)
    (name,) = (path.name for path in folder.iterdir())
    with pytest.raises(ConfigurationError, match="namespace"):
        distlock.connect(f"file://{folder}", namespace=name)


# What disks do


def test_a_full_disk_keeps_the_claim_until_the_result_is_stored(folder: Path, locks: Manager) -> None:
    """A real one: a tmpfs, filled."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=False).returncode:
        pytest.fail("this test mounts a file system: run it as root")
    try:
        with locks.once("k", ttl=TTL) as work:
            _fill(folder / "ballast")
            with pytest.raises(ResultUnavailable, match="disk is full; free some space") as caught:
                work.complete("paid" * 2000)
        assert caught.value.result == "paid" * 2000
        assert isinstance(caught.value.__cause__, BackendError)
        settled(lambda: files(folder) == [])  # nothing half-written, but while it is tried again
        assert locks.results_manager().inspect("k").holder is not None
        (folder / "ballast").unlink()
        settled(lambda: files(folder) == ["k.record"])
        assert do(locks, result="again") == "paid" * 2000
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_folder_that_cannot_be_written_keeps_the_claim_until_the_result_is_stored(
    folder: Path, locks: Manager
) -> None:
    in_the_way = _part(folder)
    with locks.once("k", ttl=TTL) as work:
        in_the_way.mkdir(parents=True)
        with pytest.raises(ResultUnavailable, match=r"cannot be used.*writable") as caught:
            work.complete("paid")
    assert isinstance(caught.value.__cause__, BackendUnavailable)
    assert locks.results_manager().inspect("k").holder is not None
    in_the_way.rmdir()
    settled(lambda: files(folder) == ["k.record"])
    assert do(locks, result="again") == "paid"


def _part(folder: Path) -> Path:
    """The file that a record of "k" is written to."""
    return folder / "default+results" / _results._place("k").replace("record", "part")


def test_what_a_process_left_half_written_is_no_record(folder: Path, locks: Manager) -> None:
    _part(folder).parent.mkdir(parents=True)
    _part(folder).write_text("1 its-claim 99999999999999999 5000 k\n{" + "x" * 3000)
    assert do(locks) == "done"
    assert files(folder) == ["k.record"]
    assert do(locks, result="again") == "done"


@pytest.mark.parametrize("torn", ["", "short", "headless", "1 a b c d\n", "2 x 1 1 k\nx", "\0" * 512])
def test_work_whose_record_is_torn_is_not_done_again(folder: Path, locks: Manager, torn: str) -> None:
    """That it was done is known: there is a record. But not for how long that is to be known."""
    do(locks)
    whole = the_record(folder).read_bytes()
    broken = {"short": whole[:-1], "headless": whole.partition(b"\n")[2]}.get(torn, torn.encode())
    the_record(folder).write_bytes(broken)
    with pytest.raises(ResultUnavailable, match="cannot be read"):
        do(locks)
    kept = locks.results.get("k")
    assert kept is not None
    assert (kept.state, kept.expires_in) == ("completed", None)
    assert locks.results.list() == ()  # nobody knows its name
    assert locks.results.forget("k")
    assert do(locks, result="again") == "again"


def test_a_link_is_not_followed(folder: Path, locks: Manager) -> None:
    do(locks, "other")
    victim = folder / "victim"
    victim.write_text("precious")
    place = folder / "default+results" / _results._place("k")
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(victim)
    with pytest.raises(BackendUnavailable, match="cannot be used"):
        do(locks)
    with pytest.raises(BackendUnavailable):
        locks.results.forget("k")
    place.unlink()
    _part(folder).symlink_to(victim)
    with pytest.raises(ResultUnavailable):
        do(locks)
    _part(folder).unlink(missing_ok=True)
    settled(lambda: place.exists())
    assert victim.read_text() == "precious"


def test_a_record_that_cannot_be_read_costs_no_lock(
    folder: Path, results: Callable[[], FileResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found only with the lock in hand: what says that it is not ours must give it up."""
    mine, theirs = results(), results()
    place = folder / "default+results" / _results._place("k")

    def get_in_the_way(path: str) -> LockFile | None:
        place.mkdir(parents=True)
        return FileBackend._try_lock(mine, path)

    monkeypatch.setattr(mine, "_try_lock", get_in_the_way)
    with pytest.raises(BackendUnavailable):
        mine.acquire(claim("mine"), now() + 5)
    place.rmdir()
    granted(theirs, claim("theirs"))


# Times


def test_a_result_outlives_the_machine_and_changes_of_its_clock(
    folder: Path, locks: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(locks, ttl=1000)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 10_000)  # within a boot: nothing is counted from it
    with distlock.connect(f"file://{folder}") as others:
        assert do(others, result="again") == "done"
        do(others, "later", ttl=1000)
        later = others.results.get("later")
        assert later is not None
        assert later.expires_in is not None
        assert later.expires_in <= 1000
    monkeypatch.setattr(time, "time", lambda: right() + 500)
    boot = folder / "boot"
    boot.write_text("another-boot\n")
    monkeypatch.setattr("distlock.backends.file._record.BOOT_ID", str(boot))
    with distlock.connect(f"file://{folder}") as others:
        kept = others.results.get("k")
        assert kept is not None
        assert kept.expires_in is not None
        assert 100 < kept.expires_in <= 501
    monkeypatch.setattr(time, "time", lambda: right() + 1001)
    boot.write_text("a-later-boot\n")
    with distlock.connect(f"file://{folder}") as others:
        assert do(others, result="again") == "again"


@pytest.mark.usefixtures("swept")
def test_what_is_over_is_swept_up(folder: Path, locks: Manager) -> None:
    for number in range(10):
        do(locks, f"short{number}", ttl=0.1)
    do(locks, "long")
    part = folder / "default+results" / "00" / "k.part"
    part.write_text("of a process that died")
    foreign = part.with_name("README")
    foreign.touch()
    settled(lambda: len(locks.results.list()) == 1)
    do(locks, "last")
    assert files(folder) == ["README", "last.record", "long.record"]
    settled(lambda: lock_files(folder) == [])


@pytest.mark.usefixtures("swept")
def test_a_completion_looks_at_few_records(folder: Path, locks: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_results, "LOOKS", 0)
    for number in range(10):
        do(locks, f"short{number}", ttl=0.1)
    settled(lambda: not locks.results.list())
    monkeypatch.setattr(_results, "LOOKS", 3)
    for number in range(4):
        do(locks, f"long{number}", ttl=TTL)
        assert len(files(folder)) >= 10 + 1 + number - 3 * (1 + number)
    settled(lambda: do(locks, f"{now()}", ttl=0.1) and len(files(folder)) < 10)  # wherever it begins to look


def test_one_completion_in_a_few_looks_at_records(locks: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps: list[object] = []
    monkeypatch.setattr(FileResults, "_sweep", lambda results: sweeps.append(results))
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for number in range(600):
        do(locks, str(number))
    assert 0 < len(sweeps) < 100  # of 19, on average


@pytest.mark.usefixtures("swept")
def test_what_is_done_again_is_not_swept_up(folder: Path, locks: Manager) -> None:
    """What is over is read without the lock: by the time that it is to be deleted there may be another record."""
    do(locks, ttl=0.1)
    settled(lambda: locks.results.get("k") is None)
    with locks.once("k", ttl=TTL) as work:
        the_place = folder / "default+results" / _results._place("k")
        the_place.write_text("1 x 1 1 k\nx")  # is over
        backend: Any = locks.results_manager()._backend
        backend._sweep()
        assert the_place.exists()  # its lock is held
        work.complete("again")
    backend._remove_locked(str(the_place))
    assert do(locks) == "again"


def test_what_is_over_is_deleted_by_who_has_the_lock(folder: Path, locks: Manager) -> None:
    do(locks, ttl=0.1)
    settled(lambda: locks.results.get("k") is None)
    with locks.once("k", ttl=TTL):
        assert files(folder) == []


# Who else there is


def test_what_was_completed_just_before_it_has_the_lock_is_not_granted(
    results: Callable[[], FileResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = results(), results()
    grant = granted(worker, claim("worker"))

    def lock_late(path: str) -> LockFile | None:
        assert worker.complete(grant, b"done", TTL, now() + 5)
        return FileBackend._try_lock(other, path)

    monkeypatch.setattr(other, "_try_lock", lock_late)
    answer = other.acquire(claim("other"), now() + 5)
    assert isinstance(answer, Done)
    assert answer.record == b"done"
    assert other._held == {}
    assert worker.inspect("k", now() + 5).holder is None


def test_who_has_the_lock_only_to_look_is_not_taken_for_a_worker(
    results: Callable[[], FileResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint may be another one."""
    worker, other, looking = results(), results(), results()
    grant = granted(worker, claim("worker"))
    looks: list[object] = []

    def lock_late(path: str) -> LockFile | None:
        worker.complete(grant, b"done", TTL, now() + 5)
        looks.append(FileBackend.acquire(looking, claim("looking"), now() + 5))
        return FileBackend._try_lock(other, path)

    monkeypatch.setattr(other, "_try_lock", lock_late)
    assert isinstance(other.acquire(claim("other"), now() + 5), Done)
    assert isinstance(looks[0], Grant)


def test_a_completion_is_found_by_its_own_claim_only(results: Callable[[], FileResults]) -> None:
    worker, other = results(), results()
    grant = granted(worker, claim("worker"))
    for _ in range(2):  # the reply to the first may have been interrupted
        assert worker.complete(grant, b"done", TTL, now() + 5)
    stranger = Grant(claim("stranger"), grant.token, grant.deadline)
    assert not worker.complete(stranger, b"mine", TTL, now() + 5)
    assert not other.complete(stranger, b"mine", TTL, now() + 5)
    kept = other.recorded("k", now() + 5)
    assert kept is not None
    assert kept[0] == b"done"


def test_a_lock_whose_file_was_deleted_keeps_no_result(folder: Path, locks: Manager) -> None:
    def work_without_a_lock() -> None:
        with locks.once("k", ttl=TTL) as work:
            (folder / "default+results" / "k.lock").unlink()
            work.complete("first")

    with pytest.raises(LockLost):
        work_without_a_lock()
    assert files(folder) == []
    assert do(locks, result="second") == "second"


def test_those_who_wait_are_told_at_once(locks: Manager) -> None:
    answers: list[Any] = []
    with distlock.connect(locks.address) as others:
        with locks.once("k", ttl=TTL) as work:
            threads = [threading.Thread(target=lambda: answers.append(do(others))) for _ in range(20)]
            for thread in threads:
                thread.start()
            settled(partial(_queued, others, 20))
            work.complete("once")
        for thread in threads:
            thread.join(20)
        assert answers == ["once"] * 20


def _queued(locks: Manager, count: int) -> bool:
    found = locks.results.get("k")
    return found is not None and len(found.waiters) == count


def test_whoever_does_not_come_keeps_no_other_from_the_result(
    folder: Path, results: Callable[[], FileResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their process has the lock in the end, and tells them all that there is nothing to wait for."""
    monkeypatch.setattr("distlock.backends.file._line.PROVISIONAL", 120.0)
    worker, others = results(), results()
    grant = granted(worker, claim("worker"))
    woken, watches = waiting(others, 3)
    assert worker.complete(grant, b"done", TTL, now() + 5)
    assert all(each.wait(20) for each in woken)
    for watch in watches:
        watch.close()
    settled(lambda: lock_files(folder) == [])


def test_those_of_the_same_process_need_no_lock_to_be_told(
    results: Callable[[], FileResults], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiter of another process that was stopped may have got it."""
    go_on, lock = threading.Event(), LockFile.lock

    def lock_late(file: LockFile) -> None:
        go_on.wait(20)
        lock(file)

    monkeypatch.setattr(LockFile, "lock", lock_late)
    store = results()
    grant = granted(store, claim("worker"))
    woken, watches = waiting(store, 3)
    assert store.complete(grant, b"done", TTL, now() + 5)
    assert all(each.is_set() for each in woken)
    for watch in watches:
        watch.close()
    go_on.set()


def waiting(store: FileResults, count: int) -> tuple[list[threading.Event], list[Subscription]]:
    """So many who wait, and never come when they are woken."""
    woken = [threading.Event() for _ in range(count)]
    watches = []
    for number, event in enumerate(woken):
        busy = store.acquire(claim(f"waiter{number}", wait=True), now() + 5)
        assert isinstance(busy, Busy)
        watches.append(store.watch(busy, event.set, now() + 5))
    return woken, watches


@pytest.mark.usefixtures("untraced")
def test_work_that_is_interrupted_anywhere_is_done_or_free(folder: Path) -> None:
    """Ctrl-C at each line of the store: never in progress with nobody at it."""
    with distlock.connect(f"file://{folder}") as locks, distlock.connect(f"file://{folder}") as others:
        do(locks, "warm")
        for line in range(1, 2000):
            key, runs = f"k{line}", 0
            try:
                with Interruption(line, "file") as interruption, locks.once(key, ttl=TTL) as work:
                    runs = 1
                    work.complete("first")
            except KeyboardInterrupt:
                pass
            settled(lambda: not locks.results_manager()._watchdog._chores)
            answer = do(others, key, "second")
            assert answer == "second" or runs
            assert do(locks, key, "third") == answer
            if not interruption.happened:
                break
        assert 50 < line < 1999
        assert not [name for name in files(folder) if not name.endswith(".record")]
