"""``distlock run``: a command under a lock, which it never outlives. Real processes, real signals, real terminals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import distlock
from distlock.cli import _guard
from distlock.testing.proxy import FaultProxy

from .children import untraced
from .servers import RedisServer

ROOT = Path(distlock.__file__).parent.parent
PROGRAM = [sys.executable, "-m", "distlock"]
TIMEOUT = 150
TTL = 5
STUBBORN = """
trap '' TERM
echo $$ >> pids
sleep 1001 & echo $! >> pids
setsid sleep 1002 & echo $! >> pids
sh -c 'trap "" TERM; echo $$ >> pids; kill -STOP $$' &
(sh -c 'echo $$ >> pids; exec sleep 1003' &)
while [ "$(wc -l < pids)" -lt 5 ]; do sleep 0.01; done
mv pids all-pids
while :; do sleep 1004; done
"""
"""Deaf to TERM, with children: plain, in a session of their own, stopped, and without a parent."""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DISTLOCK_")}
    return {**inherited, "PYTHONPATH": str(ROOT), "DISTLOCK_URL": f"file://{tmp_path}/locks", "TERM": "xterm"}


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, **more: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env}
        started.append(subprocess.Popen([*PROGRAM, "run", *args], text=True, cwd=tmp_path, **{**pipes, **more}))
        return started[-1]

    yield start
    for process in started:
        end_all(process.pid)
        process.communicate(timeout=TIMEOUT)


def end_all(pid: int) -> None:
    """The process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for one in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def wait_for(path: Path) -> str:
    """What it says, once it is there and whole."""
    deadline = time.monotonic() + TIMEOUT
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.005)
    return path.read_text()


def alive(pids: list[int]) -> list[int]:
    def lives(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if lives(pid)]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["sh", "-c", "kill -INT $$"], 130),
        (["./none-such"], 127),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
    ],
)
def test_the_exit_status_is_that_of_the_command(start, tmp_path, command, status):
    code, out, err = finished(start("k", "--", *command))
    assert (code, out) == (status, "")
    assert err == "" if status < 126 or status > 127 else re.fullmatch(r"distlock: \S+: .*\n", err)
    assert list(tmp_path.rglob("*.lock")) == []


def test_it_knows_what_it_holds(start):
    told = "echo $DISTLOCK_KEY; echo $DISTLOCK_TOKEN; echo $DISTLOCK_OWNER"
    outputs = [finished(start("my key", "--", "sh", "-c", told))[1].splitlines() for _ in range(2)]
    assert outputs[0][0] == "my key"
    assert int(outputs[0][1]) < int(outputs[1][1])
    assert outputs[0][2] != outputs[1][2]


def test_its_input_and_output_are_its_own(start):
    process = start("k", "--", "sh", "-c", "cat; echo mistake >&2", stdin=subprocess.PIPE)
    assert process.communicate("given\n", timeout=TIMEOUT) == ("given\n", "mistake\n")


def test_options_of_the_command_are_left_to_it(start):
    assert finished(start("k", "--ttl", "9", "--", "printf", "%s ", "--ttl", "--help", "--"))[1] == "--ttl --help -- "


@pytest.mark.parametrize("options", [["--no-wait"], ["-n"], ["--timeout", "0"], ["--timeout", "0.2"]])
def test_a_lock_that_is_taken_is_75(start, env, tmp_path, options):
    with distlock.connect(env["DISTLOCK_URL"]) as locks, locks.lock("k"):
        code, out, err = finished(start("k", *options, "--", "touch", "ran"))
        assert (code, out) == (75, "")
        assert re.fullmatch(rf"distlock: 'k' was not acquired in .* s: held by .* pid {os.getpid()} .*\n", err)
        assert finished(start("k", *options, "-E", "3", "--", "touch", "ran"))[0] == 3
        assert finished(start("k", *options, "--conflict-exit-code", "0", "--", "touch", "ran"))[0] == 0
    assert not (tmp_path / "ran").exists()
    assert finished(start("k", *options, "--", "touch", "ran"))[0] == 0


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["k"],
        ["k", "--"],
        ["k", "true"],
        ["k", "printf", "--", "-n"],
        ["k", "--frobnicate", "--", "true"],
        ["k", "--ttl", "0.5", "--", "true"],
        ["k", "--ttl", "nan", "--", "true"],
        ["k", "--ttl", "inf", "--", "true"],
        ["k", "--timeout", "-1", "--", "true"],
        ["k", "--no-wait", "--timeout", "3", "--", "true"],
        ["k", "--ttl", "8", "--grace", "3", "--", "true"],
        ["k", "--grace", "-1", "--", "true"],
        ["k", "-E", "256", "--", "true"],
        ["", "--", "true"],
        ["x" * 513, "--", "true"],
        ["k", "--url", "gopher://here", "--", "true"],
        ["k", "--url", "memory://", "--", "true"],
    ],
)
def test_wrong_usage_is_64_and_one_line(start, args):
    code, out, err = finished(start(*args))
    assert (code, out) == (64, "")
    assert re.fullmatch(r"distlock: .*\n", err)


