"""``distlock run --once-per``: a command that runs once a period, on all machines together."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import typer

import distlock
from distlock import Lease, Manager
from distlock.cli import _period
from distlock.cli._command import Job
from distlock.cli._period import Skipped, period_of, run_once_per

from .children import untraced
from .servers import RedisServer
from .test_cli_look import Screen
from .test_cli_run import TIMEOUT, env, finished, start, wait_for, wait_until

__all__ = ("env", "start")

Start = Callable[..., "subprocess.Popen[str]"]
ONCE = ("--once-per", "1h", "k", "--")


@pytest.fixture(params=["file", "redis"])
def locks(env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Manager]:
    """Of a namespace of the test's own, which the command line is told of."""
    env["DISTLOCK_NAMESPACE"] = f"test-{os.getpid()}-{time.monotonic_ns()}"
    if request.param == "redis":
        env["DISTLOCK_URL"] = request.getfixturevalue("redis_url")
    with distlock.connect(env["DISTLOCK_URL"], namespace=env["DISTLOCK_NAMESPACE"]) as locks:
        yield locks


def test_who_comes_later_does_nothing(start, locks, tmp_path):
    first = start(*ONCE, "sh", "-c", "echo ran >> runs; echo $DISTLOCK_TOKEN")
    status, token, said = finished(first)
    assert (status, said) == (0, "")
    status, out, said = finished(start(*ONCE, "touch", "again"))
    assert (status, out) == (0, "")
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"
    who = rf"distlock: skipped: 'k' was run by \S+ pid {first.pid} at {at}, and not again for \d+ min.*\n"
    assert re.fullmatch(who, said)
    assert finished(start("-E", "9", *ONCE, "touch", "again"))[0] == 9
    assert (tmp_path / "runs").read_text() == "ran\n"
    assert not (tmp_path / "again").exists()
    operation = locks.results.get("k")
    assert operation is not None
    assert (operation.token, operation.by.metadata) == (int(token), {"command": "sh"})


def test_of_many_at_the_same_time_one_runs(start, locks, tmp_path):
    fleet = [start(*ONCE, "sh", "-c", "echo $DISTLOCK_TOKEN >> runs") for _ in range(5)]
    assert [finished(one)[0] for one in fleet] == [0] * 5
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


def test_one_that_failed_has_not_run(start, locks, tmp_path):
    assert finished(start(*ONCE, "sh", "-c", "exit 3"))[::2] == (3, "")
    assert finished(start(*ONCE, "./none-such"))[0] == 127
    assert locks.results.get("k") is None
    assert finished(start(*ONCE, "touch", "ran"))[0] == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("status", [3, 70])  # which is ours, too
def test_one_that_failed_has_run_if_that_is_said(start, locks, tmp_path, status):
    assert finished(start("--keep-failed", *ONCE, "sh", "-c", f"exit {status}"))[0] == status
    assert finished(start(*ONCE, "touch", "again"))[0] == 0
    assert not (tmp_path / "again").exists()


def test_one_that_could_not_be_started_has_not_run(start, locks):
    assert finished(start("--keep-failed", *ONCE, "./none-such"))[0] == 127
    assert locks.results.get("k") is None


def test_one_that_is_running_is_busy_or_waited_for(start, locks, tmp_path):
    command = "echo > started; cat"
    running = start(*ONCE, "sh", "-c", command, stdin=subprocess.PIPE)
    wait_for(tmp_path / "started")
    status, _, said = finished(start("--no-wait", *ONCE, "touch", "again"))
    assert status == 75
    assert re.fullmatch(rf"distlock: 'k' is in progress: .* pid {running.pid} .*\n", said)
    assert finished(start("--timeout", "0.1", "-E", "0", *ONCE, "touch", "again"))[0] == 0
    waiting = start(*ONCE, "touch", "again")
    running.communicate("", timeout=TIMEOUT)
    status, _, said = finished(waiting)
    assert status == 0
    assert f"pid {running.pid}" in said
    assert not (tmp_path / "again").exists()


