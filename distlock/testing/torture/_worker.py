"""A worker: a process of many actors, one colour and one client of the store.

Its stdin gives first what it is to do, a line of JSON (not the command line, which everyone can read: a URL may hold a
password), then orders, a line each: those of `Victim.tell`, and ``stop``. The end of stdin means stop, too. Its stdout
says ``ready``, and then what it has found itself, a line of JSON each: ``["after a fork", "…"]``.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ... import LockLost
from ..._core.drive import drive
from ...backends.base import now
from ._actor import Actor, Scene, not_free
from ._colour import Colour
from ._events import Log, What
from ._party import Held, party_of
from ._plan import Plan

__all__ = ("READY", "STACKS", "main")

READY = "ready"
STACKS: int | None = getattr(signal, "SIGUSR1", None)
"""The signal upon which a worker writes the stacks of its threads to ``NAME.stacks``."""
SETTLING = 5.0
"""Seconds for threads that have been told to end to do so; the grace of the plan comes on top."""
CHILD = 10.0
"""Seconds for a forked child, which has next to nothing to do; the grace of the plan comes on top."""


class Worker:
    """What the process does, from the first line to the last."""

    def __init__(self, plan: Plan, name: str, folder: Path, register: str, colour: str) -> None:
        self._log = Log(folder / f"{name}.jsonl")
        self._plan, self._name, self._register, self._colour = plan, name, register, colour
        self._dice = random.Random(f"{plan.seed}/{name}/orders")
        self._scene: Scene | None = None
        self._actors: list[Actor] = []
        self._stopped = threading.Event()

    def live(self) -> None:
        """All of it."""
        with suppress(Exception):  # whatever it was, it will come again
            Colour(self._colour).run(self._rehearse)
        threading.Thread(target=self._listen, name="torture-orders", daemon=True).start()
        before = _counts()
        self._log.say(self._name, What.BEGINS, pid=os.getpid(), colour=self._colour, counts={**before, "tasks": 0})
        tasks = self._perform()
        after = _settled(before, self._plan.grace)
        self._log.say(self._name, What.ENDS, counts={**after, "tasks": tasks})

    def _perform(self) -> int:
        """How many tasks are left that were not there before. When it returns, nothing else is left either."""
        colour, party = Colour(self._colour), party_of(self._plan, self._colour)
        self._scene = Scene(self._plan, self._name, self._log, self._register, colour, party, self._stopped)
        try:
            return colour.run(self._act)
        finally:
            self._scene, self._actors = None, []

    async def _rehearse(self) -> None:
        """What a driver opens once and for all is open before it is counted."""
        party = party_of(self._plan, self._colour)
        try:
            await party.open()
            held = await party.acquire(f"rehearsal of {self._name}", self._plan.ttl, renew=True)
            if held is not None:
                await held.release()
        finally:
            await party.close()

    async def _act(self) -> int:
        scene = self._scene
        assert scene is not None
        before = scene.colour.tasks()
        with suppress(Exception):  # the run has seen that it can be reached; if it cannot now, all attempts will say so
            await scene.party.open()
        self._actors = [Actor(scene, number) for number in range(self._plan.actors)]
        _say(READY)
        await scene.colour.all([actor.run for actor in self._actors])
        if scene.party.guarantees.scope == "process":  # nobody else could look
            for key in await not_free(scene.party, self._plan):
                _say(json.dumps(["not free", key]))
        try:
            await scene.party.close()
        except Exception as error:  # noqa: BLE001 - it is for the checker to judge
            _say(json.dumps(["failed to close", f"{type(error).__name__}: {error}"]))
        return max(0, scene.colour.tasks() - before)

    # Orders. Each has a thread of its own, so that none waits for another.

    def _listen(self) -> None:
        orders: dict[str, Callable[..., object]]
        orders = {"block": self._block, "burn": _burn, "cancel": self._cancel, "fork": self._fork}
        unread = b""
        while heard := os.read(0, 4096):  # not sys.stdin: Python needs that one's lock to end
            *lines, unread = (unread + heard).split(b"\n")
            for line in lines:
                word, *args = line.decode().split()
                if word in orders:
                    threading.Thread(target=orders[word], args=[float(arg) for arg in args], daemon=True).start()
                else:
                    self._stopped.set()
        self._stopped.set()

    def _block(self, seconds: float) -> None:
        scene = self._scene
        if scene is not None and scene.colour.is_async:
            with suppress(RuntimeError):  # the loop has ended
                scene.colour.post(lambda: time.sleep(seconds))
        else:
            _hog(seconds)

    def _cancel(self) -> None:
        scene = self._scene
        chosen = [actor for actor in self._actors if actor.can_be_cancelled]
        if scene is not None and chosen:
            with suppress(RuntimeError):
                scene.colour.post(self._dice.choice(chosen).cancel)

    def _fork(self) -> None:
        found = self._wait_for_one()
        scene = self._scene
        if found is None or scene is None:
            return
        key, held = found
        number = next(scene.numbers)

        def sure(at: float, until: float) -> None:
            self._log.say(f"{self._name}.fork", What.SURE, key, **{"try": number}, at=at, until=until)

        wrong = _fork(held, sure, CHILD + self._plan.grace)
        if wrong:
            _say(json.dumps(["after a fork", f"{self._name}: {wrong}"]))

    def _wait_for_one(self) -> tuple[str, Held] | None:
        """A lock that is held at this moment."""
        until = now() + self._plan.ttl
        while now() < until:
            for actor in self._actors:
                if (holding := actor.holding) is not None:
                    return holding
            time.sleep(0.001)
        return None


def _fork(held: Held, sure: Callable[[float, float], None], patience: float) -> str:
    """What a child could do with a lock of its parent's; empty if nothing. The child calls ``sure`` if it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads
        child = os.fork()
    if child == 0:
        os._exit(_touch(held, sure))
    until = now() + patience
    while now() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return FORKED.get(os.waitstatus_to_exitcode(status), "the child died")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "the child hung"


