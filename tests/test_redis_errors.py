"""What comes out when Redis refuses or cannot be reached: one of our errors, with the address and without secrets."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

import distlock
from distlock import BackendError, BackendUnavailable, ConfigurationError
from distlock.testing.proxy import FaultProxy

from .redis_tools import Colour, Connect, Probe, in_colours
from .servers import RedisServer, bind_free_port

SECRET = "hunter2-s3cr3t"


def assert_safe(error: BaseException) -> None:
    """Neither the error nor what it was raised from tells the password."""
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr(error) + str(getattr(error, "__notes__", "")) + repr(vars(error))


@in_colours()
async def test_a_server_that_is_not_there(colour: Colour, connect: Connect, key: str) -> None:
    """redsync: "connection refused" alone does not say where, or what to do about it."""
    with bind_free_port() as nobody:
        port = nobody.getsockname()[1]
        lock = connect(f"redis://user:{SECRET}@127.0.0.1:{port}/3").lock(key)
        for timeout in (None, 5.0, 0.0):
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="is it running") as caught:
                await colour.acquire(lock, timeout=timeout)
            assert time.monotonic() - started < 4, "at once, not after an op_timeout"
            assert caught.value.key == key
            assert caught.value.backend == f"redis://127.0.0.1:{port}/3"
            assert str(caught.value.backend) in str(caught.value)
            assert not caught.value.sent
            assert_safe(caught.value)
        with pytest.raises(BackendUnavailable):
            await colour.try_acquire(lock)


@in_colours()
async def test_a_network_that_swallows_everything(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """aioredlock#59: a black hole costs the timeout, not for ever."""
    with FaultProxy(redis_server.address) as proxy:
        proxy.pause()
        lock = connect(proxy.url, op_timeout=0.3).lock(key)
        with pytest.raises(BackendUnavailable, match="in time") as caught:
            await colour.acquire(lock, timeout=None)
        assert caught.value.key == key
        proxy.resume()
        await colour.until(lambda: not Probe(redis_server).keys())


@in_colours()
async def test_a_missing_unix_socket(colour: Colour, connect: Connect, key: str, tmp_path: Path) -> None:
    """redis-py says "No such file or directory" of no file."""
    lock = connect(f"unix://user:{SECRET}@{tmp_path}/none.sock?db=2").lock(key)
    with pytest.raises(BackendUnavailable, match="is it running") as caught:
        await colour.acquire(lock)
    assert caught.value.backend == f"unix://{tmp_path}/none.sock?db=2"
    assert_safe(caught.value)


