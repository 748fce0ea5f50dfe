"""``distlock idempotency``: what an operator sees of work that is done once, and forgets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import distlock
from distlock import Manager, ResultUnavailable

from .servers import RedisServer
from .test_cli import TIMEOUT, env, run
from .test_cli_run import wait_until

__all__ = ("env",)


class Declined(Exception):
    """What a bank may say."""


class Unpacked:
    """A serializer of a program's own."""

    def dumps(self, result: bytes) -> bytes:
        return result

    loads = dumps


@pytest.fixture(params=["file", "redis"])
def locks(env: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Of a namespace of the test's own, which the command line is told of."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else (tmp_path / "store").as_uri()
    env |= {"DISTLOCK_URL": url, "DISTLOCK_NAMESPACE": f"test-{os.getpid()}-{time.monotonic_ns()}"}
    with distlock.connect(url, namespace=env["DISTLOCK_NAMESPACE"]) as locks:
        yield locks


def pay(locks: Manager, key: str = "pay:42", result: object = None, **terms: object) -> None:
    with locks.once(key, ttl=600, fingerprint="42", metadata={"request": "r1"}, **terms) as work:  # type: ignore[arg-type]
        if isinstance(result, Exception):
            raise result
        work.complete(result)


def lines_of(shown: str) -> dict[str, str]:
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in shown.splitlines())


def test_who_has_done_it_and_when(env, locks):
    pay(locks, result={"charge": "ch_1"})
    done = run(env, "idempotency", "show", "pay:42")
    assert (done.returncode, done.stderr) == (0, "")
    shown = lines_of(done.stdout)
    names = ["key", "state", "by", "at", "in", "request", "began", "took", "expires", "token", "fingerprint", "result"]
    assert list(shown) == names
    assert shown["state"] == "completed"
    assert shown["by"].endswith(f"pid {os.getpid()}")
    assert shown["at"].startswith("test_cli_idempotency.py:")
    assert shown["request"] == "r1"
    assert shown["result"] == "17 bytes"
    assert "ch_1" not in done.stdout, "it may be a secret"
    assert '{"charge":"ch_1"}' in run(env, "idempotency", "show", "pay:42", "--result").stdout


def test_json_says_all(env, locks):
    began = time.time()
    pay(locks, result={"charge": "ch_1"})
    found = json.loads(run(env, "idempotency", "show", "pay:42", "--json").stdout)
    operation = locks.results.get("pay:42")
    assert operation is not None
    names = ["key", "state", "by", "began_at", "took", "expires_in", "token", "fingerprint", "error", "problem"]
    assert list(found) == [*names, "result_bytes", "waiters"]
    assert (found["state"], found["result_bytes"], found["error"], found["waiters"]) == ("completed", 17, None, [])
    assert (found["token"], found["fingerprint"]) == (operation.token, operation.fingerprint)
    assert (found["by"]["pid"], found["by"]["metadata"]) == (os.getpid(), {"request": "r1"})
    assert began - 1 < found["began_at"] < time.time() + 1
    assert 0 < found["expires_in"] <= 600
    found = json.loads(run(env, "idempotency", "show", "pay:42", "--json", "--result").stdout)
    assert found["result"] == {"charge": "ch_1"}
    assert [each["key"] for each in json.loads(run(env, "idempotency", "ls", "--json").stdout)] == ["pay:42"]


def test_a_result_that_is_no_json_is_shown_as_text(env, locks):
    pay(locks, result=b"\xff\x1b[2Jyes", serializer=Unpacked())
    assert "\\xff\\x1b[2Jyes" in run(env, "idempotency", "show", "pay:42", "--result").stdout
    found = json.loads(run(env, "idempotency", "show", "pay:42", "--result", "--json").stdout)
    assert found["result"] == "\\xff\x1b[2Jyes"


def test_an_error_that_was_kept_is_shown(env, locks):
    with pytest.raises(Declined):
        pay(locks, result=Declined("no money"), store_errors=Declined)
    shown = lines_of(run(env, "idempotency", "show", "pay:42").stdout)
    assert shown["state"] == "failed"
    assert shown["error"].endswith("Declined: no money")
    assert "result" not in shown


def test_a_result_that_was_not_kept_says_why(env, locks):
    with pytest.raises(ResultUnavailable):
        pay(locks, result="long" * 100, limit=100)
    assert lines_of(run(env, "idempotency", "show", "pay:42").stdout)["result"].startswith("not kept: it has 402 bytes")
    found = json.loads(run(env, "idempotency", "show", "pay:42", "--json", "--result").stdout)
    assert (found["result_bytes"], found["result"]) == (None, None)
    assert "402 bytes" in found["problem"]


def test_work_in_progress_and_who_waits_for_it(env, locks):
    with locks.once("pay:42", ttl=600, metadata={"request": "r1"}) as work:
        waiting = start_waiter(env, "pay:42")
        if locks.guarantees.fair:  # else only those of the asking process are known
            wait_until(lambda: len(locks.results.get("pay:42").waiters) == 1)
        shown = lines_of(run(env, "idempotency", "show", "pay:42").stdout)
        assert shown["state"] == "in progress"
        assert shown["request"] == "r1"
        assert "took" not in shown
        assert "expires" not in shown
        assert not locks.guarantees.fair or shown["waiting"].endswith(f"pid {waiting.pid} (<string>:2)")
        work.complete("done")
    assert waiting.communicate(timeout=TIMEOUT)[0] == "done\n"


