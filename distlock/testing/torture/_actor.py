"""One of those that contend: a thread or task that takes locks, writes to the register under them, and logs it all."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import anyio

from ... import LockLost
from ...backends.base import now
from ._colour import Colour
from ._events import Log, What
from ._party import Held, Party
from ._plan import Plan
from ._register import ask_register

__all__ = ("Actor", "Scene", "keys_of", "not_free")

STEPS = 4
"""Parts of a critical section, after each of which it makes sure of its lock."""
OVERLONG = (1.1, 1.5)
"""From and to how many ttls a section lasts that is meant to outlast its lock."""


def keys_of(plan: Plan) -> list[str]:
    """The names of the locks."""
    return [f"key-{number}" for number in range(plan.keys)]


async def not_free(party: Party, plan: Plan) -> list[str]:
    """The last look, when nobody holds or wants anything: the keys that cannot be had within ttl and grace."""
    wrong = []
    for key in keys_of(plan):
        try:
            held = await party.acquire(key, plan.ttl + plan.grace, renew=True)
            if held is None:
                wrong.append(key)
            else:
                await held.release()
        except Exception as error:  # noqa: BLE001 - whatever it is, the lock cannot be had
            wrong.append(f"{key}: {_text(error)}")
    return wrong


@dataclass
class Scene:
    """What the actors of a process share."""

    plan: Plan
    name: str
    log: Log
    register: str
    """The path of its socket."""
    colour: Colour
    party: Party
    stopped: threading.Event = field(default_factory=threading.Event)
    """Nobody begins anything new."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of attempts."""


class Actor:
    """One thread or task. No error of a lock ends it."""

    def __init__(self, scene: Scene, number: int) -> None:
        self.name: str = f"{scene.name}.{number}"
        self.holding: tuple[str, Held] | None = None
        """What it holds at this moment: the key, and the lock."""
        self._scene = scene
        self._dice = random.Random(f"{scene.plan.seed}/{self.name}")
        self._keys = keys_of(scene.plan)
        self._scope: anyio.CancelScope | None = None

    async def run(self) -> None:
        """One attempt after the other, until it is to stop."""
        scene = self._scene
        while not scene.stopped.is_set():
            self._scope = anyio.CancelScope() if scene.colour.is_async else None
            with self._scope or nullcontext():
                await self._attempt()
            self._scope = None
            await scene.colour.sleep(self._dice.uniform(0.0, scene.plan.work))

    @property
    def can_be_cancelled(self) -> bool:
        """It waits for a lock, holds one or gives one up. Threads cannot be cancelled."""
        return self._scope is not None

    def cancel(self) -> None:
        """Cancels the attempt that is going on, if there is one. To be called in the event loop."""
        if self._scope is not None:
            self._scope.cancel()

    async def _attempt(self) -> None:
        this = _Attempt(
            self._scene.log,
            self.name,
            next(self._scene.numbers),
            self._dice.choice(self._keys),
            overlong=self._dice.random() < self._scene.plan.overlong,
        )
        held = await self._take(this)
        if held is None:
            return
        try:
            held.on_lost(lambda: this.say(What.LOST))
            self.holding = this.key, held
            await self._work(held, this)
        except LockLost:
            this.say(What.LOST)
        except Exception as error:  # noqa: BLE001 - it is for the checker to judge
            this.say(What.FAILED, error=_text(error))
        except BaseException:
            this.say(What.CANCELLED)
            raise
        finally:
            self.holding = None
            this.say(What.LEAVES)
            await _leave(held, this)

    async def _take(self, this: _Attempt) -> Held | None:
        timeout = self._scene.plan.timeout
        this.say(What.WANTS, timeout=timeout)
        try:
            held = await self._scene.party.acquire(this.key, timeout, renew=not this.overlong)
        except Exception as error:  # noqa: BLE001 - as above
            this.say(What.FAILED, error=_text(error))
            return None
        except BaseException:
            this.say(What.CANCELLED)
            raise
        if held is None:
            this.say(What.BUSY)
        else:
            this.say(What.GOT, token=held.token, until=held.until)
        return held

    async def _work(self, held: Held, this: _Attempt) -> None:
        """The critical section: read, think, write. Given up by `LockLost`."""
        scene, plan = self._scene, self._scene.plan
        lasts = plan.ttl * self._dice.uniform(*OVERLONG) if this.overlong else self._dice.uniform(0.0, plan.work)
        about = self.name, this.number, this.key, held.token
        async with ask_register(scene.register, is_async=scene.colour.is_async) as ask:
            _, version = await ask("read", *about, None)
            this.say(What.READ, version=version)
            for _ in range(STEPS):
                await scene.colour.sleep(lasts / STEPS)
                at = now()
                until = held.sure()
                if until is not None:
                    this.say(What.SURE, at=at, until=until)
            word, found = await ask("write", *about, version)
            if word == "took":
                this.say(What.WROTE, version=found)
            else:
                this.say(What.REFUSED)


@dataclass(frozen=True)
class _Attempt:
    log: Log
    who: str
    number: int
    key: str
    overlong: bool
    """It is to last longer than its lock."""

    def say(self, what: What, **more: Any) -> None:
        self.log.say(self.who, what, self.key, **{"try": self.number, **more})


async def _leave(held: Held, this: _Attempt) -> None:
    how = "cancelled"
    try:
        await held.release()
        how = "released"
    except LockLost:
        how = "lost"
    except Exception as error:  # noqa: BLE001 - as above
        how = _text(error)
    finally:
        this.say(What.LEFT, how=how)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
