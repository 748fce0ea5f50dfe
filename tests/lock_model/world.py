"""Processes that use distlock, and what they are put through."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distlock import DistLockError, Lease, Manager, _manager
from distlock.backends.base import SyncBackend
from distlock.backends.redis._backend import RedisBackend
from distlock.backends.redis.redlock._backend import RedlockBackend

from .fibers import SIM, Fiber
from .network import Connection, Line, Server, Target

__all__ = ("OP_TIMEOUT", "Call", "Client", "Held", "backend_of")

OP_TIMEOUT = 2.0
"""Seconds."""


class Held:
    """A lease, and what its owner was told of it."""

    def __init__(self, client: Client, lease: Lease) -> None:
        self.client = client
        self.lease = lease
        self.hold = lease._hold
        self.key = lease.key
        self.claim: str = self.hold.grant.claim.id
        self.told = 0
        self.over = False
        """It was seen to have ended."""
        self.over_at = 0.0
        self.given_back = False
        """Its owner has begun to release it."""
        self.busy: Fiber | None = None
        self.began = SIM.t
        self.hold.on_lost(self._lost)

    def _lost(self) -> None:
        self.told += 1

    @property
    def until(self) -> float:
        """To when it is proven, in the time of the simulation."""
        return (self.hold.deadline - self.client.offset) / self.client.rate

    @property
    def proven(self) -> bool:
        """By the clock of its process alone, as `Lease.remaining` has it."""
        hold, client = self.hold, self.client
        if client.dead or hold.ended is not None or hold.giving_up:
            return False
        return client.offset + client.rate * SIM.t < hold.deadline


class Call:
    """An acquire that has not come back."""

    def __init__(self, client: Client, key: str, ttl: float, timeout: float | None, renew: bool) -> None:
        self.client = client
        self.key = key
        self.ttl = ttl
        self.timeout = timeout
        self.began = math.inf
        self.lease: Lease | None = None
        self.error: BaseException | None = None
        self.claim = ""
        self.cancelled = False
        with client.running():
            self._lock = client.manager.lock(key, ttl=ttl, timeout=timeout, renew=renew)
            self.fiber = Fiber(target=self._acquire, name=f"{client.name} acquires {key}")
            self.fiber.start()

    def _acquire(self) -> None:
        self.began = SIM.t
        self.claim = self.client.claim_to_come()
        try:
            self.lease = self._lock.acquire()
        except (DistLockError, KeyboardInterrupt) as error:
            self.error = error

    @property
    def waits(self) -> bool:
        """It is to wait for its turn, in a process that does so."""
        client = self.client
        return not (self.fiber.done or self.cancelled or client.stopped or client.dead) and self.timeout != 0


class Client:
    """A process with a clock of its own; see `Host`."""

    _generations = itertools.count()

    def __init__(self, name: str, servers: list[Server], rate: float, make: Callable[[Client], SyncBackend]) -> None:
        self.name = name
        self.rate = rate
        self.offset = 1000.0 * ord(name[0])
        self.dead = self.stopped = False
        self.late: list[Callable[[], object]] = []
        self.fibers: list[Fiber] = []
        self.lines = [Line(server) for server in servers]
        self.hurt_at = -1.0
        """When it last was not as it should be."""
        self.cut_at = -1.0
        """When a message to or from it was last held up for who knows how long."""
        self.went_on_at = 0.0
        self.stood_since = math.inf
        self._names = itertools.count(1)
        with self.running():
            self.backend = make(self)
            self.manager = Manager(self.backend, op_timeout=OP_TIMEOUT)
        # It is none of the process that runs the tests: nothing there may find it open, or close it at the end.
        self.manager._finalizer.detach()
        _manager._managers.discard(self.manager)

    def next_name(self) -> str:
        return f"{self.name}.{next(self._names)}"

    def claim_to_come(self) -> str:
        """The id that the next claim of this process gets."""
        name = self.next_name()
        self._names = itertools.chain([int(name.rpartition(".")[2])], self._names)  # type: ignore[assignment]
        return name

    @contextmanager
    def running(self) -> Iterator[None]:
        """What runs inside does so in this process, and does not wait."""
        before, SIM.here = SIM.here, self
        try:
            yield
        finally:
            SIM.here = before

    def does(self, what: Callable[[], object], name: str) -> Fiber:
        """In a thread of its own; what distlock raises is an answer too."""

        def run() -> None:
            with suppress(DistLockError):
                what()

        with self.running():
            fiber = Fiber(target=run, name=f"{self.name} {name}")
            fiber.start()
        return fiber

    @property
    def hurt(self) -> bool:
        """Something is wrong with it at this moment."""
        return self.stopped or any(line.cut or line.fate or line.slow or line.server.frozen for line in self.lines)

    def look(self) -> None:
        """Notes what is wrong."""
        if self.hurt:
            self.hurt_at = SIM.t
        self.hurt_at = max(self.hurt_at, *(line.hurt_at for line in self.lines))
        if any(line.cut or line.server.frozen for line in self.lines):
            self.cut_at = SIM.t

    def connections(self) -> list[Connection]:
        return [each for line in self.lines for each in line.connections]

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True
        self.stood_since = min(self.stood_since, SIM.t)
        self.look()

    def go_on(self) -> None:
        """SIGCONT."""
        self.stopped, self.went_on_at = False, SIM.t if self.stopped else self.went_on_at
        self.stood_since = math.inf
        late, self.late = self.late, []
        for action in late:
            SIM.at(SIM.t, action, self)

    def mend(self) -> None:
        """All is well with it from now on."""
        self.look()
        self.go_on()
        for line in self.lines:
            line.heal()

    def kill(self, *, power: bool = False) -> None:
        """SIGKILL; or its machine is out of ``power``, and says no word to the servers."""
        self.dead = True
        self.stood_since = min(self.stood_since, SIM.t)
        for fiber in list(self.fibers):
            fiber.kill()
        if not power:
            for each in self.connections():
                each.disconnect()


def backend_of(client: Client) -> SyncBackend:
    """The real backend, of one server or of several."""
    targets: list[Any] = [Target(f"sim://{n}", line, client) for n, line in enumerate(client.lines)]
    if len(targets) == 1:
        return RedisBackend(targets[0], "default", OP_TIMEOUT)
    return RedlockBackend(targets, "sim://nodes", "default", OP_TIMEOUT)