REFUSALS: dict[str, tuple[Callable[[], RedisServer], str, str | None, str]] = {
    "no password": (lambda: RedisServer(requirepass=SECRET), "", "", "password"),
    "wrong password": (lambda: RedisServer(requirepass="other"), "", SECRET, "password"),
    "unknown user": (RedisServer, "nobody", SECRET, "password"),
    "no permission": (lambda: RedisServer(users={"app": f"on >{SECRET} ~* +@all -@scripting"}), "app", SECRET, "ACL"),
    "other keys": (lambda: RedisServer(users={"app": f"on >{SECRET} ~other:* &* +@all"}), "app", SECRET, "ACL"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@in_colours()
async def test_a_server_that_does_not_let_us_in(colour: Colour, connect: Connect, key: str, refusal: str) -> None:
    """redis.io, "ACL": NOAUTH, WRONGPASS and NOPERM are answers, to be told apart from an outage."""
    make, user, password, hint = REFUSALS[refusal]
    with make() as server:
        lock = connect(server.url_at(server.port, user=user, password=password)).lock(key)
        for timeout in (None, 0.0):
            with pytest.raises(BackendError, match=hint) as caught:
                await colour.acquire(lock, timeout=timeout)
            assert not isinstance(caught.value, BackendUnavailable)
            assert caught.value.key == key
            assert caught.value.backend == f"redis://127.0.0.1:{server.port}/0"
            assert_safe(caught.value)
        assert Probe(server).ask("DBSIZE") == 0


@in_colours()
async def test_the_permissions_that_the_message_asks_for_are_enough(colour: Colour, connect: Connect, key: str) -> None:
    """redis.io, "ACL": who runs with least privilege must know what that is."""
    rules = f"on >{SECRET} ~distlock:* &distlock:* +@scripting +@read +@write +@pubsub +@connection +time"
    with RedisServer(users={"app": rules}) as server:
        probe = Probe(server)
        locks = connect(server.url_at(server.port, user="app", password=SECRET))
        lease = await colour.acquire(locks.lock(key))
        waiter = colour.start(lambda: colour.acquire(locks.lock(key)))
        await colour.until(lambda: probe.queued(key) == 1)
        await colour.extend(lease)
        await colour.release(lease)
        await colour.release(await waiter.result())
        assert probe.keys() == set()
        assert probe.ask("ACL", "LOG") == []


@in_colours()
async def test_a_user_that_may_not_subscribe_is_told_so_and_leaves_no_place(
    colour: Colour, connect: Connect, key: str
) -> None:
    """redis.io, "ACL": channels are refused to new users by default since 7."""
    with RedisServer(users={"app": f"on >{SECRET} ~* resetchannels +@all"}) as server:
        probe = Probe(server)
        locks = connect(server.url_at(server.port, user="app", password=SECRET))
        lease = await colour.acquire(locks.lock(key))
        with pytest.raises(BackendError, match="ACL") as caught:
            await colour.acquire(locks.lock(key))
        assert_safe(caught.value)
        assert probe.keys() == {probe.name(key)}
        await colour.release(lease)


@in_colours()
async def test_a_full_server(colour: Colour, connect: Connect, key: str) -> None:
    """redis.io, "Key eviction": with noeviction a full server refuses to write; what is held can still be given up."""
    with RedisServer(maxmemory="100mb") as server:
        probe = Probe(server)
        locks = connect(server.url)
        lease = await colour.acquire(locks.lock("held"))
        before = probe.ask("DBSIZE")
        probe.ask("CONFIG", "SET", "maxmemory", "1")
        for timeout in (None, 0.0):
            with pytest.raises(BackendError, match="maxmemory") as caught:
                await colour.acquire(locks.lock(key), timeout=timeout)
            assert caught.value.key == key
        assert probe.ask("DBSIZE") == before
        await colour.extend(lease)
        await colour.release(lease)
        assert probe.keys() == set()


@in_colours()
async def test_a_read_only_replica(colour: Colour, connect: Connect, redis_server: RedisServer, key: str) -> None:
    """redis.io, "Replication": READONLY, said at once and not after retrying for an op_timeout."""
    redis_server.command("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    with RedisServer(f"replicaof 127.0.0.1 {redis_server.port}") as replica:
        await colour.until(lambda: b"master_link_status:up" in Probe(replica).ask("INFO", "replication"))
        lock = connect(replica.url, op_timeout=30.0).lock(key)
        for timeout in (None, 0.0):
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="primary") as caught:
                await colour.acquire(lock, timeout=timeout)
            assert not caught.value.sent, "the server has not done it"
            assert time.monotonic() - started < 15
    assert Probe(redis_server).ask("DBSIZE") == 0


@in_colours()
async def test_a_server_that_is_loading_its_data(colour: Colour, connect: Connect, key: str) -> None:
    """redis-py: LOADING is an answer of the server, to every command. It says so at once, not after an op_timeout."""
    with RedisServer("enable-debug-command yes", "loading-process-events-interval-bytes 1024") as server:
        probe = Probe(server)
        probe.ask("DEBUG", "POPULATE", 20_000)
        probe.ask("CONFIG", "SET", "key-load-delay", 1000)  # microseconds a key

        def reload() -> None:
            with suppress(OSError, RuntimeError):  # it ends with the server
                probe.ask("DEBUG", "RELOAD")

        lock = connect(server.url, op_timeout=30.0).lock(key)
        await colour.release(await colour.acquire(lock))
        threading.Thread(target=reload, daemon=True).start()
        await colour.until(lambda: _is_loading(probe))
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match="loading") as caught:
            await colour.acquire(lock, timeout=None)
        assert not caught.value.sent, "the server has not done it"
        assert time.monotonic() - started < 15


def _is_loading(probe: Probe) -> bool:
    try:
        probe.ask("PING")
    except RuntimeError as error:
        return "LOADING" in str(error)
    return False


@pytest.mark.parametrize("part", ["", ":q", ":w"])
@in_colours()
async def test_keys_of_another_type(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, part: str
) -> None:
    """redis.io, WRONGTYPE: someone else's list where the lock should be is neither "busy" nor ours to destroy."""
    probe = Probe(redis_server)
    probe.ask("RPUSH" if part != "" else "SADD", probe.name(key, part), "foreign")
    locks = connect(redis_server.url)
    if part == ":q":  # looked at only when somebody has to queue
        probe.ask("SET", probe.name(key), "taken")
    with pytest.raises(BackendError, match="another kind") as caught:
        await colour.acquire(locks.lock(key))
    assert caught.value.key == key
    assert probe.ask("TYPE", probe.name(key, part)) == ("list" if part != "" else "set")


@pytest.mark.parametrize("why", ["authority", "hostname"])
@in_colours()
async def test_a_certificate_that_proves_nothing(
    colour: Colour, connect: Connect, key: str, why: str, tmp_path: Path
) -> None:
    """redis.io, "TLS": an unknown authority is no server to trust with a lock."""
    with RedisServer(tls=True) as server:
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        ca = server.ca_file if why == "hostname" else str(other)
        host = "127.0.0.2" if why == "hostname" else "127.0.0.1"
        server.command("CONFIG", "SET", "bind", "127.0.0.1 127.0.0.2")
        url = f"rediss://:{SECRET}@{host}:{server.port}/0?ssl_ca_certs={ca}"
        with pytest.raises(BackendUnavailable, match=r"(?i)certificate") as caught:
            await colour.acquire(connect(url).lock(key))
        assert caught.value.backend == f"rediss://{host}:{server.port}/0"
        assert_safe(caught.value)


@in_colours()
async def test_a_database_that_does_not_exist(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py: SELECT fails after the connection was made."""
    lock = connect(redis_server.url_at(redis_server.port, db=99)).lock(key)
    with pytest.raises(BackendError, match="DB index") as caught:
        await colour.acquire(lock)
    assert caught.value.backend == f"redis://127.0.0.1:{redis_server.port}/99"


@in_colours()
async def test_no_connection_stays_behind_an_error(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py#732 and others: an error during the handshake leaks the socket."""
    probe = Probe(redis_server)
    locks = connect(redis_server.url_at(redis_server.port, db=99))
    for _ in range(20):
        with pytest.raises(BackendError):
            await colour.acquire(locks.lock(key))
    await colour.until(lambda: not probe.clients())


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}/slash@host:6379/0",
        f"redis://user:{SECRET}?question@host:6379/0",
        f"redis://user:{SECRET}#hash@host:6379/0",
        f"redis://user:pass@host:{SECRET}/0",
        f"redis://host:6379/0?socket_timeout={SECRET}",
        f"redis://user:{SECRET}@[::1:6379/0",
        f"user:{SECRET}@host:6379",
        f"redos://user:{SECRET}@host:6379/0",
    ],
)
def test_a_url_that_does_not_parse_is_said_without_its_secrets(url: str) -> None:
    """urllib.parse: "Port could not be cast to integer value as '<half of the password>'"."""
    with pytest.raises(ConfigurationError) as caught:
        distlock.connect(url)
    assert_safe(caught.value)