def test_a_store_that_cannot_be_reached_is_69(start, tmp_path):
    code, out, err = finished(start("k", "--url", "redis://:secret@127.0.0.1:1/0", "--", "touch", "ran"))
    assert (code, out) == (69, "")
    assert re.fullmatch(r"distlock: .*127\.0\.0\.1:1.*\n", err)
    assert "secret" not in err
    assert not (tmp_path / "ran").exists()


def test_without_a_store_it_says_whom_the_lock_keeps_out(start, env, tmp_path):
    env.pop("DISTLOCK_URL")
    code, _, err = finished(start(f"test-{tmp_path}", "--", "true"))
    assert code == 0
    assert "this machine only" in err


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2"])
def test_signals_go_to_the_command(start, tmp_path, name):
    script = f"trap 'echo {name}; exit 5' {name}; echo > ready; while :; do sleep 0.01; done"
    process = start("k", "--", "sh", "-c", script)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert finished(process)[:2] == (5, f"{name}\n")


@pytest.mark.parametrize("nohup", [False, True])
def test_the_command_finds_what_it_would_find_without(start, env, tmp_path, nohup):
    """Signals, open files, the environment but for what it is told, limits."""
    script = """
        grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; umask; ulimit -n
        env | grep -v -e DISTLOCK -e LC_CTYPE | sort
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        with open(tmp_path / "given", "w") as given:
            more: dict[str, Any] = {
                "pass_fds": [given.fileno()],
                "stdin": subprocess.DEVNULL,
                "stderr": subprocess.DEVNULL,
            }
            plain = subprocess.check_output(["sh", "-c", script], env=env, cwd=tmp_path, text=True, **more)
            assert finished(start("k", "--", "sh", "-c", script, **more))[1] == plain
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_it_runs_with_what_it_is_given(env, tmp_path, closed):
    """cron and daemons close what they do not need."""

    def status(command: str) -> int:
        line = f'"$PY" -m distlock run {command} {closed}'
        env["PY"] = sys.executable
        return subprocess.run(["sh", "-c", line], env=env, cwd=tmp_path, timeout=TIMEOUT, check=False).returncode

    assert status("k -- sh -c 'echo ran > ran; exit 3'") == 3
    assert (tmp_path / "ran").read_text() == "ran\n"
    with distlock.connect(env["DISTLOCK_URL"]) as locks, locks.lock("k"):
        assert status("k -n -- true") == 75


def test_a_script_that_does_not_say_whose_it_is_is_the_shells(start, tmp_path):
    (tmp_path / "script").write_text("echo $0 $1\n")
    (tmp_path / "script").chmod(0o755)
    assert finished(start("k", "--", "./script", "one")) == (0, "./script one\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_waits_leaves_nothing_in_the_queue(start, env, tmp_path, redis_url, number):
    key = f"waits-{os.getpid()}"
    with distlock.connect(redis_url) as locks, locks.lock(key):
        process = start(key, "--url", redis_url, "--", "touch", "ran", env=untraced(env))
        wait_until(lambda: locks.inspect(key).waiters)
        process.send_signal(number)
        assert finished(process) == (128 + number, "", "")
        assert locks.inspect(key).waiters == ()
    assert not (tmp_path / "ran").exists()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


LEAVER = """
sh -c 'trap "" TERM; echo $$ >> pids; exec sleep 1001' &
setsid sh -c 'echo $$ >> pids; exec sleep 1002' &
while [ "$(wc -l < pids)" -lt 2 ]; do sleep 0.01; done
exit 3
"""


def test_what_it_leaves_in_the_background_ends_with_it(start, tmp_path):
    """Else it would go on without the lock. What has left the group, as daemons do, has left on purpose."""
    (tmp_path / "pids").touch()
    process = start("k", "--ttl", "300", "--grace", "0.2", "--", "sh", "-c", LEAVER, stdout=subprocess.DEVNULL)
    assert process.wait(TIMEOUT) == 3
    left = alive([int(line) for line in (tmp_path / "pids").read_text().split()])
    try:
        wait_until(lambda: [psutil.Process(pid).cmdline() for pid in left] == [["sleep", "1002"]])
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


ZOMBIE = """
import os, time
if os.fork():
    while not os.path.exists("pid"):
        time.sleep(0.01)
    os._exit(0)
