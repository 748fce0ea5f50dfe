"""What happens at the worst moment, once each: a process dies, or is stopped for longer than its lease.

They are done to the program from outside (`flash_sale.trial.entry`); the program knows nothing of them.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from distlock import Lease

from .. import outbox, shop
from ..clients import Services
from ..saga import Saga

__all__ = ("FAULTS", "happened", "install", "is_over", "replace")


def happened(folder: str, fault: str) -> tuple[int, str] | None:
    """The process that it has happened to, and which order it was at if that matters; None: not yet."""
    path = Path(folder, f"{fault}.fault")
    if not path.exists():
        return None
    pid, _, order = path.read_text().partition(" ")
    return int(pid), order


def is_over(folder: str, fault: str) -> bool:
    """Whether the process that was stopped has gone on, and is done with what it was at."""
    return Path(folder, f"{fault}.over").exists()


def install(folder: str, faults: str) -> None:
    """Lies in wait for them in this process."""
    for fault in filter(None, faults.split(",")):
        FAULTS[fault](_First(folder, fault))


class _First:
    """Whether nobody was here before, in any process."""

    def __init__(self, folder: str, fault: str) -> None:
        self._path = Path(folder, f"{fault}.fault")

    def __call__(self, order: str = "") -> bool:
        # In one step: another fault may kill the process at any line.
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent) as note:
            note.write(f"{os.getpid()} {order}")
            note.flush()
            try:
                os.link(note.name, self._path)
            except FileExistsError:
                return False
        return True

    def is_over(self) -> None:
        """It changes nothing any more."""
        self._path.with_suffix(".over").touch()

    def dies(self, here: bool = True) -> None:
        """Kills this process, if nobody else has died of it."""
        if here and self():
            os.kill(os.getpid(), signal.SIGKILL)


def replace(owner: Any, **functions: Callable[..., Any]) -> None:
    """Puts other functions into a module or a class."""
    for name, function in functions.items():
        setattr(owner, name, function)


def after(owner: Any, name: str, happens: Callable[..., None]) -> None:
    """``happens``, with the same arguments, when the function has returned."""
    original = getattr(owner, name)

    @wraps(original)
    def function(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        happens(*args, **options)
        return result

    replace(owner, **{name: function})


def shop_dies(first: _First) -> None:
    """The order is placed, and the customer gets no answer."""
    after(shop, "checkout", lambda *args: first.dies())


def saga_dies(first: _First) -> None:
    """The money is taken, and nobody here knows."""
    after(Services, "do", lambda services, step: first.dies(step.name == "pay"))


def write_dies(first: _First) -> None:
    """In the middle of a transaction, behind the event that is a part of it."""
    after(outbox, "add", lambda connection, order, kind, token: first.dies(kind == "shipped"))


def publisher_dies(first: _First) -> None:
    """Events are sent, and nobody here knows."""
    after(outbox, "send", lambda *args: first.dies())


def consumer_dies(first: _First) -> None:
    """Half of the events are counted."""
    after(outbox, "take", lambda *args: first.dies())


def saga_pauses(first: _First) -> None:
    """Stopped between the last look at the lease and the write: no look can be late enough."""
    recording = threading.local()
    between_transactions = threading.Lock()  # else the whole shop would wait for what the stopped process has locked
    record, ensure_held, begin = Saga.record, Lease.ensure_held, Engine.begin

    def noted(saga: Saga, step: Any, lease: Lease) -> None:
        recording.payment, recording.late = step.order if step.name == "pay" else None, False
        try:
            record(saga, step, lease)
        finally:
            recording.payment = None
            if recording.late:
                first.is_over()

    def paused(lease: Lease, at_least: float = 0.0) -> int:
        token = ensure_held(lease, at_least)
        order = getattr(recording, "payment", None)
        if order:
            with between_transactions:
                if first(order):
                    recording.late = True
                    # This thread first: it must not come back and open the gate before the others stand still.
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return token

    @contextmanager
    def alone(engine: Engine) -> Iterator[Connection]:
        with between_transactions, begin(engine) as connection:
            yield connection

    replace(Saga, record=noted)
    replace(Lease, ensure_held=paused)
    replace(Engine, begin=alone)


FAULTS: dict[str, Callable[[_First], None]] = {
    "shop-dies": shop_dies,
    "saga-dies": saga_dies,
    "saga-pauses": saga_pauses,
    "write-dies": write_dies,
    "publisher-dies": publisher_dies,
    "consumer-dies": consumer_dies,
}