def test_who_waits_takes_over_from_one_that_fails(start, locks, tmp_path):
    running = start(*ONCE, "sh", "-c", "echo > started; cat; exit 3", stdin=subprocess.PIPE)
    wait_for(tmp_path / "started")
    waiting = start(*ONCE, "touch", "ran")
    running.communicate("", timeout=TIMEOUT)
    assert running.returncode == 3
    assert finished(waiting)[0] == 0
    assert (tmp_path / "ran").exists()


def test_who_waits_takes_over_from_one_that_is_killed(start, locks, tmp_path):
    running = start("--ttl", "10", *ONCE, "sh", "-c", "echo > started; exec sleep 1001")
    wait_for(tmp_path / "started")
    waiting = start(*ONCE, "touch", "ran")
    running.kill()
    assert finished(waiting)[0] == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("locks", ["redis"], indirect=True)  # which knows who waits
def test_the_period_counts_from_when_it_was_asked_for(start, locks, tmp_path):
    """Else one that had to wait would put off the next."""
    failing = locks.once("k", ttl=600)
    failing.__enter__()
    waiting = start(*ONCE, "touch", "ran")
    wait_until(lambda: locks.results.get("k").waiters)
    seen = time.monotonic()
    wait_until(lambda: time.monotonic() > seen + 1)
    failing.__exit__(None, None, None)
    assert finished(waiting)[0] == 0
    assert (tmp_path / "ran").exists()
    assert locks.results.get("k").expires_in <= 3240 - 1


class Done(Job):
    """Nothing to run."""

    ran = True

    def run(self, lease: Lease) -> int:
        return 0


def test_who_waited_for_one_that_outlasts_its_period_is_told_of_it(monkeypatch):
    """By a clock that goes on by two hours whenever it is read."""
    monkeypatch.setattr(_period, "SHORTEST_RECORD", 600.0)  # for slow machines
    times = count(0, 7200)
    monkeypatch.setattr(_period, "now", lambda: next(times))
    with distlock.connect("memory://") as locks:
        for key, period, kept in ("k", 3600, 600), ("short", 100, 90):
            job = Done(key, ["true"], 30, 5)
            assert run_once_per(period, locks, job, None, keep_failed=False) == 0
            with pytest.raises(Skipped):
                run_once_per(period, locks, job, None, keep_failed=False)
            operation = locks.results.get(key)
            assert operation is not None
            assert operation.expires_in is not None
            assert operation.expires_in <= kept


@pytest.mark.parametrize(("period", "record"), [("1d", 0.9 * 86400), ("1h", 3240), ("100", 90)])
def test_the_record_ends_early(start, locks, period, record):
    before = time.monotonic()
    assert finished(start("--once-per", period, "k", "--", "true"))[0] == 0
    operation = locks.results.get("k")
    assert operation is not None
    assert record - (time.monotonic() - before) - 1 <= operation.expires_in <= record


def test_no_store_keeps_it_until_the_next_firing(start, etcd_url):
    """etcd keeps what ends with a lease for a sixteenth longer."""
    assert finished(start("--url", etcd_url, *ONCE, "true"))[0] == 0
    assert re.fullmatch(
        r"distlock: skipped: .* at \S+ \S+ \S+\n", finished(start("--url", etcd_url, *ONCE, "false"))[2]
    )
    with distlock.connect(etcd_url) as locks:
        operation = locks.results.get("k")
        assert operation is not None
        assert operation.expires_in is not None
        assert operation.expires_in < 3600


@pytest.mark.parametrize("options", [[], ["--keep-failed"]])
def test_one_whose_claim_was_lost_has_not_run(start, locks, tmp_path, options):
    running = start(*options, *ONCE, "sh", "-c", "echo $DISTLOCK_TOKEN > started; exec sleep 1001")
    token = int(wait_for(tmp_path / "started"))
    assert locks.results_manager().force_release("k", token=token)
    status, _, said = finished(running)
    assert status == 70
    assert "the command was ended" in said
    assert locks.results.get("k") is None


