"""What the Lua scripts do, told again in Python, on one simulated server. Without owners that re-enter.

``wrong`` are ways to be wrong, for the tests of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from distlock.backends.redis._replies import Replies
from distlock.backends.redis._scripts import CONFIRM, INSPECT, RENEW, SERVER, Script
from distlock.backends.redis.redlock import _wire as redlock

from .fibers import SIM
from .network import Connection, Words, packed

__all__ = ("SCRIPTS", "Memory", "Seen", "Store", "key_of", "script_of")

PROVISIONAL = 1000
START = 1_700_000_000_000_000
"""What the clock of a server says at first, in µs."""


def _digest(script: Script) -> bytes:
    words: list[bytes] = Replies().feed(b"*2\r\n" + script._evalsha)[0]
    return words[1]


def _text(script: Script) -> bytes:
    words: list[bytes] = Replies().feed(b"*2\r\n" + script._eval)[0]
    return words[1]


_ALL = [SERVER.acquire, SERVER.release, SERVER.refresh, SERVER.revoke, CONFIRM, RENEW, INSPECT]
_ALL += [redlock.VOTE, redlock.SEAL, redlock.END, redlock.RENEW]
SCRIPTS = {name: script.name for script in _ALL for name in (_digest(script), _text(script))}


def script_of(words: Words) -> str:
    """The script that a request runs, or the command that it is."""
    return SCRIPTS.get(words[1], "") if words[0].startswith(b"EVAL") else words[0].decode()


def key_of(name: bytes) -> str:
    """From ``distlock:{default:k}``."""
    return name.partition(b"{")[2].partition(b":")[2].partition(b"}")[0].decode()


@dataclass(frozen=True)
class Seen:
    """A lock, as it lies there."""

    holder: str = ""
    token: int = 0
    ends: float = 0.0
    """In the time of the simulation."""
    queue: tuple[str, ...] = ()


class Failed(Exception):
    """An error reply."""


@dataclass
class Waiter:
    alive: int
    ttl: int
    owner: bytes
    inbox: bytes
    about: bytes


@dataclass
class State:
    """One lock. Times are in ms of the server."""

    id: str = ""
    token: int = 0
    ends: int = 0
    voted: str = ""
    """Of a Redlock: the place, the attempt, and v or s."""
    rest: bytes = b""
    queue: dict[str, Waiter] = field(default_factory=dict)
    doubted: set[bytes] = field(default_factory=set)
    last: bytes = b""
    """The inbox of the process that it was handed to last."""


class Store:
    """What all stores have: a clock, and whom they tell."""

    publish: Callable[[bytes, bytes], None]
    listeners: Callable[[bytes], int]

    def __init__(self, rate: float = 1.0, ahead: int = 0) -> None:
        self.rate = rate
        self.ahead = ahead

    @property
    def us(self) -> int:
        return START + self.ahead + int(SIM.t * self.rate * 1e6)

    def close(self) -> None:
        """It is not asked any more."""

    def moment(self, ms: int) -> float:
        """The time of the simulation at which its clock says so."""
        return (ms * 1000 - START - self.ahead) / 1e6 / self.rate


class Memory(Store):
    """The reference."""

    def __init__(self, rate: float = 1.0, ahead: int = 0, wrong: Collection[str] = ()) -> None:
        super().__init__(rate, ahead)
        self.wrong = wrong
        self.locks: dict[str, State] = {}
        self.clock = 0
        self.tombs: dict[bytes, int] = {}

    def set_back(self, us: int) -> None:
        """Its clock, by an administrator. What has ended has ended."""
        for key, state in self.locks.items():
            if self.see(key).ends == 0.0:
                state.id = ""
        self.ahead -= us

    def leaves(self, connection: Connection) -> None:
        pass

    def run(self, words: Words, connection: Connection | None) -> list[bytes]:
        try:
            return [packed(self._run(words, connection))]
        except Failed as error:
            return [b"-%b\r\n" % str(error).encode()]

    def _run(self, words: Words, connection: Connection | None) -> Any:
        name = script_of(words)
        if name == "SCRIPT":
            return b"sha"
        if connection is not None and name in ("SUBSCRIBE", "UNSUBSCRIBE"):
            change = connection.channels.add if name == "SUBSCRIBE" else connection.channels.discard
            change(words[1])
            return [words[0].lower(), words[1], len(connection.channels)]
        count = int(words[2])
        keys, args = words[3 : 3 + count], words[3 + count :]
        return getattr(self, f"_{name}")(keys, args)

    def _at(self, name: bytes) -> State:
        """The lock; what has ended is gone."""
        state = self.locks.setdefault(key_of(name), State())
        if state.id and state.ends * 1000 <= self.us:
            state.id = ""
        for claim, waiter in list(state.queue.items()):
            if waiter.alive * 1000 <= self.us:
                del state.queue[claim]
        return state

    def see(self, key: str) -> Seen:
        """Without touching it."""
        state = self.locks.get(key, State())
        queue = tuple(
            claim for claim, each in state.queue.items() if each.inbox != b"-" and each.alive * 1000 > self.us
        )
        if not state.id or state.ends * 1000 <= self.us:
            return Seen(queue=queue)
        return Seen(state.id, state.token, self.moment(state.ends), queue)

    def left(self) -> list[str]:
        """What lies there still."""
        return [key for key in self.locks if self.see(key) != Seen()]

    # A single server.

    def _next_token(self) -> int:
        self.clock = self.us if "no high-water" in self.wrong else max(self.us, self.clock + 1)
        return self.clock

    def _give(self, state: State, claim: str, ttl: int) -> int:
        state.id, state.token, state.ends = claim, self._next_token(), self.us // 1000 + ttl
        return state.token

    def _prolong(self, state: State, ttl: int) -> None:
        ends = self.us // 1000 + ttl
        state.ends = ends if "shortens" in self.wrong else max(state.ends, ends)

    def _hears(self, inbox: bytes) -> bool:
        return self.listeners(inbox) > 0 or "deaf" in self.wrong

    def _hand_over(self, state: State, asker: str | None) -> bool:
        """To the first that is there; to one in doubt if there is no other."""
        second = None
        for claim, waiter in state.queue.items():
            if waiter.inbox == b"-":
                continue
            if claim == asker or self._hears(waiter.inbox):
                if claim == asker or waiter.inbox not in state.doubted:
                    self._hand_to(state, claim, asker)
                    return True
                second = second or claim
            if "head only" in self.wrong:
                return False
        if second is not None:
            self._hand_to(state, second, asker)
        return second is not None

    def _hand_to(self, state: State, claim: str, asker: str | None) -> None:
        waiter = state.queue.pop(claim)
        provisional = waiter.ttl if "not provisional" in self.wrong else min(PROVISIONAL, waiter.ttl)
        token = self._give(state, claim, provisional)
        if claim == asker:
            return
        self.publish(waiter.inbox, b"g %b %d %d" % (claim.encode(), token, self.us))
        if state.queue:
            state.last = waiter.inbox
            state.doubted.add(waiter.inbox)
            for other, each in reversed([*state.queue.items()]):  # someone is to see what comes of it
                if each.inbox not in (waiter.inbox, b"-", *state.doubted) and self._hears(each.inbox):
                    if "no stand-by" not in self.wrong:
                        self.publish(each.inbox, b"s " + other.encode())
                    break

    def _acquire(self, keys: Words, args: Words) -> Any:
        state, claim, ttl, inbox = self._at(keys[0]), args[0].decode(), int(args[1]), args[4]
        mine = state.queue.get(claim)
        if not state.id and not state.queue:
            return self._give(state, claim, ttl)
        if mine is not None and mine.inbox == b"-":
            raise Failed("DISTLOCK withdrawn")
        state.doubted.discard(inbox)
        waiter = Waiter(self.us // 1000 + ttl, ttl, args[2], inbox, args[3])
        if mine is not None and inbox != b"-":
            state.queue[claim] = waiter
        if not state.id and ("barging" in self.wrong or not self._hand_over(state, claim)):
            state.queue.pop(claim, None)
            return self._give(state, claim, ttl)
        if state.id == claim:
            self._prolong(state, ttl)
            return state.token
        if inbox != b"-":
            state.queue.setdefault(claim, waiter)
        value = b"1 %b %d - {}" % (state.id.encode(), state.token)
        return [max(0, state.ends - self.us // 1000), self.us - state.token, value]

    def _confirm(self, keys: Words, args: Words) -> int:
        state = self._at(keys[0])
        state.doubted.discard(args[1])
        if state.id != args[2].decode():
            return 0
        self._prolong(state, int(args[0]))
        return 1

    def _renew(self, keys: Words, args: Words) -> list[int]:
        lost = []
        for n, key in enumerate(keys):
            state, claim, ttl = self._at(key), args[2 * n].decode(), int(args[2 * n + 1])
            if "revives" in self.wrong and not state.id:
                state.id, state.ends = claim, 0
            if state.id == claim:
                self._prolong(state, ttl)
            else:
                lost.append(n + 1)
        return lost

    def _release(self, keys: Words, args: Words) -> int:
        state, claim, late = self._at(keys[0]), args[0].decode(), int(args[2])
        mine = state.queue.get(claim)
        if args[1] == b"1" and (mine is None or mine.inbox != b"-"):
            state.queue.pop(claim, None)
        held = state.id == claim or ("releases anyone's" in self.wrong and bool(state.id))
        if held:
            state.doubted.discard(state.last)
            state.id = ""
        if not state.id and "keeps it" not in self.wrong:
            self._hand_over(state, None)
        if late and "no tombstone" not in self.wrong:
            state.queue[claim] = Waiter(self.us // 1000 + late, late, b"-", b"-", b"{}")
        return int(held)

    def _refresh(self, keys: Words, args: Words) -> Any:
        inbox, results, arg = args[0], [1], 2
        if args[1] == b"1":
            self.publish(inbox, b"e")
            results = [int(self.listeners(inbox) > 0)]
        found: list[Any] = []
        for n in range(1, len(keys), 3):
            state, count = self._at(keys[n]), int(args[arg])
            claims = args[arg + 1 : arg + 1 + count]
            arg += 1 + count
            state.doubted.discard(inbox)
            again = []
            for claim in claims:
                waiter = state.queue.get(claim.decode())
                if waiter is None:
                    again.append(claim)
                else:
                    waiter.alive = self.us // 1000 + waiter.ttl
            if not state.id and state.queue and not self._hand_over(state, None):
                again = claims
            found.append([state.ends - self.us // 1000 if state.id else -2, *again])
        return results + found

    # A node of a Redlock.

    def _redlock_vote(self, keys: Words, args: Words) -> Any:
        if self.tombs.get(keys[1], 0) * 1000 > self.us:
            raise Failed("DISTLOCK withdrawn")
        state, (claim, place), attempt, ttl = self._at(keys[0]), args[0].decode().split(","), int(args[1]), int(args[2])
        if not state.id:
            state.token = max(self.us, self.clock + 1)
            state.id, state.voted, state.ends = claim, f"{place},{attempt},v", self.us // 1000 + ttl
            return [1, state.token]
        there, last, sealed = state.voted.split(",")
        if (state.id, there) != (claim, place):
            value = f"1 {state.id},{state.voted} {state.token} - {{}}".encode()
            return [0, max(0, state.ends - self.us // 1000), self.us, value]
        if int(last) <= attempt:
            state.voted = f"{place},{attempt},{sealed}"
            self._prolong(state, ttl)
        return [2 if sealed == "s" else 1, state.token]

    def _redlock_seal(self, keys: Words, args: Words) -> int:
        state, (claim, place, attempt), token = self._at(keys[0]), args[0].decode().split(","), int(args[1])
        if (state.id, *state.voted.split(",")[:2]) != (claim, place, attempt):
            if "seals anything" not in self.wrong:
                return -1
            state.id, state.token = claim, 0
            state.ends = max(state.ends, self.us // 1000 + 1)
        if token < state.token:
            return state.token
        state.voted, state.token = f"{place},{attempt},s", token
        if "no write-back" not in self.wrong:
            self.clock = max(self.clock, token)
        return 0

    def _redlock_end(self, keys: Words, args: Words) -> int:
        state, (claim, place), held = self._at(keys[0]), args[0].decode().split(","), 0
        voted = state.voted.split(",")
        if state.id == claim and voted[0] == place and args[1].decode() in ("", voted[1]):
            held, state.id = 1, ""
            if args[2]:
                self.publish(args[2], args[0])
        if args[3] != b"0" and "no tombstone" not in self.wrong:
            self.tombs[keys[1]] = self.us // 1000 + int(args[3])
        return held

    def _redlock_renew(self, keys: Words, args: Words) -> list[int]:
        results = []
        for n, key in enumerate(keys):
            state, (claim, place) = self._at(key), args[2 * n].decode().split(",")
            ours = state.id == claim and state.voted.split(",")[0] == place
            if ours:
                self._prolong(state, int(args[2 * n + 1]))
            results.append(int(ours))
        return results