if not os.fork():
    os._exit(0)  # in the group of the command, and never reaped
os.setsid()
with open("part", "w") as file:
    print(os.getpid(), file=file)
os.rename("part", "pid")
time.sleep(1000)
"""


def test_a_zombie_of_someone_else_holds_nobody_up(start, tmp_path):
    process = start("k", "--ttl", "300", "--", sys.executable, "-c", ZOMBIE, stdout=subprocess.DEVNULL)
    try:
        assert process.wait(TIMEOUT) == 0
    finally:
        os.kill(int(wait_for(tmp_path / "pid")), signal.SIGKILL)


# The end of the lease.


ENDS = [
    "the line is dead",
    "run is killed",
    "run is stopped",
    "the guard is killed",
    "the guard is stopped",
    "it is ended by force",
]


@pytest.mark.parametrize("how", ENDS)
def test_nothing_of_the_command_outlives_the_lease(start, tmp_path, how):
    """etcdctl, consul#9788: it went on, and someone else began. PDEATHSIG misses grandchildren."""
    with RedisServer() as server, FaultProxy(server.address) as proxy, distlock.connect(server.url) as locks:
        stands_still = how in ("the line is dead", "run is stopped", "the guard is stopped")
        ttl = 20 if stands_still else TTL  # so that who sees to it then has time on a slow machine
        process = start("k", "--ttl", str(ttl), "--url", proxy.url, "--", "sh", "-c", STUBBORN)
        pids = [int(line) for line in wait_for(tmp_path / "all-pids").split()]
        assert len(alive(pids)) == 5
        guard = psutil.Process(process.pid).children()[0]
        hurt(how, process, guard, locks, proxy)
        if how == "it is ended by force":  # the store does not wait for the holder
            wait_until(lambda: process.poll() is not None)
        with locks.lock("k", timeout=TIMEOUT):
            assert alive(pids) == []
        if how == "run is stopped":
            process.send_signal(signal.SIGCONT)
        if how != "run is killed":
            code, _, err = finished(process)
            assert code == 70
            assert re.search(r"^distlock: the (command was ended|guard of the command)", err, re.MULTILINE)
        wait_until(lambda: alive([guard.pid]) == [])  # which it outlives by a moment


def hurt(how: str, process: Any, guard: Any, locks: distlock.Manager, proxy: FaultProxy | None = None) -> None:
    if how in ("the line is dead", "the guard is stopped"):
        if how == "the guard is stopped":
            guard.suspend()
        assert proxy is not None
        proxy.pause()
    elif how == "run is killed":
        process.kill()
    elif how == "run is stopped":
        process.send_signal(signal.SIGSTOP)
    elif how == "the guard is killed":
        guard.kill()
    else:
        holder = locks.inspect("k").holder
        assert holder is not None
        assert locks.force_release("k", token=holder.token or 0)


@pytest.mark.parametrize("how", ["run is killed", "the guard is killed", "it is ended by force"])
def test_nor_where_the_kernel_frees_the_lock_of_the_dead(start, env, tmp_path, how):
    """The guard has the lock file open as well, until nothing of the command is left."""
    with distlock.connect(env["DISTLOCK_URL"]) as locks:
        process = start("k", "--ttl", str(TTL), "--", "sh", "-c", STUBBORN)
        pids = [int(line) for line in wait_for(tmp_path / "all-pids").split()]
        guard = psutil.Process(process.pid).children()[0]
        if how == "run is killed":
            guard.suspend()  # else it might be done before we look
        hurt(how, process, guard, locks)
        if how == "run is killed":
            process.wait()
            assert locks.lock("k").try_acquire() is None
            guard.resume()
        with locks.lock("k", timeout=TIMEOUT):
            assert alive(pids) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_command_begins_is_for_the_command(start, env, number):
    process = start("k", "--", "sleep", "1000", env=untraced(env))
    wait_until(lambda: psutil.Process(process.pid).children())
    process.send_signal(number)
    assert finished(process)[0] == 128 + number


