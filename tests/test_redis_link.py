"""Connections that threads share: replies go to who asked, and nobody is left asleep, whatever is done to them."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import distlock.backends.redis._link as link_module
from distlock import BackendUnavailable
from distlock.backends.base import LeaseState, Renewal, now
from distlock.backends.redis._connect import Server
from distlock.backends.redis._link import Link, Request
from distlock.backends.redis._pool import Pool
from distlock.backends.redis._scripts import INSPECT, command, lock_keys
from distlock.testing.proxy import FaultProxy

from .redis_tools import Probe, until
from .servers import RedisServer

LONG = 60.0
"""Seconds that a request may take. Who is left asleep sleeps as long."""
SOON = 30.0


class Torn(BaseException):
    """What a signal's handler raises."""


@contextmanager
def _pool(url: str) -> Iterator[Pool]:
    pool = Pool(Server.from_url(url), LONG)
    try:
        yield pool
    finally:
        pool.close()


def _ask(pool: Pool, word: str, seconds: float = LONG) -> None:
    """One echo, which must be its own."""
    assert pool.send(command(b"ECHO", word.encode()), now() + seconds).value == word.encode()


def _ask_several(pool: Pool, word: str, seconds: float = LONG) -> None:
    words = [f"{word}:{number}".encode() for number in range(3)]
    frame = b"".join([command(b"ECHO", each) for each in words])
    assert pool.send(frame, now() + seconds, replies=3).value == words


def _post(pool: Pool, number: int) -> None:
    """A request whose reply, which must be its own, is looked at later, or never."""
    posted = pool.post(command(b"EVAL", b"return 1", b"0"), number, now() + LONG)
    if posted is not None and number % 2:
        assert posted.outcome(LONG) in (Renewal(LeaseState.HELD, number), Renewal(LeaseState.UNKNOWN))


def _under_way(pool: Pool) -> int:
    """Requests that have a connection, or a place in the queue of one."""
    links = pool._links
    return len({id(each) for link in links for each in (*link.lead.values(), *link._queue, *link._sent)})


class Crowd:
    """Threads that each repeat something until they are told to stop."""

    def __init__(self, count: int, call: Callable[[int, int], object]) -> None:
        self.turns = [0] * count
        self.problems: list[BaseException] = []
        self._call = call
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(count)]

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self._call(number, self.turns[number])
            except BaseException as problem:  # noqa: BLE001 - shown by the test
                self.problems.append(problem)
                return
            self.turns[number] += 1

    def all_go_on(self) -> None:
        """Each of them has two more turns."""
        before = list(self.turns)
        until(lambda: self.problems or all(b - a >= 2 for a, b in zip(before, self.turns, strict=True)), SOON)
        assert self.problems == []

    def __enter__(self) -> Crowd:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        deadline = time.monotonic() + SOON
        for each in self._threads:
            each.join(max(0.0, deadline - time.monotonic()))
        assert not any(each.is_alive() for each in self._threads), "somebody sleeps"
        assert self.problems == []


def _mixed(pool: Pool, number: int, turn: int) -> None:
    word = f"{number}:{turn}"
    if turn % 7 == 3:
        _ask_several(pool, word)
    elif turn % 50 == 20:
        _ask(pool, word * 20_000)  # in many pieces
    elif turn % 5 == 1:
        _post(pool, turn)
    elif turn % 5 == 2:
        with suppress(BackendUnavailable):  # it leaves, and its reply comes all the same
            _ask(pool, word, random.choice([0.0, 0.0001, 0.001]))
    else:
        _ask(pool, word)


def test_many_threads_share_two_connections(redis_server: RedisServer) -> None:
    probe = Probe(redis_server)
    with _pool(redis_server.url) as pool, Crowd(32, lambda number, turn: _ask(pool, f"{number}:{turn}")) as crowd:
        for _ in range(5):
            crowd.all_go_on()
            assert len(probe.clients()) <= 2, "the second serves whoever finds a lone thread on the first"
    until(lambda: not probe.clients())