REVOKES = """
import os, distlock
locks = distlock.connect(os.environ["DISTLOCK_URL"])
assert locks.results_manager().force_release(os.environ["DISTLOCK_KEY"], token=int(os.environ["DISTLOCK_TOKEN"]))
"""


@pytest.mark.parametrize("locks", ["redis"], indirect=True)  # on files the holder itself gives it up
@pytest.mark.parametrize("own", [0, 70])
def test_a_claim_that_was_lost_at_the_last_moment_is_told_of(start, locks, own):
    status, _, said = finished(start(*ONCE, sys.executable, "-c", REVOKES + f"raise SystemExit({own})"))
    assert status == 70
    assert re.search("distlock: the lease of 'k' .* is lost", said)
    assert locks.results.get("k") is None


def test_a_store_that_is_away_at_the_end_is_told_of(start, env):
    with RedisServer() as server:
        status, _, said = finished(start("--url", server.url, *ONCE, "kill", "-9", str(server.pid)))
        assert status == 0, "it ran"
        assert "'k' ran, but that could not be stored, and it may run again too soon" in said


def test_a_signal_while_it_waits_leaves_nothing(start, locks, env, tmp_path):
    with locks.once("k", ttl=600) as work:
        waiting = start(*ONCE, "touch", "ran", env=untraced(env))
        terminated_when_it_waits(waiting, locks)
        assert finished(waiting)[0] == 143
        assert locks.results.get("k").waiters == ()
        work.complete()
    assert not (tmp_path / "ran").exists()


HIT = """
import os, signal, sys, threading
from _distlock_main import main

start = threading.Thread.start
def hit(thread):
    threading.Thread.start = start
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread.start = hit
sys.argv = ["distlock", "run", *sys.argv[1:]]
main()
"""


def test_a_signal_is_not_taken_for_the_stores_trouble(locks, env, tmp_path):
    """It comes where a backend starts a thread to wait in, which it is ready to see fail."""
    with locks.lock("k"):
        hit = [sys.executable, "-c", HIT, "k", "--", "touch", "ran"]
        done = subprocess.run(hit, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (143, "")
    assert not (tmp_path / "ran").exists()


def terminated_when_it_waits(process: subprocess.Popen[str], locks: Manager) -> None:
    if locks.guarantees.fair:  # else only those who wait in this process are known
        wait_until(lambda: locks.results.get("k").waiters)  # type: ignore[union-attr]
    else:
        wait_until(lambda: signal.SIGTERM in caught_by(process.pid))
    process.terminate()


def caught_by(pid: int) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_a_person_is_told_what_is_waited_for(start, locks):
    terminal, other = pty.openpty()
    with locks.once("k", ttl=600) as work:
        process = start(*ONCE, "true", stderr=other)
        os.close(other)
        screen = Screen(terminal)
        screen.until("waiting for 'k'")
        work.complete()
    screen.until("skipped: 'k'")
    assert process.wait(TIMEOUT) == 0
    os.close(terminal)


def test_a_lock_of_the_same_name_is_another_thing(start, locks, tmp_path):
    with locks.lock("k"):
        assert finished(start("--no-wait", *ONCE, "touch", "ran"))[0] == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "period"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), (" 1d ", 86400), ("366d", 31622400)]
)
def test_a_period_has_a_unit(text, period):
    assert period_of(text) == period


@pytest.mark.parametrize("text", ["", "h", "-1h", "1 h", "1w", "0.5s", "367d", "1e3", "inf", "1h30m", "١h"])
def test_what_is_no_period_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is not a period"):
        period_of(text)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--once-per", "often"], "'often' is not a period"),
        (["--keep-failed"], "--keep-failed belongs to --once-per"),
        (["--once-per", "1h", "--url", "redlock://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"], "keeps no results"),
    ],
)
def test_what_cannot_work_is_wrong_usage(start: Start, tmp_path: Path, args: list[Any], said: str) -> None:
    status, out, err = finished(start(*args, "k", "--", "touch", "ran"))
    assert (status, out) == (64, "")
    assert said in err
    assert not (tmp_path / "ran").exists()
