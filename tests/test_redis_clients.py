"""However the client at hand is set up, a lock behaves the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

import distlock
from distlock import AcquireTimeout, ConfigurationError, Manager, Unsupported

from .redis_tools import Colour, Connect, Probe, in_colours
from .servers import RedisServer

ODD = "p@ss:w/rd?#%&=+ é\"'[]{}"
"""A password that every delimiter of a URL is part of."""


async def assert_works(colour: Colour, locks: Manager, server: RedisServer, key: str) -> None:
    """A lock is taken, waited for, not got in time, looked at, kept and handed over."""
    probe = Probe(server)
    lease = await colour.acquire(locks.lock(key, ttl=12.0, metadata={"für": "☂"}))
    assert lease.token > 0
    with pytest.raises(AcquireTimeout) as caught:
        await colour.acquire(locks.lock(key), timeout=1.0)
    holder = caught.value.holder
    assert holder is not None
    assert holder.metadata == {"für": "☂"}
    assert holder.token == lease.token
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=12.0)))
    await colour.until(lambda: probe.queued(key) == 1)
    inspection = await colour.inspect(locks, key)
    assert len(inspection.waiters) == 1
    listed = await colour.list(locks)
    assert [each.key for each in listed] == [key]
    await colour.extend(lease)
    before = probe.calls()["hset"]
    await colour.until(lambda: probe.calls()["hset"] > before)  # a refresh, later than every socket_timeout below
    lease.ensure_held()
    await colour.release(lease)
    served = await waiter.result()
    assert served.token > lease.token
    await colour.release(served)
    await colour.until(lambda: not probe.keys())


CLIENTS: dict[str, Callable[[RedisServer], Any]] = {
    "plain": lambda server: redis.Redis(port=server.port),
    "decoding": lambda server: redis.Redis(port=server.port, decode_responses=True),
    "other encoding": lambda server: redis.Redis(port=server.port, decode_responses=True, encoding="utf-16"),
    "RESP2": lambda server: redis.Redis(port=server.port, protocol=2),
    "RESP3": lambda server: redis.Redis(port=server.port, protocol=3, decode_responses=True),
    "impatient": lambda server: redis.Redis(port=server.port, socket_timeout=0.2),
    "with health checks": lambda server: redis.Redis(port=server.port, health_check_interval=1),
    "single connection": lambda server: redis.Redis(port=server.port, single_connection_client=True),
    "by URL": lambda server: redis.Redis.from_url(server.url, decode_responses=True),
    "unix": lambda server: redis.Redis(unix_socket_path=server.socket_path),
    "blocking pool": lambda server: redis.Redis(
        connection_pool=redis.BlockingConnectionPool(port=server.port, max_connections=1, timeout=1)
    ),
    "asyncio": lambda server: redis.asyncio.Redis(port=server.port),
    "asyncio, RESP3, decoding": lambda server: redis.asyncio.Redis(
        port=server.port, protocol=3, decode_responses=True, socket_timeout=0.2
    ),
    "asyncio by URL": lambda server: redis.asyncio.Redis.from_url(server.url),
    "asyncio, unix": lambda server: redis.asyncio.Redis(unix_socket_path=server.socket_path),
}


@pytest.mark.parametrize("kind", CLIENTS)
@in_colours()
async def test_a_ready_client_lends_its_address_and_nothing_of_its_ways(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, kind: str
) -> None:
    """rq#2120: a socket_timeout shorter than a wait is an error; redis-py's Lock fails with decode_responses."""
    client = CLIENTS[kind](redis_server)
    await assert_works(colour, connect(client), redis_server, key)
    if isinstance(client, redis.Redis):
        client.close()


QUERIES = {
    "nothing": "",
    "decoding": "?decode_responses=True",
    "RESP3": "?protocol=3",
    "impatient": "?socket_timeout=0.2&socket_connect_timeout=0.5",
    "named": "?client_name=billing",
    "keepalive": "?socket_keepalive=True&health_check_interval=1",
    "db": "?db=4",
}


@pytest.mark.parametrize("query", QUERIES)
@in_colours()
async def test_query_parameters_of_a_url_are_read_as_redis_py_reads_them(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, query: str
) -> None:
    """redis-py, ``from_url``: names and passwords, the database and the client's name count; the rest is ours."""
    url = f"redis://127.0.0.1:{redis_server.port}{QUERIES[query]}"
    locks = connect(url)
    lease = await colour.acquire(locks.lock(key))
    clients = Probe(redis_server).clients()
    assert {client["db"] for client in clients} == {"4" if query == "db" else "0"}
    assert {client["name"] for client in clients} == {"billing" if query == "named" else ""}
    assert {client["resp"] for client in clients} == {"2"}
    await colour.release(lease)