def test_every_reply_goes_to_who_asked(redis_server: RedisServer) -> None:
    """Late callers leave, and long replies come in pieces."""
    with _pool(redis_server.url) as pool, Crowd(32, partial(_mixed, pool)) as crowd:
        for _ in range(30):
            crowd.all_go_on()


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # redis-py, torn out of connecting
def test_signals_that_raise_leave_nobody_asleep_and_shift_no_reply(redis_server: RedisServer) -> None:
    """Ctrl-C, an alarm: in the main thread, wherever it is just then."""

    def tear(*_: object) -> None:
        raise Torn

    before = signal.signal(signal.SIGALRM, tear)
    torn = 0
    try:
        with _pool(redis_server.url) as pool, Crowd(4, partial(_mixed, pool)) as crowd:
            for turn in range(1500):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0006))
                    for step in range(10):
                        _ask(pool, f"main:{turn}:{step}")
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except BaseException as error:
                    if not _is_torn(error):
                        raise
                    torn += 1
                if turn % 100 == 0:
                    crowd.all_go_on()
            crowd.all_go_on()
            _ask(pool, "at last")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torn > 100


def _is_torn(error: BaseException | None) -> bool:
    """By itself or by way of redis-py: torn out of a ``try``, its release 6 trips over what it has not set yet."""
    return error is not None and (isinstance(error, Torn) or _is_torn(error.__context__))


OURS = {str(Path(link_module.__file__).parent / name) for name in ("_link.py", "_pool.py", "_replies.py", "_wire.py")}


def _torn_at(step: int, call: Callable[[], object]) -> bool:
    """Runs ``call`` and raises before the bytecode numbered ``step`` of the link; False if it has not as many."""
    left = step

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in OURS:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            if left == 0:
                sys.settrace(None)
                raise Torn
            left -= 1
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 traces them if some frame wants it when the tracing begins
    try:
        sys.settrace(trace)
        call()
    except Torn:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 loses bytecodes once tracing was switched off")
