"""The one connection that the tasks of an event loop share: whose reply is whose, and what becomes of them all."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import pytest
from redis.exceptions import ResponseError

import distlock
from distlock import BackendError, BackendUnavailable, LeaseState
from distlock.backends.base import now
from distlock.backends.redis._aio import AsyncPool
from distlock.backends.redis._connect import Server
from distlock.backends.redis._pool import Reply
from distlock.backends.redis._scripts import SERVER, command
from distlock.testing.proxy import FaultProxy

from .redis_tools import Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 30.0
"""Seconds within which all is well."""
TASKS = 200


@asynccontextmanager
async def _pool(url: str, op_timeout: float = LONG) -> AsyncIterator[AsyncPool]:
    pool = AsyncPool(Server.from_url(url), op_timeout)
    try:
        yield pool
    finally:
        await pool.aclose()


def _on_asyncio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """redis-py knows no other event loop."""

    @in_colours("asyncio")
    async def run(colour: Colour, redis_server: RedisServer, key: str) -> None:
        await test(redis_server, key)

    run.__name__, run.__doc__ = getattr(test, "__name__", ""), test.__doc__
    return run


async def _echo(pool: AsyncPool, word: bytes, within: float = LONG) -> Reply:
    return await pool.send(command(b"ECHO", word), now() + within)


async def _seen(proxy: FaultProxy, name: str, count: int) -> None:
    await asyncio.to_thread(proxy.wait_for, lambda: proxy.sent.count(name) >= count)


async def _asks_all_kinds(pool: AsyncPool, number: int, dice: random.Random) -> None:
    """Each reply tells whose it is."""
    for turn in range(8):
        word = b"%d of %d" % (turn, number) * dice.choice((1, 1, 500))
        kind = dice.randrange(4)
        if kind == 0:
            assert (await _echo(pool, word)).value == word
        elif kind == 1:
            text = f"MINE {turn} {number}"
            frame = command(b"EVAL", b"return redis.error_reply(ARGV[1])", b"0", text.encode())
            with pytest.raises(BackendError) as caught:
                await pool.send(frame, now() + LONG)
            assert text in str(caught.value.__cause__)
        elif kind == 2:
            script = b"return {tonumber(ARGV[1]), {ARGV[2], false}}"
            reply = await pool.send(command(b"EVAL", script, b"0", b"%d" % number, word), now() + LONG)
            assert reply.value == [number, [word, None]]
        else:
            frames = command(b"ECHO", word) + command(b"NONSENSE") + command(b"STRLEN", b"none")
            first, error, last = (await pool.send(frames, now() + LONG, replies=3)).value
            assert (first, last) == (word, 0)
            assert isinstance(error, ResponseError)


@pytest.mark.parametrize("seed", range(3))
@in_colours("asyncio")
async def test_each_gets_its_own_reply_whoever_is_cancelled_and_when(
    colour: Colour, redis_server: RedisServer, seed: int
) -> None:
    """redis-py#2665: a cancelled command's reply went to the next user of the connection."""
    dice = random.Random(seed)
    async with _pool(redis_server.url) as pool:
        tasks = [asyncio.create_task(_asks_all_kinds(pool, number, dice)) for number in range(TASKS)]
        doomed = dice.sample(tasks, TASKS // 2)
        for task in doomed:
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for task, outcome in zip(tasks, outcomes, strict=True):
            assert outcome is None or (task in doomed and isinstance(outcome, asyncio.CancelledError)), outcome
        assert (await _echo(pool, b"last")).value == b"last"


@_on_asyncio
async def test_what_is_asked_in_one_turn_of_the_loop_goes_out_in_one_write(server: RedisServer, key: str) -> None:
    writes: list[int] = []
    async with _pool(server.url) as pool:
        await _echo(pool, b"connected")
        link = pool._link
        assert link is not None
        write = link._write

        def counted(frames: bytes) -> None:
            writes.append(len(frames))
            write(frames)

        link._write = counted  # type: ignore[method-assign]
        for _ in range(10):
            await asyncio.gather(*[_echo(pool, b"%d" % number) for number in range(TASKS)])
    assert len(writes) <= 10 + 1, "who was alone so far does not wait for company"


@_on_asyncio
async def test_tasks_share_one_connection(server: RedisServer, key: str) -> None:
    probe = Probe(server)
    async with distlock.connect(server.url) as locks:
        names = [f"{key}:{number}" for number in range(TASKS)]
        leases = await asyncio.gather(*[locks.lock(name, ttl=300).acquire_async() for name in names])
        assert len(await asyncio.to_thread(probe.clients)) == 1
        assert len({lease.token for lease in leases}) == TASKS
        await asyncio.gather(*[lease.release() for lease in leases])
    assert not await asyncio.to_thread(probe.keys)


@in_colours("asyncio")
async def test_what_the_cancelled_were_granted_is_given_back(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.asyncio: a lock whose grant nobody received is held for its ttl."""
    probe, names = Probe(redis_server), [f"{key}:{number}" for number in range(20)]

    def held() -> int:
        return sum(probe.value(name) is not None for name in names)

    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url, op_timeout=LONG)
        await colour.release(await colour.acquire(locks.lock(key)))
        proxy.pause(requests=False)
        tasks = [colour.start(partial(colour.acquire, locks.lock(name, ttl=300))) for name in names]
        await colour.until(lambda: held() == len(names))
        leaving = [colour.start(task.cancel) for task in tasks[::2]]
        proxy.resume()
        for each in leaving:
            await each.result()
        await colour.until(lambda: held() == len(names) / 2)
        for task in tasks[1::2]:
            await colour.release(await task.result())
        await colour.until(lambda: held() == 0)


@_on_asyncio
async def test_a_release_in_a_cancelled_scope_is_done_when_it_returns(server: RedisServer, key: str) -> None:
    """redis-py#3847: a cancelled release is forgotten."""
    probe = Probe(server)
    async with distlock.connect(server.url) as locks:
        lease = await locks.lock(key, ttl=300).acquire_async()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await lease.release()
            assert lease.state is LeaseState.RELEASED
        assert not probe.keys()


@_on_asyncio
async def test_a_release_that_a_scope_cancels_on_the_way_is_done_when_it_returns(server: RedisServer, key: str) -> None:
    with FaultProxy(server.address) as proxy:
        async with distlock.connect(proxy.url) as locks:
            lease = await locks.lock(key, ttl=300).acquire_async()
            proxy.pause(requests=False)
            async with anyio.create_task_group() as group:
                group.start_soon(lease.release)
                await _seen(proxy, "EVALSHA", 2)
                group.cancel_scope.cancel()
                asyncio.get_running_loop().call_later(0.05, proxy.resume)
            assert lease.state is LeaseState.RELEASED
    assert not Probe(server).keys()


@_on_asyncio
async def test_who_runs_out_of_time_does_not_shift_the_replies(server: RedisServer, key: str) -> None:
    with FaultProxy(server.address) as proxy:
        async with _pool(proxy.url) as pool:
            await _echo(pool, b"connected")
            proxy.pause(requests=False)
            hasty = [asyncio.create_task(_echo(pool, b"hasty", within=0.01)) for _ in range(10)]
            patient = [asyncio.create_task(_echo(pool, b"%d" % number)) for number in range(10)]
            hasty += [asyncio.create_task(_echo(pool, b"hasty", within=0.02)) for _ in range(10)]
            for task in hasty:
                with pytest.raises(BackendUnavailable, match="in time"):
                    await task
            proxy.resume()
            assert [(await task).value for task in patient] == [b"%d" % number for number in range(10)]


@_on_asyncio
async def test_a_connection_that_says_nothing_is_left_by_all(server: RedisServer, key: str) -> None:
    """A NAT gateway has forgotten it: one caller's time is enough to find that out."""
    with FaultProxy(server.address) as proxy:
        async with _pool(proxy.url) as pool:
            await _echo(pool, b"connected")
            proxy.silence_all()
            patient = [asyncio.create_task(_echo(pool, b"%d" % number)) for number in range(10)]
            with pytest.raises(BackendUnavailable, match="in time"):
                await _echo(pool, b"hasty", within=0.5)
            assert [(await task) for task in patient] == [(b"%d" % number, True) for number in range(10)]
            assert proxy.traffic.connections == 2


@_on_asyncio
async def test_all_that_was_on_its_way_is_asked_again_on_one_new_connection(server: RedisServer, key: str) -> None:
    """A failover, CLIENT KILL, a proxy that was restarted: not one reconnection for each task."""
    with FaultProxy(server.address) as proxy:
        async with _pool(proxy.url) as pool:
            await _echo(pool, b"connected")
            proxy.pause(requests=False)
            tasks = [asyncio.create_task(_echo(pool, b"%d" % number)) for number in range(TASKS)]
            await _seen(proxy, "ECHO", TASKS + 1)
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            proxy.resume()
            replies = await asyncio.gather(*tasks)
            assert [reply.value for reply in replies] == [b"%d" % number for number in range(TASKS)]
            proxy.reset_all()
            assert await _echo(pool, b"and on") in {(b"and on", True), (b"and on", False)}
            assert proxy.traffic.connections <= 3


@_on_asyncio
async def test_a_connection_that_never_answered_is_not_tried_twice(server: RedisServer, key: str) -> None:
    with FaultProxy(server.address) as proxy:
        proxy.drop_replies(to="ECHO", then="reset")
        async with _pool(proxy.url) as pool:
            with pytest.raises(BackendUnavailable) as caught:
                await _echo(pool, b"word")
            assert caught.value.sent
            assert proxy.traffic.connections == 1


@_on_asyncio
async def test_an_error_in_place_of_a_welcome_is_why_the_connection_ends(server: RedisServer, key: str) -> None:
    """Redis says so unasked, perhaps before we have asked for anything."""
    with socket.create_server(("127.0.0.1", 0)) as full:
        async with _pool(f"redis://127.0.0.1:{full.getsockname()[1]}") as pool:
            link = await pool._connected(now() + LONG, None)
            client, _ = full.accept()
            with client:
                client.sendall(b"-ERR max number of clients reached\r\n")
                with anyio.fail_after(LONG):
                    while link.lost is None:  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(0.002)
                assert "max number of clients" in str(link.lost)


@_on_asyncio
async def test_who_connects_for_all_may_be_cancelled_or_run_out_of_time(server: RedisServer, key: str) -> None:
    with FaultProxy(server.address) as proxy:
        async with _pool(proxy.url.replace("/0", "/1")) as pool:
            proxy.pause()
            first, *others = [asyncio.create_task(_echo(pool, b"%d" % number)) for number in range(10)]
            hasty = asyncio.create_task(_echo(pool, b"hasty", within=0.05))
            with pytest.raises(BackendUnavailable, match="in time") as caught:
                await hasty
            assert not caught.value.sent
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            proxy.resume()
            assert [(await task).value for task in others] == [b"%d" % number for number in range(1, 10)]
            assert proxy.traffic.connections == 1


@_on_asyncio
async def test_a_connecting_that_was_cancelled_is_begun_anew(server: RedisServer, key: str) -> None:
    """Programs that end cancel all tasks there are, ours too, before the last release has been sent."""
    with FaultProxy(server.address) as proxy:
        async with _pool(proxy.url.replace("/0", "/1")) as pool:
            proxy.pause()
            waiting = asyncio.create_task(_echo(pool, b"word"))
            await asyncio.sleep(0.05)
            assert pool._connecting is not None
            pool._connecting.cancel()
            proxy.resume()
            assert (await waiting).value == b"word"


@_on_asyncio
async def test_a_connection_that_was_idle_for_long_is_not_used(server: RedisServer, key: str) -> None:
    probe = Probe(server)
    async with _pool(server.url) as pool:
        await _echo(pool, b"one")
        before = probe.clients()
        link = pool._link
        assert link is not None
        link._idle_limit = 0.0
        assert (await _echo(pool, b"two")).value == b"two"
        (after,) = probe.clients()
        assert [each["id"] for each in before] != [after["id"]]


@_on_asyncio
async def test_scripts_that_were_forgotten_are_sent_whole(server: RedisServer, key: str) -> None:
    async with _pool(server.url) as pool:
        frame = SERVER.acquire.head(0, b"", 0)  # it fails, but for another reason
        results = await asyncio.gather(
            *[pool.send(frame, now() + LONG, script=SERVER.acquire) for _ in range(10)], return_exceptions=True
        )
        assert all("NOSCRIPT" not in str(each) and isinstance(each, BackendError) for each in results)
        server.command("SCRIPT", "FLUSH")
        (one, two) = (await pool.send(frame + frame, now() + LONG, script=SERVER.acquire, replies=2)).value
        assert "matching script" not in f"{one} {two}"


async def _large(url: str) -> None:
    """More than fits into a socket's buffers, both ways."""
    words = [bytes([65 + number]) * 1_000_000 for number in range(20)]
    async with _pool(url) as pool:
        replies = await asyncio.gather(*[_echo(pool, word) for word in words])
    assert [reply.value for reply in replies] == words


@_on_asyncio
async def test_much_data_is_held_back_until_there_is_room(server: RedisServer, key: str) -> None:
    with FaultProxy(server.address) as proxy:
        async with _pool(proxy.url) as pool:
            await _echo(pool, b"connected")
            proxy.pause()
            tasks = []
            for number in range(20):
                tasks.append(asyncio.create_task(_echo(pool, bytes([65 + number]) * 1_000_000)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert pool._link is not None
            # The kernel takes the first ones, asyncio what did not fit; of what comes then it is given nothing.
            assert pool._link._transport.get_write_buffer_size() < 3_000_000
            proxy.resume()
            for number, task in enumerate(tasks):
                assert (await task).value == bytes([65 + number]) * 1_000_000


@_on_asyncio
async def test_large_requests_and_replies_pass_at_the_same_time(server: RedisServer, key: str) -> None:
    await _large(server.url)


@_on_asyncio
async def test_a_unix_socket_works_alike(server: RedisServer, key: str) -> None:
    await _large(server.unix_url)


def test_tls_works_alike() -> None:
    with RedisServer(tls=True) as server:
        asyncio.run(_large(server.url))


def test_a_loop_that_ends_while_a_request_is_open_leaves_nothing(redis_server: RedisServer, key: str) -> None:
    """Warnings of sockets that nobody closed, and connections that stay until the process ends."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:

        async def leave() -> None:
            pool = AsyncPool(Server.from_url(proxy.url), LONG)
            await _echo(pool, b"connected")
            proxy.pause(requests=False)
            asyncio.get_running_loop().create_task(_echo(pool, b"open"), name="kept").add_done_callback(lambda _: None)
            await _seen(proxy, "ECHO", 2)

        asyncio.run(leave())
        gc.collect()
        proxy.resume()
        until(lambda: not probe.clients())


def test_a_loop_that_ends_while_it_connects_leaves_nothing(redis_server: RedisServer, key: str) -> None:
    with FaultProxy(redis_server.address) as proxy:
        proxy.pause(replies=False)

        async def leave() -> None:
            pool = AsyncPool(Server.from_url(proxy.url.replace("/0", "/1")), LONG)
            with pytest.raises(BackendUnavailable):
                await _echo(pool, b"never", within=0.05)

        asyncio.run(leave())
        gc.collect()
        proxy.resume()
        until(lambda: not proxy.open_links)
