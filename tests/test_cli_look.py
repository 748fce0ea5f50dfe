"""``distlock inspect``, ``ls`` and ``release``: what an operator sees and does."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import distlock
from distlock import LeaseState, LockLost, Manager

from .servers import RedisServer
from .test_cli import TIMEOUT, env, run
from .test_cli_run import wait_until

__all__ = ("env",)


@pytest.fixture
def locks(env: dict[str, str], redis_url: str) -> Iterator[Manager]:
    """Of a namespace of the test's own, which the command line is told of."""
    env |= {"DISTLOCK_URL": redis_url, "DISTLOCK_NAMESPACE": f"test-{os.getpid()}-{time.monotonic_ns()}"}
    with distlock.connect(redis_url, namespace=env["DISTLOCK_NAMESPACE"]) as locks:
        yield locks


def test_who_holds_it_and_who_waits(env, locks):
    with locks.lock("orders:42", metadata={"order": "42"}) as lease:
        done = run(env, "inspect", "orders:42")
        assert (done.returncode, done.stderr) == (0, "")
        shown = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines())
        assert list(shown) == ["lock", "held by", "at", "in", "owner", "order", "since", "ttl", "token"]
        assert shown["lock"] == "orders:42"
        assert shown["held by"].endswith(f"pid {os.getpid()}")
        assert shown["at"].startswith("test_cli_look.py:")
        assert shown["order"] == "42"
        assert shown["token"] == str(lease.token)
    assert "nobody" in run(env, "inspect", "orders:42").stdout


def test_waiters_are_shown_in_order(env, locks):
    with locks.lock("k"):
        programs: list[subprocess.Popen[bytes]] = []
        while len(programs) < 2:
            programs.append(start_waiter(env, "k"))
            wait_until(lambda: len(locks.inspect("k").waiters) == len(programs))
        report = json.loads(run(env, "inspect", "k", "--json").stdout)
        assert [waiter["pid"] for waiter in report["waiters"]] == [program.pid for program in programs]
        shown = run(env, "inspect", "k").stdout
        assert re.findall(r"(\d)\. \S+ pid (\d+)", shown) == [
            (str(place), str(program.pid)) for place, program in enumerate(programs, 1)
        ]
    for program in programs:
        assert program.wait(TIMEOUT) == 0


def start_waiter(env: dict[str, str], key: str) -> subprocess.Popen[bytes]:
    code = f"import distlock\nwith distlock.lock({key!r}): pass"
    return subprocess.Popen([sys.executable, "-c", code], env=env)


def test_json_says_all(env, locks):
    assert json.loads(run(env, "inspect", "k", "--json").stdout) == {"key": "k", "holder": None, "waiters": []}
    with locks.lock("k", metadata={"a": "b"}) as lease:
        found = json.loads(run(env, "inspect", "k", "--json").stdout)
        listed = json.loads(run(env, "ls", "--json").stdout)
    holder = found["holder"]
    names = ["owner", "host", "pid", "where", "site", "metadata", "token", "held_for", "ttl", "since"]
    assert list(holder) == names
    assert (holder["token"], holder["pid"], holder["metadata"]) == (lease.token, os.getpid(), {"a": "b"})
    assert abs(holder["since"] + holder["held_for"] - time.time()) < TIMEOUT
    assert [one["key"] for one in listed] == ["k"]
    assert list(listed[0]["holder"]) == names


def test_all_locks_in_use_by_name(env, locks):
    assert run(env, "ls").stdout == "no locks in use\n"
    assert run(env, "ls", "--json").stdout == "[]\n"
    with locks.lock("orders:2"), locks.lock("orders:1"), locks.lock("users"):
        listed = run(env, "ls").stdout
        assert re.findall(r"^ *(orders:\d|users) ", listed, re.MULTILINE) == ["orders:1", "orders:2", "users"]
        assert [one["key"] for one in json.loads(run(env, "ls", "orders:", "--json").stdout)] == [
            "orders:1",
            "orders:2",
        ]


def test_what_others_have_stored_does_not_command_the_terminal(env, locks):
    key = "k\x1b[2J[red]\n"
    with locks.lock(key, metadata={"\x1b[31m": "[bold]\x07"}):
        for args in (["ls"], ["inspect", key], ["run", key, "-n", "--", "true"]):
            done = run(env, *args)
            assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stdout + done.stderr)
            assert "[red]" in done.stdout + done.stderr