@pytest.mark.parametrize("how", ["url", "query", "client", "asyncio client", "unix"])
@in_colours()
async def test_odd_users_and_passwords(colour: Colour, connect: Connect, key: str, how: str) -> None:
    """redis.io, "URI scheme": percent-encoded in a URL, as they are in a client."""
    user = "us:er/@?"
    with RedisServer() as server:
        probe = Probe(server)
        probe.ask("ACL", "SETUSER", user, "on", f">{ODD}", "~*", "&*", "+@all")
        probe.ask("ACL", "SETUSER", "default", "off")
        login = f"{quote(user, safe='')}:{quote(ODD, safe='')}@"
        target = {
            "url": lambda: f"redis://{login}127.0.0.1:{server.port}/5",
            "query": lambda: (
                f"redis://127.0.0.1:{server.port}/5?username={quote(user, safe='')}&password={quote(ODD, safe='')}"
            ),
            "client": lambda: redis.Redis(port=server.port, db=5, username=user, password=ODD),
            "asyncio client": lambda: redis.asyncio.Redis(port=server.port, db=5, username=user, password=ODD),
            "unix": lambda: f"unix://{login}{server.socket_path}?db=5",
        }[how]()
        locks = connect(target)
        for text in (repr(locks), locks.address):
            assert ODD not in text
            assert quote(ODD, safe="") not in text
            assert user not in text
            assert "5" in text
        lease = await colour.acquire(locks.lock(key))
        assert {(client["user"], client["db"]) for client in probe.clients()} == {(user, "5")}
        assert ODD not in repr(lease) + str(vars(locks))
        await colour.release(lease)


@pytest.fixture(scope="module")
def tls_server() -> Iterator[RedisServer]:
    with RedisServer(tls=True) as server:
        yield server


TLS: dict[str, Callable[[RedisServer], Any]] = {
    "url": lambda server: server.url,
    "unchecked": lambda server: f"rediss://127.0.0.1:{server.port}/0?ssl_cert_reqs=none&ssl_check_hostname=False",
    "client": lambda server: redis.Redis(port=server.port, host="127.0.0.1", ssl=True, ssl_ca_certs=server.ca_file),
    "asyncio client": lambda server: redis.asyncio.Redis(
        port=server.port, host="127.0.0.1", ssl=True, ssl_ca_certs=server.ca_file
    ),
    "client by URL": lambda server: redis.Redis.from_url(server.url),
}


@in_colours("asyncio")
async def test_what_redis_py_cannot_do_on_asyncio_is_done_in_threads(
    colour: Colour, connect: Connect, tls_server: RedisServer, key: str
) -> None:
    """redis-py checks certificates by OCSP in sync code only: the check must not be left out in silence."""
    client = redis.Redis(port=tls_server.port, host="127.0.0.1", ssl=True, ssl_ca_certs=tls_server.ca_file)
    assert connect(client)._backend.native() is not None
    client.connection_pool.connection_kwargs["ssl_validate_ocsp"] = True
    assert connect(client)._backend.native() is None


@pytest.mark.parametrize("kind", TLS)
@in_colours()
async def test_tls(colour: Colour, connect: Connect, tls_server: RedisServer, key: str, kind: str) -> None:
    """redis.io, "TLS". The options of a sync client go for asyncio too, which knows fewer of them."""
    locks = connect(TLS[kind](tls_server))
    assert locks.address == f"rediss://127.0.0.1:{tls_server.port}/0"
    await assert_works(colour, locks, tls_server, key)


def _clients_of_other_kinds() -> dict[str, Callable[[], Any]]:
    sentinel = redis.sentinel.Sentinel([("127.0.0.1", 1)])
    async_sentinel = redis.asyncio.sentinel.Sentinel([("127.0.0.1", 1)])
    return {
        "Sentinel": lambda: sentinel,
        "asyncio Sentinel": lambda: async_sentinel,
        "a pool": lambda: redis.ConnectionPool(),
        "a way of its own": lambda: redis.Redis(
            connection_pool=redis.ConnectionPool(redis_connect_func=lambda connection: None)
        ),
    }


@pytest.mark.parametrize("kind", _clients_of_other_kinds())
def test_a_client_of_another_kind_is_refused_when_it_is_given(kind: str) -> None:
    """It would be taken for something that it is not."""
    client = _clients_of_other_kinds()[kind]()
    with pytest.raises((Unsupported, ConfigurationError), match="not supported"):
        distlock.connect(client)


def test_an_async_client_is_not_used_and_not_closed(redis_server: RedisServer, key: str) -> None:
    """redis.asyncio: a client belongs to the loop that first used it; ours must work in any."""
    client = redis.asyncio.Redis(port=redis_server.port)
    with distlock.connect(client) as locks:

        async def once() -> None:
            async with locks.lock(key, timeout=5):
                pass

        for _ in range(2):
            asyncio.run(once())
        with locks.lock(key, timeout=5):
            pass

    async def still_works() -> None:
        assert await client.ping()
        await getattr(client, "aclose", client.close)()  # redis-py 5.0 has but the one

    asyncio.run(still_works())


@in_colours()
async def test_an_impatient_client_waits_as_long_as_its_timeout_says(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """rq#2120: socket_timeout=0.1 broke a wait of a second."""
    holder = await colour.acquire(connect(redis_server.url).lock(key))
    locks = connect(redis.Redis(port=redis_server.port, socket_timeout=0.1))
    started = time.monotonic()
    with pytest.raises(AcquireTimeout):
        await colour.acquire(locks.lock(key), timeout=2.0)
    assert time.monotonic() - started >= 2.0
    await colour.release(holder)
