"""The processes of a run: its register and its workers, from their starts to their ends."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ...backends.base import now, seconds_left
from . import _register, _worker
from ._plan import Plan

__all__ = ("Process", "Team", "register_process")

START = 180.0
"""Seconds for a process to start: a bound for the slowest machine, never a measure."""
SLOWEST_CALL = 5.0
"""Seconds a request may take if the plan says nothing: the library's own ``op_timeout``."""
PATIENCE = 20.0
"""Seconds for attempts that have no timeout to come to an end, once nobody begins a new one."""
LAST_WORDS = 10.0
"""Seconds in which one that hangs has begun to write its stacks."""


class Process:
    """A child of ours. Its stdout and stderr are files: no pipe of it can fill up."""

    def __init__(self, name: str, module: str, folder: Path, *arguments: str) -> None:
        self.name: str = name
        self._was_killed = False
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        # Not by -m, for which the current folder comes first: a random.py of the user's would be imported there.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self._popen = subprocess.Popen(  # noqa: S603 - this very package
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
            )
        self.pid: int = self._popen.pid

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    def tell(self, order: str) -> None:
        assert self._popen.stdin is not None
        with suppress(OSError):  # it has ended
            self._popen.stdin.write(order.encode() + b"\n")
            self._popen.stdin.flush()

    def wait_until_ready(self, ready: str) -> None:
        """Until it has said so; `ChildProcessError` if it does not."""
        until = now() + START
        while ready not in self.said():
            if not self.runs or now() > until:
                raise ChildProcessError(f"{self.name} did not start: {self.complaint()}")
            time.sleep(0.01)

    def said(self) -> list[str]:
        """The lines of its stdout so far."""
        return self._out.read_text(errors="replace").splitlines()

    def complaint(self) -> str:
        """The last line of its stderr."""
        lines = self._err.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._popen.poll()}"

    def ends(self, deadline: float) -> bool:
        """Whether it does by then."""
        try:
            self._popen.wait(seconds_left(deadline))
        except subprocess.TimeoutExpired:
            return False
        return True

    def died(self) -> str | None:
        """Why it has ended, if it was not meant to."""
        return f"{self.name}: {self.complaint()}" if self._popen.poll() and not self._was_killed else None

    def kill(self) -> None:
        self._was_killed = True
        self._popen.kill()
        self._popen.wait()
        assert self._popen.stdin is not None
        with suppress(OSError):  # an order that was not read
            self._popen.stdin.close()


@contextmanager
def register_process(folder: Path) -> Iterator[str]:
    """The register runs inside; gives the path of its socket."""
    # Not in ``folder``: paths of sockets are a hundred bytes at most, see unix(7).
    with tempfile.TemporaryDirectory(prefix="distlock-") as place:
        socket = os.path.join(place, "register")
        process = Process("register", _register.__name__, folder, str(folder), socket)
        try:
            process.wait_until_ready(_register.READY)
            yield socket
        finally:
            process.kill()


class Team:
    """The workers: an `Arena`. A context manager, after which none of them runs."""

    def __init__(self, plan: Plan, folder: Path, register: str) -> None:
        self.plan: Plan = plan
        self.dice: random.Random = random.Random(plan.seed)
        self._folder, self._register = folder, register
        self._places: list[Process] = []
        self._all: list[Process] = []
        self._numbers = itertools.count()

    @property
    def workers(self) -> Sequence[Process]:
        """Those that run."""
        return [worker for worker in self._places if worker.runs]

    def start(self) -> None:
        """All of them, until they are connected."""
        for place in range(self.plan.workers):
            self._places.append(self._begin(place))
        for worker in self._places:
            worker.wait_until_ready(_worker.READY)

    def mend(self) -> None:
        """One that has ended is replaced, by one of the same colour with the next number: names are not used again."""
        for place, worker in enumerate(self._places):
            if not worker.runs:
                self._places[place] = self._begin(place)
                self._places[place].wait_until_ready(_worker.READY)

    def stop(self) -> dict[str, list[str]]:
        """Ends them in order. Gives what is wrong: who hung, who died, and what they said themselves."""
        plan = self.plan
        waiting = PATIENCE if plan.timeout is None else plan.timeout
        holding = plan.ttl * (2.5 if plan.overlong else 1.0) + plan.work
        asking = 2 * (plan.op_timeout or SLOWEST_CALL)  # the release of the last lock, and the close
        deadline = now() + waiting + holding + asking + 2 * plan.grace + _worker.SETTLING
        found: dict[str, list[str]] = defaultdict(list)
        for worker in self.workers:
            worker.tell("stop")
        for worker in self.workers:
            if not worker.ends(deadline):
                self._put_down(worker)
                found["hung"].append(worker.name)
        found["died"] = [why for worker in self._all if (why := worker.died()) is not None]
        for worker in self._all:
            for line in worker.said():
                if line != _worker.READY:
                    kind, text = _found(line)
                    found[kind].append(text)
        return found

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._all:
            worker.kill()

    def _begin(self, place: int) -> Process:
        plan, name = self.plan, f"w{next(self._numbers)}"
        worker = Process(name, _worker.__name__, self._folder)
        self._all.append(worker)
        order = {
            "plan": plan.text(),
            "name": name,
            "folder": str(self._folder),
            "register": self._register,
            "colour": plan.colours[place % len(plan.colours)],
        }
        worker.tell(json.dumps(order))
        return worker

    def _put_down(self, worker: Process) -> None:
        """Its last words are the stacks of its threads."""
        if _worker.STACKS is not None:
            os.kill(worker.pid, _worker.STACKS)
            stacks, until = self._folder / f"{worker.name}.stacks", now() + LAST_WORDS
            while not (stacks.exists() and stacks.stat().st_size) and worker.runs and now() < until:
                time.sleep(0.01)
            time.sleep(0.5)  # nothing tells the end of it
        worker.kill()


def _found(line: str) -> tuple[str, str]:
    """What a worker says beside being ready."""
    try:
        kind, text = json.loads(line)
    except ValueError:  # a driver that prints, perhaps
        return "printed", line
    return kind, text
