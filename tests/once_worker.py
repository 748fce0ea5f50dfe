"""A process that does work once when told to: for tests that stop, kill and fork it, or have many of them.

It reads lines and answers each: ``ask SECONDS SYNC ASYNC`` → ``asked``, once so many threads and tasks want the same
work done, and ``answers`` → what they got, as JSON; ``begin SECONDS`` → ``begun``, in the body, or ``replayed``;
``proven`` → until when the claim is proven, by `distlock._clock.now`; ``complete RESULT`` and ``fork`` → what came of
it. Whoever does the work writes a line into a ledger, and of those who were asked waits for a file beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from distlock import LockLost, Manager, NotHeld, connect
from distlock._clock import now
from distlock.idempotency import Once, Work

KEY, TTL = "work", 600.0
LOOPS = 2
"""Event loops that share the tasks."""


class Crowd:
    """Duplicates of one request, in threads and tasks."""

    def __init__(self, once: Once, ledger: Path) -> None:
        self._once = once
        self._ledger = ledger
        self._threads: list[threading.Thread] = []
        self._answers: Counter[str] = Counter()
        self._mutex = threading.Lock()

    def ask(self, sync: int, tasks: int) -> None:
        for _ in range(sync):
            self._start(lambda: self._note(self._ask()))
        for _ in range(LOOPS if tasks else 0):
            self._start(lambda: asyncio.run(self._ask_many(tasks // LOOPS)))

    def _start(self, what: object) -> None:
        thread = threading.Thread(target=what, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def answers(self) -> str:
        for thread in self._threads:
            thread.join()
        return json.dumps(self._answers)

    def _ask(self) -> str:
        with self._once as work:
            answer = work.result if work.replayed else work.complete(self._body())
        return str(answer)

    async def _ask_many(self, tasks: int) -> None:
        for answer in await asyncio.gather(*(self._ask_async() for _ in range(tasks))):
            self._note(answer)

    async def _ask_async(self) -> str:
        async with self._once as work:
            answer = work.result if work.replayed else await work.complete(await asyncio.to_thread(self._body))
        return str(answer)

    def _body(self) -> str:
        write(self._ledger)
        while not self._ledger.with_suffix(".go").exists():
            time.sleep(0.005)
        return f"by {os.getpid()}"

    def _note(self, answer: str) -> None:
        with self._mutex:
            self._answers[answer] += 1


def write(ledger: Path) -> None:
    """The work begins."""
    with ledger.open("a") as file:
        file.write(f"{os.getpid()} {now()}\n")


def attempt(work: Work, result: str) -> str:
    """What comes of completing it."""
    try:
        return str(work.complete(result))
    except (LockLost, NotHeld) as error:
        return type(error).__name__


def fork(work: Work) -> str:
    """Whether a child can complete it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads
        child = os.fork()
    if child == 0:
        os._exit(0 if attempt(work, "child") in ("LockLost", "NotHeld") else 1)
    return "fine" if os.waitpid(child, 0)[1] == 0 else "the child could complete it"


def main(locks: Manager, ledger: Path) -> None:
    """What the process does."""
    work: Work | None = None
    crowd: Crowd | None = None
    blocks = ExitStack()
    for line in sys.stdin:
        word, *args = line.split()
        if word == "ask":
            crowd = Crowd(locks.once(KEY, ttl=TTL, lease=float(args[0])), ledger)
            crowd.ask(int(args[1]), int(args[2]))
            say("asked")
        elif word == "begin":
            work = blocks.enter_context(locks.once(KEY, ttl=TTL, lease=float(args[0])))
            if not work.replayed:
                write(ledger)
            say("replayed" if work.replayed else "begun")
        elif crowd is not None and word == "answers":
            say(crowd.answers())
        elif work is not None and word == "proven":
            say(now() + work.lease.remaining())
        elif work is not None and word == "complete":
            say(attempt(work, args[0]))
        elif work is not None and word == "fork":
            say(fork(work))
    os._exit(0)


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with connect(sys.argv[1]) as manager:
        main(manager, Path(sys.argv[2]))