def start_waiter(env: dict[str, str], key: str) -> subprocess.Popen[str]:
    code = f"from distlock.idempotency import once\nwith once({key!r}, ttl=60) as work: print(work.result)"
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


def test_all_work_by_key(env, locks):
    assert run(env, "idempotency", "ls").stdout == "nothing is known\n"
    assert run(env, "idempotency", "ls", "--json").stdout == "[]\n"
    pay(locks, "pay:2", 2)
    with pytest.raises(Declined):
        pay(locks, "ship:1", Declined("no"), store_errors=Declined)
    with locks.once("pay:1", ttl=600) as work, locks.lock("pay:3"):
        listed = run(env, "idempotency", "ls").stdout
        assert re.findall(r"^ *(\w+:\d) +(\w+(?: \w+)?)  ", listed, re.MULTILINE) == [
            ("pay:1", "in progress"),
            ("pay:2", "completed"),
            ("ship:1", "failed"),
        ]
        found = json.loads(run(env, "idempotency", "ls", "pay:", "--json").stdout)
        assert [(each["key"], each["state"]) for each in found] == [("pay:1", "in progress"), ("pay:2", "completed")]
        work.complete()


def test_nothing_known_is_1(env, locks):
    done = run(env, "idempotency", "show", "pay:42")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"distlock: nothing is known of 'pay:42' \[.*\]\n", done.stderr)
    assert run(env, "idempotency", "show", "pay:42", "--json").stdout == "null\n"
    assert run(env, "idempotency", "forget", "pay:42", "--yes").returncode == 1


def test_what_is_forgotten_is_done_again(env, locks):
    pay(locks, result=1)
    done = run(env, "idempotency", "forget", "pay:42", "--yes")
    assert (done.returncode, done.stdout) == (0, "")
    assert "completed" in done.stderr, "it is shown before"
    assert locks.results.get("pay:42") is None
    with locks.once("pay:42", ttl=600) as work:
        assert not work.replayed


def test_work_in_progress_is_not_forgotten(env, locks):
    with locks.once("pay:42", ttl=600) as work:
        done = run(env, "idempotency", "forget", "pay:42", "--yes")
        assert done.returncode == 1
        assert "in progress, and is left alone" in done.stderr
        work.lease.ensure_held()
        work.complete()


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_a_person_is_asked(env, locks, answer, status):
    pay(locks)
    command = [sys.executable, "-m", "distlock", "idempotency", "forget", "pay:42"]
    done = subprocess.run(command, env=env, input=answer, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == status
    assert "Forget it?" in done.stderr
    assert (locks.results.get("pay:42") is None) == (status == 0)


@contextmanager
def person_asked(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Whether to forget a payment."""
    command = [sys.executable, "-m", "distlock", "idempotency", "forget", "pay:42"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=env, **pipes) as process:  # type: ignore[call-overload]
        asked = b""
        while b"Forget it?" not in asked:
            asked += process.stdout.read(1)
        yield process


def test_ctrl_c_is_a_no(env, locks):
    pay(locks)
    with person_asked(env) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
    assert locks.results.get("pay:42") is not None


def test_what_came_while_a_person_was_asked_is_not_forgotten(env, locks):
    pay(locks)
    with person_asked(env) as process:
        assert locks.results.forget("pay:42")
        pay(locks, result="another")
        said = process.communicate(b"y\n", TIMEOUT)[0]
    assert process.returncode == 1
    assert b"'pay:42' is another work by now, and is left alone" in said
    assert locks.results.get("pay:42").outcome.payload == b'"another"'


def test_a_person_is_told_that_there_was_nothing_left_to_forget(env, locks):
    pay(locks)
    with person_asked(env) as process:
        assert locks.results.forget("pay:42")
        said = process.communicate(b"y\n", TIMEOUT)[0]
    assert process.returncode == 1
    assert b"nothing is known of 'pay:42'" in said


def test_what_others_have_stored_does_not_command_the_terminal(env, locks):
    key = "k\x1b[2J[red]\n"
    with locks.once(key, ttl=600, metadata={"\x1b[31m": "[bold]\x07"}) as work:
        work.complete("\x1b[2J")
    for args in (["ls"], ["show", key, "--result"], ["forget", key]):
        done = run(env, "idempotency", *args)
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stdout + done.stderr)
        assert "[red]" in done.stdout + done.stderr


@pytest.mark.parametrize("args", [["show", "k"], ["ls"], ["forget", "k", "--yes"]])
@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("redis://127.0.0.1:1/0", 69, "127.0.0.1:1"),
        ("nonsense://x", 64, "nonsense"),
        ("memory://", 64, "a memory of its own"),
        ("redlock://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", 64, "keeps no results"),
    ],
)
def test_a_store_that_cannot_be_asked(env, args, url, status, said):
    done = run(env, "idempotency", *args, "--url", url)
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(rf"distlock: .*{re.escape(said)}.*\n", done.stderr)


def test_without_a_command_there_is_help(env):
    done = run(env, "idempotency")
    assert done.returncode == 64
    for command in ("show", "ls", "forget"):
        assert command in done.stdout


def test_ctrl_c_ends_it_without_a_word(env):
    with RedisServer() as server:
        server.pause()
        command = [sys.executable, "-m", "distlock", "idempotency", "ls", "--url", server.url]
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: connected_to(process.pid, server.port))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=TIMEOUT)[1] == ""
        assert process.returncode == 130


def connected_to(pid: int, port: int) -> bool:
    return any(each.raddr and each.raddr.port == port for each in psutil.Process(pid).net_connections())
