"""Files: exclusion between processes, nothing left behind, and what the kernel does for the dead."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

import distlock
from distlock import BackendError, BackendUnavailable, ConfigurationError, LeaseState, LockLost, Manager, Unsupported
from distlock.backends.file import FileBackend
from distlock.backends.file._idle import MOST
from distlock.backends.file._record import LONGEST_NAME, Record, TokenClock, file_name, started_at

CHILD = """
import sys
import distlock

locks = distlock.connect(sys.argv[1])
exec(sys.argv[2])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def locks(folder: Path) -> Iterator[Manager]:
    with distlock.connect(f"file://{folder}") as manager:
        yield manager


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


def start(folder: Path, code: str, children: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, f"file://{folder}", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    children.append(child)
    return child


def say(child: subprocess.Popen[str], line: str = "go") -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def files(folder: Path) -> list[str]:
    return [path.name for path in (folder / "default").glob("*.lock")]


def settled(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def _queued(locks: Manager, count: int) -> bool:
    return len(locks.inspect("k").waiters) == count


def no_thread() -> bool:
    return not any(thread.name in ("distlock-flock", "distlock-idle-files") for thread in threading.enumerate())


def nothing_left(folder: Path) -> bool:
    """Files go a moment after their locks."""
    return files(folder) == [] and no_thread()


HOLD = "lease = locks.lock('k').acquire(); print(lease.token, flush=True); sys.stdin.readline(); lease.release()"


def test_processes_exclude_each_other_and_leave_no_file(
    folder: Path, tmp_path: Path, children: list[subprocess.Popen[str]]
) -> None:
    """The file is deleted at each release, and made again: the race of open, lock and unlink.

    stackoverflow.com/questions/17708885, "flock: removing locked file without race condition?".
    """
    counter, tokens = tmp_path / "counter", tmp_path / "tokens"
    counter.write_text("0")
    code = f"""
for _ in range(300):
    with locks.lock('k') as lease:
        n = int(open({str(counter)!r}).read())
        open({str(counter)!r}, 'w').write(str(n + 1))
        open({str(tokens)!r}, 'a').write(f'{{lease.token}}\\n')
"""
    for child in [start(folder, code, children) for _ in range(4)]:
        assert child.wait(150) == 0
    assert counter.read_text() == "1200"
    taken = [int(line) for line in tokens.read_text().split()]
    assert taken == sorted(set(taken))
    assert files(folder) == []  # the end of a process ends its linger


def test_a_killed_holder_frees_at_once(folder: Path, locks: Manager, children: list[subprocess.Popen[str]]) -> None:
    """redisson#3730, for a lock that the kernel keeps: no ttl to wait for."""
    child = start(folder, HOLD, children)
    token = int(hear(child))
    held = locks.inspect("k").holder
    assert held is not None
    assert held.pid == child.pid
    assert locks.lock("k").try_acquire() is None
    waiting = threading.Thread(target=child.kill)
    started = time.monotonic()
    waiting.start()
    with locks.lock("k", timeout=60) as lease:
        assert time.monotonic() - started < 29  # less than the ttl
        assert lease.token > token
    settled(partial(nothing_left, folder))


def test_a_dead_holder_is_not_shown(folder: Path, locks: Manager, children: list[subprocess.Popen[str]]) -> None:
    child = start(folder, HOLD, children)
    token = int(hear(child))
    child.kill()
    child.wait()
    assert locks.inspect("k").holder is None
    assert locks.list() == ()
    with locks.lock("k") as lease:  # what it wrote is a floor for the next token
        assert lease.token > token


def test_a_waiting_process_does_not_poll(folder: Path, locks: Manager, children: list[subprocess.Popen[str]]) -> None:
    code = """
import threading, time
threading.Thread(target=locks.lock('k').acquire, daemon=True).start()
for line in sys.stdin:
    print(time.process_time(), flush=True)
"""
    with locks.lock("k"):
        child = start(folder, code, children)
        settled(lambda: _waited_for(folder))
        say(child)
        before = float(hear(child))
        time.sleep(1.0)  # for it to use the processor in, if it does
        say(child)
        assert float(hear(child)) - before < 0.2


def _waited_for(folder: Path) -> bool:
    """Someone is blocked in flock(2), see proc_locks(5)."""
    inode = (folder / "default" / "k.lock").stat().st_ino
    blocked = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "-> FLOCK" in line]
    return any(int(fields[6].rpartition(":")[2]) == inode for fields in blocked)


def test_the_file_stays_while_someone_waits_for_it(
    folder: Path, locks: Manager, children: list[subprocess.Popen[str]]
) -> None:
    """Else all who wait would be woken one by one by a file without a name, and queue anew."""
    lease = locks.lock("k").acquire()
    inode = (folder / "default" / "k.lock").stat().st_ino
    child = start(folder, HOLD, children)
    settled(lambda: _waited_for(folder))
    lease.release()
    hear(child)
    assert (folder / "default" / "k.lock").stat().st_ino == inode
    say(child)
    assert child.wait(20) == 0
    assert files(folder) == []


def test_a_stopped_holder_knows_that_its_lease_is_over(folder: Path, children: list[subprocess.Popen[str]]) -> None:
    """SIGSTOP for longer than the ttl: the first look says LOST, whatever the watchdog has done."""
    code = """
lease = locks.lock('k', ttl=0.5).acquire()
print('held', flush=True)
sys.stdin.readline()
try:
    lease.ensure_held()
except distlock.LockLost:
    print(lease.state.value, flush=True)
"""
    child = start(folder, code, children)
    hear(child)
    child.send_signal(signal.SIGSTOP)
    time.sleep(1.2)  # two of its ttls
    say(child)
    child.send_signal(signal.SIGCONT)
    assert hear(child) == "lost"


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("end", ["exit", "release"])
def test_a_forked_child_cannot_free_the_lock_of_its_parent(folder: Path, locks: Manager, end: str) -> None:
    """python-redis-lock: a child that exits must not release; flock(2): an unlock in the child unlocks the parent."""
    lease = locks.lock("k").acquire()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if lease.state is LeaseState.LOST and lease.remaining() == 0 and locks.lock("k").try_acquire() is None:
                if end == "release":
                    with contextlib.suppress(LockLost):
                        lease.release()
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert lease.ensure_held() == lease.token
    with distlock.connect(f"file://{folder}") as other:
        assert other.lock("k").try_acquire() is None
        lease.release()
        with other.lock("k", timeout=0):
            pass


@pytest.mark.parametrize("forked", ["while it is held", "while its file is kept for later"])
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(
    folder: Path, locks: Manager, children: list[subprocess.Popen[str]], forked: str
) -> None:
    code = """
import os
lease = locks.lock('k').acquire()
if later: lease.release()
read, write = os.pipe()
if os.fork() == 0:
    os.close(write)
    os.read(read, 1)
    sys.stdin.readline()
else:
    if later: locks.lock('k').acquire()
    print('held', flush=True)
    sys.stdin.readline()
""".replace("later", str(forked != "while it is held"))
    child = start(folder, code, children)
    hear(child)
    child.kill()
    with locks.lock("k", timeout=20):
        pass


def test_a_deleted_file_is_a_lost_lock(folder: Path, locks: Manager) -> None:
    lost = threading.Event()
    lease = locks.lock("k", ttl=3.0).acquire()
    lease.on_lost(lost.set)
    (folder / "default" / "k.lock").unlink()
    assert lost.wait(20)
    with pytest.raises(LockLost, match="does not have it any more"):
        lease.ensure_held()


def test_releasing_a_lock_whose_file_was_deleted_leaves_the_new_one_alone(folder: Path, locks: Manager) -> None:
    lease = locks.lock("k").acquire()
    (folder / "default" / "k.lock").unlink()
    with locks.lock("k", timeout=0):
        with pytest.raises(LockLost):
            lease.release()
        assert files(folder) == ["k.lock"]
        assert locks.lock("k").try_acquire() is None


def test_a_file_that_is_wanted_again_at_once_is_the_same(folder: Path, locks: Manager) -> None:
    kept = 0
    for _ in range(100):
        with locks.lock("k"):
            file = (folder / "default" / "k.lock").open()
        with file, locks.lock("k"):
            kept += os.fstat(file.fileno()).st_nlink  # none if it was deleted
    assert kept > 0  # at least one of these came within the time for which it is kept
    assert locks.inspect("k").holder is None
    settled(partial(nothing_left, folder))


def test_a_folder_that_was_moved_away_is_not_used_any_more(folder: Path, locks: Manager) -> None:
    """Else two programs that look at the same path would both get in."""
    lock = locks.lock("k")
    lock.acquire().release()
    folder.rename(folder.with_name("moved"))
    with lock, distlock.connect(f"file://{folder}") as others:
        assert others.lock("k").try_acquire() is None


def test_few_files_are_kept_for_later(folder: Path, locks: Manager) -> None:
    """spring#3655: a million names are not a million files, nor descriptors."""
    fds = len(os.listdir("/proc/self/fd"))
    for number in range(3 * MOST):
        locks.lock(f"k{number}").acquire().release()
        assert len(os.listdir("/proc/self/fd")) <= fds + MOST + 2
    assert len(files(folder)) <= MOST
    settled(partial(nothing_left, folder))


def test_waiters_of_a_process_come_in_order(locks: Manager) -> None:
    order: list[int] = []
    threads = []
    with locks.lock("k"):
        for n in range(8):

            def work(n: int = n) -> None:
                with locks.lock("k"):
                    order.append(n)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            settled(partial(_queued, locks, n + 1))
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_waiter_that_gave_up_passes_the_lock_on(folder: Path, locks: Manager) -> None:
    """Its thread is still in the kernel, gets the lock, and gives it up at once."""
    lease = locks.lock("k").acquire()
    with pytest.raises(distlock.AcquireTimeout, match="held by"):
        locks.lock("k", timeout=0.05).acquire()
    assert locks.inspect("k").waiters == ()
    lease.release()
    settled(partial(nothing_left, folder))


def test_a_woken_waiter_that_never_comes_does_not_keep_the_lock(locks: Manager) -> None:
    """A stopped or starved thread costs the others one provisional grant, not the lock."""
    backend = locks._backend
    lease = locks.lock("k").acquire()
    claim = distlock._types.Claim("sleeper", "k", 30.0, True)
    sleeper = backend.watch(distlock._types.Busy(claim), lambda: None, 0.0)
    got = threading.Event()

    def work() -> None:
        with locks.lock("k"):
            got.set()

    thread = threading.Thread(target=work)
    thread.start()
    settled(lambda: len(locks.inspect("k").waiters) == 2)
    lease.release()
    assert got.wait(20)
    thread.join()
    sleeper.close()


def test_nothing_is_left_after_a_thousand_random_steps(folder: Path, locks: Manager) -> None:
    """redisson#7272: no file, descriptor or thread."""
    locks.lock("warm").acquire().release()
    settled(partial(nothing_left, folder))
    fds = len(os.listdir("/proc/self/fd"))
    dice = random.Random(7)

    def work(dice: random.Random) -> None:
        for _ in range(250):
            with contextlib.suppress(distlock.AcquireTimeout):
                lease = locks.lock(f"k{dice.randrange(3)}", timeout=dice.choice([0, 0.001, 0.01, None])).acquire()
                if dice.random() < 0.2:
                    time.sleep(0.001)
                lease.release()

    threads = [threading.Thread(target=work, args=(random.Random(dice.random()),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled(partial(nothing_left, folder))
    assert locks._watchdog.holds == []
    settled(lambda: len(os.listdir("/proc/self/fd")) <= fds)


@pytest.mark.anyio
async def test_a_cancelled_task_leaves_nothing(folder: Path, locks: Manager) -> None:
    lease = await locks.lock("k").acquire_async()
    with anyio.move_on_after(0.05):
        await locks.lock("k").acquire_async()
    await anyio.to_thread.run_sync(lambda: settled(partial(_queued, locks, 0)))
    await lease.release()
    async with locks.lock("k", timeout=20):
        pass
    await anyio.to_thread.run_sync(lambda: settled(partial(nothing_left, folder)))


@pytest.mark.parametrize(
    "key", ["a/b", ".", "..", "a\0b", "a\nb", "A", "ä", "🔒" * 128, "x" * 512, "%2f", "~", " ", "k.lock"]
)
def test_any_name_is_a_file_of_its_own(folder: Path, locks: Manager, key: str) -> None:
    with locks.lock(key) as lease, locks.lock("plain"), locks.lock("a"):
        assert len(set(files(folder))) == 3
        assert all(len(name) <= LONGEST_NAME + 10 for name in files(folder))
        found = {seen.key: seen.holder for seen in locks.list()}
        holder = found[key]
        assert holder is not None
        assert holder.token == lease.token
    settled(partial(nothing_left, folder))


def test_names_do_not_differ_by_case_alone() -> None:
    """Some file systems ignore case."""
    names = [file_name(key).casefold() for key in ("a", "A", "%41", "%61", "aA", "Aa", "é", "É")]
    assert len(set(names)) == len(names)


def test_inspect_and_list_know_the_holder(folder: Path, locks: Manager) -> None:
    assert locks.list() == ()  # there is no folder yet
    with locks.lock("a*b", metadata={"order": "1"}, owner="me"):
        (folder / "default" / "torn.lock").write_text("1 half a li")
        (folder / "default" / "foreign.lock").write_text("1 a b c d e f g h\n")
        (seen,) = locks.list("a*")
        assert seen.holder is not None
        assert (seen.holder.owner, seen.holder.pid) == ("me", os.getpid())
        assert dict(seen.holder.metadata) == {"order": "1"}
        assert seen.holder.held_for is not None
        assert seen.holder.ttl is None
        assert locks.list("ab") == ()


@pytest.mark.parametrize("make", ["a file in the way", "a folder in the way"])
def test_a_folder_that_cannot_be_used_is_said(folder: Path, locks: Manager, make: str) -> None:
    if make == "a file in the way":
        folder.write_text("")
    else:
        (folder / "default" / "k.lock").mkdir(parents=True)
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendUnavailable, match=r"cannot be used.*writable") as caught:
        locks.lock("k").acquire()
    assert caught.value.key == "k"
    assert caught.value.backend == f"file://{folder}"
    assert len(os.listdir("/proc/self/fd")) <= fds


def test_listing_a_folder_that_cannot_be_read_is_said(folder: Path, locks: Manager) -> None:
    folder.mkdir()
    (folder / "default").write_text("")
    with pytest.raises(BackendUnavailable):
        locks.list()


def test_a_full_disk_leaves_nothing(folder: Path, locks: Manager) -> None:
    """A real one: a tmpfs of one page, filled."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=False).returncode:
        pytest.fail("this test mounts a file system: run it as root")
    try:
        locks.lock("warm").acquire().release()
        settled(partial(nothing_left, folder))  # else its page is free in a moment
        with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        with pytest.raises(BackendError, match="disk is full; free some space"):
            locks.lock("k").acquire()
        settled(partial(nothing_left, folder))
        (folder / "ballast").unlink()
        with locks.lock("k", timeout=0):
            pass
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_many_open_files_is_said(locks: Manager) -> None:
    backend = locks._backend
    assert isinstance(backend, FileBackend)
    error = backend._mapped(OSError(errno.EMFILE, "Too many open files"), "k")
    assert "raise the limit" in str(error)


def test_waiters_of_a_file_that_cannot_be_opened_any_more_are_told(folder: Path, locks: Manager) -> None:
    lease = locks.lock("k").acquire()
    errors: list[Exception] = []

    def work() -> None:
        try:
            locks.lock("k").acquire()
        except BackendUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    settled(lambda: _waited_for(folder))
    path = folder / "default" / "k.lock"
    path.unlink()
    path.mkdir()
    with contextlib.suppress(LockLost):
        lease.release()
    thread.join(20)
    assert len(errors) == 1


def test_tokens_rise_over_boots_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TokenClock(tmp_path).next()
    assert TokenClock(tmp_path).next() > first
    boot = tmp_path / "boot"
    boot.write_text("another-boot\n")
    monkeypatch.setattr("distlock.backends.file._record.BOOT_ID", str(boot))
    assert TokenClock(tmp_path).next() > first
    assert [path.name for path in tmp_path.glob(".clock-*")] == [".clock-another-boot"]
    monkeypatch.setattr("distlock.backends.file._record.BOOT_ID", str(tmp_path / "no-such-file"))
    assert TokenClock(tmp_path).next() > first


def test_the_time_a_process_started_tells_it_from_a_later_one() -> None:
    assert started_at(os.getpid()) > 0
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert started_at(child.pid) == 0


def test_a_record_survives_being_written_over_a_longer_one() -> None:
    claim = distlock._types.Claim("id", "a b\nc", 1.0, False, "o w", False, '{"h":"x y"}')
    data = Record.line(claim, 5, 1.5) + b"rest of a longer one\n"
    record = Record.read(data)
    assert record is not None
    assert (record.key, record.owner, record.about, record.token) == ("a b\nc", "o w", '{"h":"x y"}', 5)


@pytest.mark.parametrize(
    ("url", "message"), [("file://host/dir", "three slashes"), ("file:///dir?x=1", "nothing else"), ("file:/x", "URL")]
)
def test_a_wrong_url_is_said(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        distlock.connect(url)


def test_the_default_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says: a program started by cron has another one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("distlock.backends.file._COMMON", str(tmp_path))
    private = tmp_path / f"distlock-{os.getuid()}"
    assert distlock.connect("file://").address == f"file://{private}"
    assert private.stat().st_mode & 0o777 == 0o700
    private.rmdir()
    private.symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="someone else"):
        distlock.connect("file://")
    private.unlink()
    private.write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        distlock.connect("file://")


def test_what_files_cannot_do_is_said_at_construction(locks: Manager) -> None:
    with pytest.raises(Unsupported, match="by owner"):
        locks.lock("k", owner="me", reentrant=True)


def test_closing_frees_what_is_held_and_tells_who_waits(folder: Path) -> None:
    locks = distlock.connect(f"file://{folder}")
    lease = locks.lock("k").acquire()
    locks.close()
    assert lease.state is LeaseState.LOST
    assert files(folder) == []