def test_watching_goes_on_through_an_outage_until_ctrl_c(env):
    with RedisServer() as server, distlock.connect(server.url) as locks:
        terminal, other = pty.openpty()
        command = [sys.executable, "-m", "distlock", "ls", "--watch", "--interval", "0.1", "--url", server.url]
        process = subprocess.Popen(command, env=env, stdin=other, stdout=other, stderr=subprocess.PIPE, text=True)
        os.close(other)
        try:
            watched = Screen(terminal)
            watched.until("locks in use: 0")
            lease = locks.lock("seen").acquire()
            watched.until("seen")
            lease.release()
            watched.until("locks in use: 0")
            server.kill()
            watched.until("as it was before")
            server.start()
            watched.until("Ctrl-C ends it")
            process.send_signal(signal.SIGINT)
            watched.until(re.escape("\x1b[?1049l"))  # the screen is as it was before
            assert process.wait(TIMEOUT) == 130
            assert process.communicate()[1] == ""
        finally:
            process.kill()
            process.wait()
            os.close(terminal)


class Screen:
    """What a program shows from now on."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def until(self, pattern: str) -> None:
        shown, deadline = "", time.monotonic() + TIMEOUT
        while not re.search(pattern, shown):
            assert select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))[0], shown[-2000:]
            shown += os.read(self._terminal, 4096).decode(errors="replace")


def test_watching_in_json_is_a_line_a_look(env, locks):
    command = [sys.executable, "-m", "distlock", "ls", "--watch", "--json", "--interval", "0.1"]
    with locks.lock("k"), subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert [[one["key"] for one in look] for look in looks] == [["k"]] * 3
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 130


# Release by force.


def forced(env: dict[str, str], *args: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distlock", "release", *args]
    return subprocess.run(command, env=env, input=answer, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("how", ["asked", "not asked", "by token"])
def test_a_lease_is_ended_by_force(env, locks, how):
    lease = locks.lock("k", ttl=9).acquire()
    options = {"asked": [], "not asked": ["--yes"], "by token": ["-y", "--token", str(lease.token)]}[how]
    done = forced(env, "k", "--force", *options, answer="y\n")
    assert (done.returncode, done.stdout.strip()) == (0, "")
    assert f"pid {os.getpid()}" in done.stderr
    assert f"the lease of 'k' (token {lease.token}) was ended by force" in done.stderr
    assert ("End this lease?" in done.stderr) == (how == "asked")
    with locks.lock("k", timeout=0):
        wait_until(lambda: lease.state is LeaseState.LOST)
        with pytest.raises(LockLost):
            lease.release()


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_done(env, locks, answer):
    with locks.lock("k") as lease:
        assert forced(env, "k", "--force", answer=answer).returncode == 1
        assert locks.inspect("k").holder.token == lease.token


def test_without_force_it_is_wrong_usage(env, locks):
    with locks.lock("k") as lease:
        done = forced(env, "k", "--yes")
        assert (done.returncode, done.stdout) == (64, "")
        assert "--force" in done.stderr
        assert locks.inspect("k").holder.token == lease.token


def test_a_newer_lease_is_left_alone(env, locks):
    old = locks.lock("k").acquire()
    old.release()
    with locks.lock("k") as lease:
        done = forced(env, "k", "--force", "--yes", "--token", str(old.token))
        assert done.returncode == 1
        assert "has ended already" in done.stderr
        assert locks.inspect("k").holder.token == lease.token


def test_a_lock_that_nobody_holds_is_said_to_be_so(env, locks):
    done = forced(env, "k", "--force", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"distlock: nobody holds 'k' .*\n", done.stderr)


def test_on_files_the_holder_is_asked(env, tmp_path):
    env["DISTLOCK_URL"] = f"file://{tmp_path}/locks"
    with distlock.connect(env["DISTLOCK_URL"]) as locks:
        lease: Any = locks.lock("k", ttl=6).acquire()
        done = forced(env, "k", "--force", "--yes")
        assert done.returncode == 0
        assert "ended by force" in done.stderr
        wait_until(lambda: lease.state is LeaseState.LOST)
        wait_until(lambda: locks.inspect("k").holder is None)
