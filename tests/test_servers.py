"""The servers that tests start are what they are said to be, and end with the tests."""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import psutil
import pytest
import redis

from distlock.testing._ports import _ports_in_turn

from .clusters import ClusterSetup
from .sentinels import SentinelSetup
from .servers import RedisServer, require_valkey, wait_until


def test_it_answers_on_its_port_and_its_socket(redis_server):
    for url in (redis_server.url, redis_server.unix_url):
        with redis.Redis.from_url(url) as client:
            assert client.ping()


def test_nothing_is_left_behind():
    with RedisServer() as server:
        pid, folder = server.pid, server.folder
    assert not psutil.pid_exists(pid)
    assert not folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_dies_with_the_process_that_started_it():
    code = (
        "import sys, tests.servers as s, threading\n"
        "server = s.RedisServer(); starter = threading.Thread(target=server.start)\n"
        "starter.start(); starter.join()\n"  # the end of a mere thread must not be the server's
        "assert server.command('PING') == 'PONG'\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        folder = Path(psutil.Process(pid).cwd()).parent
        server = os.pidfd_open(pid)
        child.kill()
        child.wait()
    try:
        assert select.select([server], [], [], 10)[0] == [server]
    finally:
        os.close(server)
        shutil.rmtree(folder)


@pytest.mark.parametrize(("data", "left"), [(True, b"1"), (False, None)])
def test_a_restart_keeps_the_address_and_the_data_if_asked(redis_server, data, left):
    before = redis_server.url
    redis_server.command("SET", "k", 1)
    redis_server.restart(data=data)
    assert redis_server.url == before
    assert redis_server.command("GET", "k") == left


@pytest.mark.parametrize(("appendonly", "left"), [(True, b"1"), (False, None)])
def test_a_crash_keeps_what_was_appended(appendonly, left):
    with RedisServer(appendonly=appendonly) as server:
        server.command("SET", "k", 1)
        server.restart(crash=True)
        assert server.command("GET", "k") == left


def test_a_paused_server_is_silent_until_it_is_resumed(redis_server):
    with socket.create_connection(redis_server.address, timeout=0.2) as link:
        redis_server.pause()
        link.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            link.recv(10)
        redis_server.resume()
        link.settimeout(10)
        assert link.recv(10) == b"+PONG\r\n"


def test_a_paused_server_can_be_stopped(redis_server):
    redis_server.pause()
    redis_server.stop()
    redis_server.start()


def test_a_password_is_asked_for():
    with RedisServer(requirepass="s e/c@ret") as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        wrong = server.url_at(server.port, password="wrong")
        with redis.Redis.from_url(wrong) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_users_have_the_rights_that_were_given():
    server = RedisServer(users={"reader": "on >pw ~* &* +get"})
    with server, redis.Redis.from_url(server.url_at(server.port, user="reader", password="pw")) as client:
        assert client.get("k") is None
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("k", "v")


def test_tls_is_verified_by_its_authority():
    with RedisServer(tls=True) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with socket.create_connection(server.address) as link, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(link, server_hostname="127.0.0.1")


def test_memory_is_limited():
    with RedisServer(maxmemory="100kb") as server, pytest.raises(RuntimeError, match="OOM"):
        server.command("SET", "k", "v")


def test_a_taken_port_is_not_the_end(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        free_port = sys.modules["tests.programs"]._free_port
        monkeypatch.setattr("tests.programs._free_port", lambda: next(ports, None) or free_port())
        with RedisServer() as server:
            assert server.port != taken.getsockname()[1]


def test_a_port_that_was_given_up_stays_its_users_own(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    given: list[int] = []
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        given += islice(_ports_in_turn(), 3500)
    assert len(set(given)) == len(given) == 7000


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match="no-such-option"), RedisServer("no-such-option 1"):
        pass


def test_a_valkey_server_is_one(valkey_server):
    info = valkey_server.command("INFO", "server")
    assert isinstance(info, bytes)
    assert b"server_name:valkey" in info
    with redis.Redis.from_url(valkey_server.url) as client:
        assert client.ping()


@pytest.mark.parametrize("setup", [ClusterSetup, SentinelSetup])
def test_valkey_serves_in_every_topology(setup):
    with setup(binary=require_valkey()) as made:
        old = made.servers[0]
        assert (made.failover(old) if setup is ClusterSetup else made.failover()) is not old


def test_a_replica_follows_its_primary_until_it_is_told_to_follow_no_one(redis_server):
    redis_server.command("SET", "k", 1)
    with RedisServer(replica_of=redis_server.address) as replica:
        wait_until(lambda: replica.linked, "the replica to have the data")
        assert (replica.role(), replica.command("GET", "k")) == ("replica", b"1")
        replica.replicate(None)
        assert replica.role() == "primary"
        replica.command("SET", "k", 2)
        replica.replicate(redis_server)
        assert replica.command("GET", "k") == b"1"


def test_starting_from_many_threads():
    servers = [RedisServer() for _ in range(3)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert [server.command("PING") for server in servers] == ["PONG"] * 3
    finally:
        for server in servers:
            server.__exit__()