FORKED = {0: "", 1: "a child believes to hold its parent's lock", 2: "a child could release its parent's lock"}


def _touch(held: Held, sure: Callable[[float, float], None]) -> int:
    """In the child: the status that says what was possible."""
    at = now()
    try:
        until = held.sure()
        if until is not None:
            sure(at, until)
            return 1
    except LockLost:
        pass
    except Exception:  # noqa: BLE001 - the parent had given it up just before
        return 0
    try:
        drive(held.release())
    except BaseException:  # noqa: BLE001 - as it should be
        return 0
    return 2


def _burn(seconds: float) -> None:
    """One thread more that wants the processor, and the interpreter, all the time."""
    until = now() + seconds
    while now() < until:
        pass


def _hog(seconds: float) -> None:
    """No other thread runs, but for those that get in while this one still asks for the interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        _burn(seconds)
    finally:
        sys.setswitchinterval(before)


def _counts() -> dict[str, int]:
    gc.collect()
    # Trio keeps threads for ten seconds that have nothing to do.
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")]
    ours = ("Lease", "AsyncLease", "Hold")
    leases = sum(type(each).__name__ in ours and _is_ours(each) for each in gc.get_objects())
    folder = next((folder for folder in ("/proc/self/fd", "/dev/fd") if os.path.isdir(folder)), None)
    fds = len(os.listdir(folder)) if folder else 0
    return {"threads": len(threads), "fds": fds, "leases": leases}


def _is_ours(thing: object) -> bool:
    return type(thing).__module__.startswith("distlock.")


def _settled(before: dict[str, int], grace: float) -> dict[str, int]:
    """What there is once it is no more than there was, or has had its time to become so."""
    until = now() + SETTLING + grace
    while True:
        after = _counts()
        if all(after[name] <= before[name] for name in before) or now() >= until:
            return after
        time.sleep(0.05)


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Lives."""
    # Ctrl-C is for the run, which ends its workers in order. And one that is stopped when the run dies gets a SIGHUP,
    # as its group has lost the last link to its session: see setpgid(2).
    os.setpgid(0, 0)
    order = json.loads(_first_line())
    folder = Path(order["folder"])
    with open(folder / f"{order['name']}.stacks", "w") as stacks:
        if STACKS is not None:
            faulthandler.register(STACKS, file=stacks)
        worker = Worker(Plan.read(order["plan"]), order["name"], folder, order["register"], order["colour"])
        worker.live()
    sys.stdout.flush()
    os._exit(0)  # a thread that hangs has been counted


def _first_line() -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1) or b"\n"
    return line.decode()
