"""The faulty network does what it is told, between a real client and a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, strategies as st

from distlock.testing.proxy import FaultProxy, Traffic, _RequestReader

from .servers import RedisServer, _encode

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"

Connect = Callable[[], socket.socket]


@pytest.fixture
def proxy(redis_proxy: FaultProxy) -> FaultProxy:
    return redis_proxy


@pytest.fixture
def connect(proxy: FaultProxy) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(proxy.address, timeout=10))


def ask(link: socket.socket, request: bytes = PING, size: int = len(PONG)) -> bytes:
    link.sendall(request)
    return read(link, size)


def read(link: socket.socket, size: int = len(PONG)) -> bytes:
    data = b""
    while len(data) < size and (more := link.recv(size - len(data))):
        data += more
    return data


def is_silent(link: socket.socket) -> bool:
    link.settimeout(0.2)
    try:
        link.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        link.settimeout(10)


def test_it_passes_bytes_both_ways(connect):
    assert ask(connect()) == PONG


def test_large_values_pass_whole(connect):
    value = bytes(range(256)) * 40_000
    link = connect()
    assert ask(link, _encode(["SET", "large", value]), 5) == b"+OK\r\n"
    header = b"$%d\r\n" % len(value)
    assert ask(link, _encode(["GET", "large"]), len(header) + len(value) + 2) == header + value + b"\r\n"


def test_it_reaches_a_unix_socket(redis_server):
    with FaultProxy(redis_server.socket_path) as proxy, socket.create_connection(proxy.address) as link:
        assert ask(link) == PONG
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            link.recv(1)


def test_it_counts_connections_commands_flights_and_bytes(proxy, connect):
    before = proxy.traffic
    one, two = connect(), connect()
    ask(one)
    ask(one, PING * 3, len(PONG) * 3)  # a pipeline is one flight
    ask(two)
    bytes_each_way = {"bytes_sent": 5 * len(PING), "bytes_received": 5 * len(PONG)}
    assert proxy.traffic - before == Traffic(connections=2, commands=5, flights=3, **bytes_each_way)
    assert proxy.sent == ["PING"] * 5


def test_a_request_in_two_pieces_is_one_flight(proxy, connect):
    link = connect()
    link.sendall(PING[:9])
    proxy.wait_for(lambda: proxy.traffic.flights == 1)
    assert ask(link, PING[9:]) == PONG
    assert (proxy.traffic.commands, proxy.traffic.flights) == (1, 1)


def test_a_dropped_reply_resets_the_connection_after_the_command_was_done(proxy, connect):
    proxy.drop_replies()
    with pytest.raises(ConnectionResetError):
        ask(connect(), _encode(["INCR", "n"]))
    assert ask(connect(), _encode(["INCR", "n"]), 4) == b":2\r\n"


def test_a_dropped_reply_can_leave_silence(proxy, connect):
    proxy.drop_replies(then="silence")
    link = connect()
    link.sendall(_encode(["INCR", "n"]))
    assert is_silent(link)
    link.sendall(PING)
    assert is_silent(link)
    assert ask(connect(), _encode(["INCR", "n"]), 4) == b":2\r\n"
    link.close()
    proxy.wait_for(lambda: proxy.open_links == 1)


def test_only_replies_to_the_named_command_are_dropped(proxy, connect):
    proxy.drop_replies(to="incr")
    link = connect()
    assert ask(link) == PONG
    with pytest.raises(ConnectionResetError):
        ask(link, _encode(["INCR", "n"]))


def test_as_many_replies_are_dropped_as_asked(proxy, connect):
    proxy.drop_replies(2)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            ask(connect())
    assert ask(connect()) == PONG


def test_a_dropped_request_never_reaches_the_server(proxy, connect):
    proxy.drop_requests(to="INCR")
    with pytest.raises(ConnectionResetError):
        ask(connect(), _encode(["INCR", "n"]))
    assert ask(connect(), _encode(["INCR", "n"]), 4) == b":1\r\n"


def test_reset_all_ends_every_connection(proxy, connect):
    links = [connect(), connect()]
    for link in links:
        ask(link)
    proxy.reset_all()
    for link in links:
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    assert proxy.open_links == 0
    assert ask(connect()) == PONG


def test_a_pause_holds_bytes_back_and_loses_none(proxy, connect):
    link = connect()
    ask(link)
    proxy.pause()
    link.sendall(PING)
    assert is_silent(link)
    assert len(proxy.sent) == 1
    proxy.resume()
    assert read(link) == PONG


def test_replies_alone_can_be_held_back(proxy, connect):
    link, other = connect(), connect()
    proxy.pause(requests=False)
    link.sendall(_encode(["INCR", "n"]))
    proxy.wait_for(lambda: proxy.sent == ["INCR"])
    assert is_silent(link)
    proxy.resume()
    assert read(link, 4) == b":1\r\n"
    assert ask(other, _encode(["INCR", "n"]), 4) == b":2\r\n"


def test_refused_connections_leave_open_ones_alone(proxy, connect):
    link = connect()
    ask(link)
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert ask(link) == PONG
    proxy.accept()
    assert ask(connect()) == PONG


def test_a_delay_counts_in_each_direction(proxy, connect):
    link = connect()
    ask(link)
    proxy.delay(0.1)
    started = time.monotonic()
    assert ask(link) == PONG
    assert time.monotonic() - started >= 0.2
    proxy.delay(0)
    assert ask(link) == PONG


def test_healed_it_passes_everything_at_once(proxy, connect):
    link = connect()
    ask(link)
    proxy.delay(600)
    link.sendall(PING)
    proxy.wait_for(lambda: proxy.traffic.commands == 2)
    proxy.drop_replies(9)
    proxy.pause()
    proxy.refuse()
    proxy.heal()
    assert read(link) == PONG
    assert ask(connect()) == PONG


def test_healed_it_resets_what_was_silent(proxy, connect):
    link = connect()
    ask(link)
    proxy.silence_all()
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        link.recv(1)


def test_the_end_of_a_stream_is_passed_on(proxy, connect):
    link = connect()
    assert ask(link, _encode(["QUIT"]), 5) == b"+OK\r\n"
    assert link.recv(1) == b""
    link.close()
    proxy.wait_for(lambda: proxy.open_links == 0)


def test_a_server_that_is_down_looks_like_a_reset(redis_server):
    with FaultProxy(redis_server.address) as proxy:
        redis_server.stop()
        with socket.create_connection(proxy.address) as link, pytest.raises(ConnectionResetError):
            link.recv(1)
        redis_server.start()
        with socket.create_connection(proxy.address) as link:
            assert ask(link) == PONG


def test_a_server_that_crashes_ends_its_connections():
    with (
        RedisServer() as server,
        FaultProxy(server.address) as proxy,
        socket.create_connection(proxy.address) as link,
    ):
        ask(link)
        server.kill()
        assert link.recv(1) == b""
        server.start()


def test_waiting_for_what_does_not_come_ends(proxy):
    with pytest.raises(TimeoutError, match="0 connections"):
        proxy.wait_for(lambda: False, timeout=0.01)


def test_closing_leaves_no_thread_and_no_connection(redis_url, proxy):
    with FaultProxy(proxy.address) as mine:
        link = socket.create_connection(mine.address, timeout=10)
        ask(link)
    with link:
        assert link.recv(1) == b""
    assert mine._thread not in threading.enumerate()
    mine.close()


@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=4), max_size=5), st.data())
def test_commands_are_named_however_the_stream_is_cut(commands, data):
    stream = b"".join(_encode(command) for command in commands)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = _RequestReader()
    names = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        names += reader.feed(stream[start:end])
    assert names == [command[0].decode("latin-1").upper() for command in commands]


def test_what_is_not_redis_is_not_counted():
    reader = _RequestReader()
    assert reader.feed(b"\x16\x03\x01\x02\r\n") == []
    assert reader.feed(PING) == []
