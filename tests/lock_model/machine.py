"""The state machine: clients and what happens to them, in any order."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from hypothesis.strategies import booleans, integers, sampled_from

from distlock import LeaseState, LockLost

from .fibers import SIM
from .network import Server
from .properties import Properties, Violation
from .simulated import reset, simulated
from .store import Memory
from .world import OP_TIMEOUT, Call, Client, Held, backend_of

__all__ = ("LockMachine", "examples", "explore")

TTLS = (1.0, 3.0, 10.0)
RATES = (0.991, 1.0, 1.009)
"""How fast the clocks of the processes run beside that of the server: 1 % is allowed. (Several servers differ, too.)"""
PLACES = sampled_from((0, 1, 0, 1, 2))
TIMES = sampled_from((0.0, 0.0007, 0.02, 0.1, 0.34, 1.001, 3.5, 10.0))


class Wish(NamedTuple):
    """What to acquire."""

    key: str
    ttl: float
    timeout: float | None
    renew: bool


WISHES = [
    Wish("l" if renew and timeout == 2.0 else "k", ttl, timeout, renew)
    for renew in (True, False)
    for timeout in (None, 20.0, 0.3, 2.0, 0.0)
    for ttl in TTLS
]
NODES = integers(1, 31)
"""Bits."""
FATES = [(kind, late) for kind in ("slow", "late", "unanswered", "lost") for late in (0.01, 0.4, 0.9)]


def examples(few: int) -> int:
    """How many histories; the environment may want more."""
    return int(os.environ.get("DISTLOCK_TEST_MODEL_EXAMPLES", few))


class LockMachine(RuleBasedStateMachine):
    """Three processes and one lock, or two."""

    nodes: ClassVar[int] = 1
    store: ClassVar[Callable[..., Any]] = Memory
    wrong: ClassVar[frozenset[str]] = frozenset()
    steps: ClassVar[int] = 0
    grants: ClassVar[int] = 0
    histories: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        reset()
        self.servers = [
            Server(self.store(rate=1.0 + 0.004 * (n % 3 - 1) * (self.nodes > 1), ahead=n * 7_000_000, wrong=self.wrong))
            for n in range(self.nodes)
        ]
        self.laws = Properties(self.servers)
        self.clients: list[Client] = [self.fresh(n) for n in range(3)]
        SIM.after = self.laws.look
        type(self).histories += 1

    def fresh(self, place: int) -> Client:
        generation = len(self.laws.clients)
        rate = RATES[place] if self.nodes == 1 else 1.0 + (RATES[place] - 1.0) / 2
        client = Client(f"{'abc'[place]}{generation}", self.servers, rate, backend_of)
        self.laws.clients.append(client)
        return client

    def pick(self, n: int) -> Held:
        return self.laws.held[-1 - n % len(self.laws.held)]

    def has_held(self) -> bool:
        return bool(self.laws.held)

    # What programs do.

    @rule(place=PLACES, wish=sampled_from(WISHES), soon=booleans())
    def acquire(self, place: int, wish: Wish, soon: bool) -> None:
        """``soon``: the next thing happens while the request is on its way."""
        if len(self.laws.calls) < 6:
            if wish.key not in self.laws.keys:
                self.laws.keys.append(wish.key)
            self.laws.calls.append(Call(self.clients[place], *wish))
            SIM.run(SIM.t + (0.0002 if soon else 0.02))

    @precondition(has_held)
    @rule(n=integers(0, 2))
    def release(self, n: int) -> None:
        held = self.pick(n)
        self.let_go(held)
        SIM.run(SIM.t + 0.0002)

    def let_go(self, held: Held) -> None:
        if held.client.dead or (held.busy is not None and not held.busy.done):
            return
        state = LeaseState.RELEASED if held.lease._done else None

        def release() -> None:
            held.given_back = True
            try:
                held.lease.release()
                self.laws.released(held)
            except LockLost:
                if state is LeaseState.RELEASED:
                    raise Violation(f"a second release does nothing: {held.claim}") from None
                held.given_back = False
                raise

        held.busy = held.client.does(release, "releases")

    @precondition(has_held)
    @rule(n=integers(0, 1), ttl=sampled_from((10.0, 2.0, 0.5)))
    def extend(self, n: int, ttl: float) -> None:
        held = self.pick(n)
        if not held.client.dead:
            held.client.does(lambda: held.lease.extend(ttl), "extends")
            SIM.run(SIM.t + 0.0002)

    @precondition(lambda self: self.laws.calls)
    @rule(n=integers(0, 5))
    def cancel(self, n: int) -> None:
        """Ctrl-C, in a thread that waits for something."""
        call = self.laws.calls[n % len(self.laws.calls)]
        call.cancelled = True
        call.client.hurt_at = SIM.t  # if that one listened for all, its process listens anew
        call.fiber.throw(KeyboardInterrupt())

    # Time.

    @rule(seconds=TIMES)
    def pass_time(self, seconds: float) -> None:
        SIM.run(SIM.t + seconds)

    @precondition(has_held)
    @rule(n=integers(0, 3), beyond=sampled_from((-0.001, 0.001)), there=booleans())
    def pass_to_the_edge(self, n: int, beyond: float, there: bool) -> None:
        """To a moment before or after the end of what is proven, or of what the store has."""
        held = self.pick(n)
        end = beyond + (self.servers[0].store.see(held.key).ends if there else held.until)
        if SIM.t < end < SIM.t + 20:
            SIM.run(end)

    # What goes wrong.

    @rule(place=PLACES, nodes=NODES, fate=sampled_from(FATES))
    def lose(self, place: int, nodes: int, fate: tuple[str, float]) -> None:
        """What becomes of the next request."""
        for n, line in enumerate(self.clients[place].lines):
            if nodes >> n & 1:
                line.fate.append(fate)

    @rule(place=PLACES, nodes=NODES, kind=sampled_from(("up", "down", "up down", "slow", "slow")))
    def cut(self, place: int, nodes: int, kind: str) -> None:
        """A partition, one way or both; or replies take their time."""
        for n, line in enumerate(self.clients[place].lines):
            if nodes >> n & 1 and kind == "slow":
                line.slow = 0.7
            elif nodes >> n & 1:
                line.cut.update(kind.split())
        self.clients[place].look()

    @rule(place=PLACES, n=integers(0, 3))
    def break_connection(self, place: int, n: int) -> None:
        client = self.clients[place]
        if connections := [each for each in client.connections() if each.error is None]:
            client.hurt_at = SIM.t
            connections[n % len(connections)].reset()

    @rule(place=PLACES, kind=sampled_from(("stop", "stop", "kill", "power")))
    def stop(self, place: int, kind: str) -> None:
        if kind == "stop":
            self.clients[place].stop()
        else:
            self.clients[place].kill(power=kind == "power")
            self.clients[place] = self.fresh(place)

    @rule(node=integers(0, 4), kind=sampled_from(("freeze", "clock")))
    def hurt_server(self, node: int, kind: str) -> None:
        """It stands still; or its clock is set back, which only makes leases longer."""
        server = self.servers[node % self.nodes]
        if kind == "freeze":
            server.frozen = True
            for client in self.clients:
                client.look()
        elif server.store.ahead > -4_000_000:
            server.store.set_back(2_000_000)
            self.laws.look_again()

    @precondition(lambda self: any(client.hurt for client in self.clients))
    @rule(place=integers(0, 3))
    def mend(self, place: int) -> None:
        """A client, or the servers."""
        if place < 3:
            self.clients[place].mend()
        else:
            self.thaw()

    def thaw(self) -> None:
        for client in self.clients:
            client.look()
        for server in self.servers:
            server.thaw()

    @precondition(lambda self: any(server.past for server in self.servers))
    @rule(node=integers(0, 4), n=integers(1, 40))
    def repeat(self, node: int, n: int) -> None:
        """A request arrives again."""
        server = self.servers[node % self.nodes]
        if server.past and not server.frozen:
            self.laws.disturbed_at = SIM.t
            server.replay(n)

    # The end.

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            SIM.after = list
            for held in self.laws.held:
                held.lease._done = True
            for call in self.laws.calls:
                if call.lease is not None:
                    call.lease._done = True
            for client in self.laws.clients:
                if not client.dead:
                    client.kill()
            for server in self.servers:
                server.store.close()
            type(self).steps += SIM.steps
            type(self).grants += self.laws.grants

    def finish(self) -> None:
        """All is mended, whoever waits is served, and nothing is left."""
        if SIM.failures or self.laws.broken:
            return
        self.thaw()
        for client in self.clients:
            client.mend()
        self.laws.look()
        progress, count = SIM.t, len(self.laws.calls)
        while self.laws.calls or any(not held.over for held in self.laws.held):
            for held in self.laws.held:
                if not held.over:
                    self.let_go(held)
            SIM.run(SIM.t + 0.5)
            if len(self.laws.calls) < count or not self.laws.calls:
                progress, count = SIM.t, len(self.laws.calls)
            if SIM.t - progress > 2 * TTLS[-1] + OP_TIMEOUT + 3:
                raise Violation(f"no lost wake-up: {[call.claim for call in self.laws.calls]} wait still")
        SIM.run(SIM.t + TTLS[-1] + 2 * OP_TIMEOUT + 10)
        self.laws.check_left()
        for client in self.clients:
            client.does(client.manager.close, "closes")
        SIM.run(SIM.t + 2 * OP_TIMEOUT + 2)
        self.laws.check_ended()


def explore(few: int, *, shrink: bool = True, derandomized: bool = False, **more: Any) -> type[LockMachine]:
    """Many histories; what was found in them is raised, with the shortest one that was found."""
    machine: type[LockMachine] = type("Machine", (LockMachine,), {"steps": 0, "grants": 0, "histories": 0, **more})
    phases = [Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])]
    how = settings(
        max_examples=few if derandomized else examples(few),
        stateful_step_count=30,
        suppress_health_check=list(HealthCheck),
        deadline=None,
        phases=phases,
        database=None,
        derandomize=derandomized or "DISTLOCK_TEST_MODEL_EXAMPLES" not in os.environ,
        print_blob=True,
        report_multiple_bugs=False,
    )
    with simulated():
        run_state_machine_as_test(machine, settings=how)
    return machine
