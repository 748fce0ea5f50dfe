"""Several processes sell from one stock, with a lock or without; and what came of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from . import _worker
from ._worker import READY, Sale, Shop

__all__ = ("Outcome", "WorkerFailed", "race", "temporary_folder")

Worker: TypeAlias = "subprocess.Popen[str]"

HEAD_START = 0.05
"""Seconds from the last worker's being ready to the start, so that all are told before it."""
GRACE = 3.0
"""Seconds for the workers to end by themselves, after which they are killed."""
TICK = 0.02


class WorkerFailed(Exception):
    """A worker could not go on."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True)
class Outcome:
    """What the ledger says."""

    stock: int
    workers: int
    sales: Sequence[Sale]

    @property
    def sold(self) -> int:
        """How many were promised to customers."""
        return len(self.sales)

    @property
    def oversold(self) -> int:
        """How many of those do not exist."""
        return max(0, self.sold - self.stock)

    @property
    def seconds(self) -> float:
        """From the first sale to the last."""
        return self.sales[-1].at - self.sales[0].at if self.sales else 0.0

    @property
    def handoffs_per_s(self) -> float:
        """How often a sale was followed by one of another worker."""
        changes = sum(one.worker != other.worker for one, other in pairwise(self.sales))
        return changes / self.seconds if self.seconds > 0 else 0.0

    @property
    def fairness(self) -> float:
        """Jain's index (R. Jain, D.-M. Chiu, W. Hawe 1984) of sales by worker: 1 is even, 1/workers is all to one."""
        counts = [sum(sale.worker == worker for sale in self.sales) for worker in range(self.workers)]
        squares = self.workers * sum(count * count for count in counts)
        return sum(counts) ** 2 / squares if squares else 0.0

    @property
    def tokens_in_order(self) -> bool:
        """Each token above the one before, in the order in which the sales were written."""
        return all(one.token < other.token for one, other in pairwise(self.sales))


def race(
    folder: Path, stock: int, workers: int, progress: Callable[[int], object], *, url: str = "", key: str = ""
) -> Outcome:
    """Sells ``stock`` in ``folder``; without a lock if there is no ``url``. ``progress`` is told how many are sold."""
    folder.mkdir()
    shop = Shop(folder, workers)
    shop.open(stock)
    order = {"folder": str(folder), "url": url, "key": key, "workers": str(workers)}
    orders = [{**order, "worker": str(number)} for number in range(workers)]
    with _started(orders) as team:
        for worker in team:
            _expect(worker, READY)
        start = time.monotonic() + HEAD_START
        for worker in team:
            _tell(worker, f"{start!r}")
        while any(worker.poll() is None for worker in team):
            progress(shop.sold())
            _check(team)
            time.sleep(TICK)
        _check(team)
    progress(shop.sold())
    return Outcome(stock, workers, shop.sales())


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gone afterwards, whenever Ctrl-C comes."""
    folder: tempfile.TemporaryDirectory[str] | None = None
    try:
        with _uninterrupted():
            folder = tempfile.TemporaryDirectory(prefix="distlock-demo-")
        yield Path(folder.name).resolve()
    finally:
        with _uninterrupted():
            if folder is not None:
                folder.cleanup()


@contextmanager
def _started(orders: Sequence[dict[str, str]]) -> Iterator[list[Worker]]:
    team: list[Worker] = []
    try:
        for order in orders:
            with _uninterrupted():
                team.append(_start())
            _tell(team[-1], json.dumps(order))
        yield team
    finally:
        with _uninterrupted():
            _end(team)


def _start() -> Worker:
    # Not by -m, for which the current folder comes first: a random.py of the user's would be imported there.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {_worker.__name__} import main; sys.exit(main())"
    return subprocess.Popen(  # noqa: S603 - this very package
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, which ends its workers in order
    )


def _tell(worker: Worker, line: str) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has ended; its last words say why
        worker.stdin.write(line + "\n")
        worker.stdin.flush()


def _expect(worker: Worker, line: str) -> None:
    assert worker.stdout is not None
    heard = worker.stdout.readline().strip()
    if heard != line:
        raise _failure(heard, worker)


def _check(team: Sequence[Worker]) -> None:
    """One that failed fails all, at once."""
    for worker in team:
        if worker.poll():
            assert worker.stdout is not None
            raise _failure(worker.stdout.readline(), worker)


def _failure(words: str, worker: Worker) -> WorkerFailed:
    try:
        report = json.loads(words)
        return WorkerFailed(report["error"], report["traceback"])
    except ValueError:
        return WorkerFailed(f"a worker of the demo ended with exit status {worker.wait()}", "")


def _end(team: Sequence[Worker]) -> None:
    """The end of stdin tells them to stop; each gives its lock up and ends."""
    for worker in team:
        assert worker.stdin is not None
        with suppress(BrokenPipeError):
            worker.stdin.close()
    deadline = time.monotonic() + GRACE
    for worker in team:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect at the end: no process is started or ended by halves."""
    pressed = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed.is_set():
        raise KeyboardInterrupt