def test_everybody_slept_for_longer_than_the_lease(start, env, tmp_path):
    """A suspended machine, a frozen container."""
    with distlock.connect(env["DISTLOCK_URL"]) as locks:
        process = start("k", "--ttl", "4", "--", "sh", "-c", STUBBORN)
        pids = [int(line) for line in wait_for(tmp_path / "all-pids").split()]
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        for one in [*tree, psutil.Process(pids[0])]:
            one.suspend()
        time.sleep(4.2)
        for one in [*tree, psutil.Process(pids[0])]:
            one.resume()
        with locks.lock("k", timeout=TIMEOUT):
            assert alive(pids) == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_command_whose_run_is_killed_is_told_at_once(start, tmp_path, stopped):
    script = "echo $$ > pid; kill -STOP $$; sleep 1000" if stopped else "echo $$ > pid; exec sleep 1000"
    process = start("k", "--ttl", "300", "--", "sh", "-c", script)
    pid = int(wait_for(tmp_path / "pid"))
    if stopped:
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    process.kill()
    wait_until(lambda: alive([pid]) == [])


def test_when_both_are_killed_the_kernel_ends_the_command(start, tmp_path):
    process = start("k", "--ttl", "300", "--", "sh", "-c", "trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done")
    pid = int(wait_for(tmp_path / "pid"))
    guard = psutil.Process(process.pid).children()[0]
    process.send_signal(signal.SIGSTOP)
    guard.kill()
    process.kill()
    wait_until(lambda: alive([pid]) == [])


def test_a_command_does_not_begin_after_its_lease(start, env, tmp_path):
    """It was stopped in between, for too long."""
    with distlock.connect("memory://") as locks, locks.lock("k") as lease:
        late = _guard.now() - 1
        ours, theirs = socket.socketpair()
        arguments = [theirs.fileno(), -1, 0, "", 1, late, late + 1, "touch", tmp_path / "ran"]
        subprocess.run([sys.executable, _guard.__file__, *map(str, arguments)], pass_fds=[theirs.fileno()], check=True)
        theirs.close()
        assert ours.recv(100) == b"ending\n"
        ours.close()
        assert lease.descriptors == ()
    assert not (tmp_path / "ran").exists()


def test_a_lease_that_was_lost_unnoticed_is_said_to_be_so(start, env, tmp_path):
    process = start("k", "--ttl", "300", "--", "sh", "-c", "echo > ready; read line", stdin=subprocess.PIPE)
    wait_for(tmp_path / "ready")
    for file in (tmp_path / "locks" / "default").glob("k.lock"):
        file.unlink()
    assert "is lost" in process.communicate("\n", timeout=TIMEOUT)[1]
    assert process.returncode == 70


def test_a_command_has_time_to_tidy_up_before_the_end(start, tmp_path):
    tidy = "trap 'sleep 0.5; echo tidy > tidied; exit 0' TERM; echo > ready; while :; do sleep 0.01; done"
    with RedisServer() as server, FaultProxy(server.address) as proxy:
        process = start("k", "--ttl", "16", "--grace", "4", "--url", proxy.url, "--", "sh", "-c", tidy)
        wait_for(tmp_path / "ready")
        proxy.pause()
        assert finished(process)[0] == 70  # its own status is no success
        assert wait_for(tmp_path / "tidied") == "tidy\n"


def test_a_blip_of_the_store_is_outlived(start, tmp_path):
    """As long as the lease can still be renewed in time, nobody is ended."""
    with RedisServer() as server, FaultProxy(server.address) as proxy:
        script = "echo > ready; read line"
        process = start(
            "k", "--ttl", "10", "--grace", "0.5", "--url", proxy.url, "--", "sh", "-c", script, stdin=subprocess.PIPE
        )
        wait_for(tmp_path / "ready")
        proxy.pause()
        time.sleep(3.4)  # over a renewal
        proxy.resume()
        with distlock.connect(server.url) as locks:
            before = locks.inspect("k").holder
            time.sleep(10)
            after = locks.inspect("k").holder
            assert before is not None
            assert after is not None
            assert before.token == after.token
        assert process.communicate("\n", timeout=TIMEOUT)[0] == ""
        assert process.returncode == 0