@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # redis-py, torn out of connecting
@pytest.mark.parametrize(
    ("start", "others", "stride"),
    [
        *[("connected", 0, 1), ("connected", 2, 1), ("unconnected", 0, 1), ("unconnected", 2, 1), ("closed", 0, 3)],
        *[("posted", 0, 1), ("posted", 2, 1)],
    ],
)
def test_any_bytecode_may_be_the_last(redis_server: RedisServer, start: str, others: int, stride: int) -> None:
    pool = Pool(Server.from_url(redis_server.url), LONG)
    with Crowd(others, lambda number, turn: _ask(pool, f"{number}:{turn}")) as crowd:
        step, whole = 0, 0
        while whole < 5:  # which bytecodes there are depends on what the others do
            _ask(pool, "connected")
            if start == "unconnected":
                pool._links[0].retire()
            elif start == "closed":
                pool.close()  # a connection for each request
            call = partial(_post, pool, 1) if start == "posted" else partial(_ask, pool, f"torn:{step}")
            if not _torn_at(step, call):
                whole += 1
            step += stride
            _ask(pool, f"main:{step}")
            if step % 20 == 0:
                crowd.all_go_on()
    pool.close()
    assert step > 50


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 loses bytecodes once tracing was switched off")
@pytest.mark.usefixtures("untraced")
def test_who_queued_behind_one_that_posts_is_not_left_asleep_by_it(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torn at any bytecode after it has led."""
    write, follower = link_module.Link._write, ThreadPoolExecutor(1)
    answered: list[Future[None]] = []
    awaited = threading.Event()

    def write_with_company(link: link_module.Link, wire: Any, deadline: float) -> None:
        write(link, wire, deadline)
        if awaited.is_set() and threading.current_thread() is threading.main_thread():
            awaited.clear()
            answered.append(follower.submit(_ask, pool, "follower", SOON))
            until(lambda: any(each.parked is not None for each in link._queue))

    monkeypatch.setattr(link_module.Link, "_write", write_with_company)
    step, whole = 0, 0
    with follower:
        while not whole:
            with _pool(redis_server.url) as pool:
                _ask(pool, "connected")
                pool._links[1].lead[0] = Request()  # who comes meanwhile is to come to the first
                answered.clear()
                awaited.set()
                whole += not _torn_at(step, partial(_post, pool, 0))
                awaited.clear()  # who connects the next pool has none
                for each in answered:
                    each.result(SOON)
                pool._links[1].lead.clear()
            step += 1
    assert step > 50


def test_who_queued_behind_one_that_writes_what_was_posted_is_not_left_asleep(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one that had led when it was posted, and has its reply."""
    write, follower = link_module.Link._write, ThreadPoolExecutor(1)
    answered: list[Future[None]] = []

    def write_with_company(link: link_module.Link, wire: Any, deadline: float) -> None:
        write(link, wire, deadline)
        if not answered:
            answered.append(follower.submit(_ask, pool, "follower", SOON))
            until(lambda: any(each.parked is not None for each in link._queue))

    with follower, _pool(redis_server.url) as pool:
        _ask(pool, "connected")
        first, second = pool._links
        second.lead[0] = Request()  # who comes meanwhile is to come to the first
        first.lead[0] = Request()
        _post(pool, 0)
        monkeypatch.setattr(link_module.Link, "_write", write_with_company)
        first.lead.clear()
        first._pass_on()
        answered[0].result(SOON / 2)
        second.lead.clear()


@pytest.mark.usefixtures("untraced")
def test_a_handler_that_asks_in_the_midst_of_a_request_is_answered(redis_server: RedisServer) -> None:
    """Its thread cannot do for it what it was torn out of. So it is with a finaliser that releases a lock."""
    asked = 0

    def ask(*_: object) -> None:
        nonlocal asked
        _ask(pool, f"handler:{asked}")
        asked += 1

    before = signal.signal(signal.SIGALRM, ask)
    try:
        with _pool(redis_server.url) as pool, Crowd(8, lambda number, turn: _ask(pool, f"{number}:{turn}")):
            deadline = time.monotonic() + SOON
            while asked < 100:
                assert time.monotonic() < deadline
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0003))
                for step in range(5):
                    _ask(pool, f"main:{step}")
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_finaliser_that_asks_while_its_own_thread_leads_is_answered(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_out, first = link_module.Link._hand_out, iter([True])

    def interrupted(link: link_module.Link, wire: Any) -> None:
        if next(first, False):
            _ask(pool, "finaliser")
        hand_out(link, wire)

    monkeypatch.setattr(link_module.Link, "_hand_out", interrupted)
    with _pool(redis_server.url) as pool:
        started = now()
        _ask_several(pool, "outer")
        assert now() - started < LONG / 2


def test_a_connection_that_is_killed_costs_nobody_the_reply(redis_server: RedisServer) -> None:
    probe = Probe(redis_server)
    with _pool(redis_server.url) as pool, Crowd(8, lambda number, turn: _ask(pool, f"{number}:{turn}")) as crowd:
        for _ in range(20):
            crowd.all_go_on()
            proven = [client["id"] for client in probe.clients()]  # one that breaks at once would be an error
            crowd.all_go_on()
            for each in proven:
                probe.ask("CLIENT", "KILL", "ID", each)
        crowd.all_go_on()
        until(lambda: len(probe.clients()) <= 2)


def test_all_that_wait_on_a_connection_that_breaks_ask_once_more(redis_server: RedisServer) -> None:
    with FaultProxy(redis_server.address) as proxy, _pool(proxy.url) as pool:
        for link in pool._links:  # a fresh one that breaks would be an error
            link.ask(Request(), command(b"PING"), now(), now() + LONG, 1)
        proxy.pause(requests=False)
        again: list[bool] = []

        def ask(number: int) -> None:
            reply = pool.send(command(b"ECHO", b"%d" % number), now() + LONG)
            assert reply.value == b"%d" % number
            again.append(reply.again)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for each in threads:
            each.start()
        until(lambda: _under_way(pool) == 8)
        proxy.reset_all()
        proxy.resume()
        for each in threads:
            each.join(SOON)
        assert len(again) == 8
        assert True in again


def test_who_cannot_wait_leaves_a_hung_server_at_once_and_the_others_go_on(redis_server: RedisServer) -> None:
    """Also the one that writes and reads for the others."""
    with _pool(redis_server.url) as pool:
        _ask(pool, "connected")
        redis_server.pause()
        late: list[float] = []

        def leave(seconds: float) -> None:
            started = now()
            with pytest.raises(BackendUnavailable, match="in time"):
                _ask(pool, "late", seconds)
            late.append(now() - started - seconds)

        impatient = [threading.Thread(target=leave, args=(seconds,)) for seconds in (0.05, 0.1, 0.1, 0.15)]
        patient = [threading.Thread(target=_ask, args=(pool, f"patient:{number}")) for number in range(4)]
        for each in (*impatient, *patient):
            each.start()
        for each in impatient:
            each.join(SOON)
        redis_server.resume()
        for each in patient:
            each.join(SOON)
        assert not any(each.is_alive() for each in patient)
        assert len(late) == 4
        assert max(late) < LONG / 2
        _ask(pool, "at last")


def test_a_silent_connection_is_not_for_newcomers(redis_server: RedisServer) -> None:
    with FaultProxy(redis_server.address) as proxy, _pool(proxy.url) as pool:
        _ask(pool, "connected")
        proxy.silence_all()
        with pytest.raises(BackendUnavailable, match="in time"):
            _ask(pool, "late", 0.1)
        _ask(pool, "next")


def _is_led(link: Link) -> bool:
    return bool(link.lead)


def test_who_came_later_to_a_silent_connection_goes_to_another_one(redis_server: RedisServer) -> None:
    """The first one's timeout tells it: the others would spend theirs in vain."""
    with FaultProxy(redis_server.address) as proxy, _pool(proxy.url) as pool, ThreadPoolExecutor() as threads:
        links = pool._links
        _ask(pool, "connected")
        proxy.pause()
        both = []
        for link in links:
            both.append(threads.submit(_ask, pool, "both are"))
            until(partial(_is_led, link))
        proxy.resume()
        for each in both:
            each.result(SOON)
        proxy.silence_all()
        first = []
        for link in links:
            first.append(threads.submit(_ask, pool, "first", 5.0))
            until(partial(_is_led, link))
        later = [threads.submit(_ask, pool, "later") for _ in range(3)]
        until(lambda: links[0].crowded)
        for each in first:
            assert isinstance(each.exception(SOON), BackendUnavailable)
        for each in later:
            each.result(SOON)


def test_a_server_that_forgot_the_script_is_told_it_whole(redis_server: RedisServer) -> None:
    probe = Probe(redis_server)
    frame = INSPECT.head(3, lock_keys("default", "k"), 0)
    with _pool(redis_server.url) as pool:
        for replies in (1, 2):
            probe.ask("SCRIPT", "FLUSH")
            reply = pool.send(frame * replies, now() + LONG, script=INSPECT, replies=replies)
            found = reply.value if replies == 2 else [reply.value]
            assert not any(isinstance(each, Exception) for each in found)


def test_an_error_among_several_replies_is_one_of_them(redis_server: RedisServer) -> None:
    with _pool(redis_server.url) as pool:
        reply = pool.send(command(b"GET") + command(b"ECHO", b"x"), now() + LONG, replies=2)
        assert "wrong number" in str(reply.value[0])
        assert isinstance(reply.value[0], Exception)
        assert reply.value[1] == b"x"


@pytest.mark.usefixtures("untraced")  # a busy thread may have coverage's lock, which the child would wait for
def test_a_forked_child_goes_its_own_way_though_requests_are_in_flight(redis_server: RedisServer) -> None:
    with _pool(redis_server.url) as pool, Crowd(4, partial(_mixed, pool)) as crowd:
        for turn in range(5):
            crowd.all_go_on()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    signal.alarm(30)
                    pool.after_fork()
                    for step in range(20):
                        _ask(pool, f"child:{turn}:{step}")
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        crowd.all_go_on()
    until(lambda: not Probe(redis_server).clients())


def test_a_renewal_does_not_starve_behind_a_crowd(redis_server: RedisServer) -> None:
    """First come, first served."""
    with FaultProxy(redis_server.address) as proxy, _pool(proxy.url) as pool:
        _ask(pool, "connected")
        proxy.pause()
        served: list[int] = []

        def ask(number: int) -> None:
            _ask(pool, str(number))
            served.append(number)

        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            until(lambda n=number: _under_way(pool) == n + 1)  # type: ignore[misc]
        link = pool._links[0]
        waiting = [int(request.frame.split(b"\r\n")[-2]) for request in (*link._sent, *link._queue)]
        assert waiting == sorted(waiting)
        proxy.resume()
        for each in threads:
            each.join(SOON)
        assert sorted(served) == list(range(20))
