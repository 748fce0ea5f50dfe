"""Puts the simulation in the place of the system's threads, time, chance and sockets, for as long as a test lasts."""

from __future__ import annotations

import logging
import random
import selectors
import sys
import threading
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from distlock import _clock, _who
from distlock.backends.redis import _channels, _ear, _link
from distlock.backends.redis.redlock import _backend, _fan, _node, _waiting
from distlock.testing.clock import _renamed, _swapped

from .fibers import SIM, Lock, Threading
from .network import Selector, Sockets, forget_sockets, readable

__all__ = ("reset", "simulated")

SIMULATED = ("distlock._core.", "distlock._manager", "distlock.backends.redis.")
_dice = random.Random(0)


class _Secrets:
    """What stands for the module `secrets`."""

    @staticmethod
    def token_hex(length: int) -> str:
        return _next_name()


class _Selectors:
    """What stands for the module `selectors`."""

    DefaultSelector = Selector
    EVENT_READ = selectors.EVENT_READ
    EVENT_WRITE = selectors.EVENT_WRITE


class _Bell(_node.Bell):
    """They lie in sets, whose order is to be the same each time."""

    def __hash__(self) -> int:
        return self.fileno()


class _Loud(logging.Handler):
    """Errors that the library logs are bugs that it has survived."""

    def emit(self, record: logging.LogRecord) -> None:
        SIM.failures.append(AssertionError(f"it logged an error: {record.getMessage()} {record.exc_text or ''}"))


def _next_name() -> str:
    here: Any = SIM.here
    return str(here.next_name())


def _modules_with(name: str, value: object) -> list[Any]:
    """Those of what is simulated that have this of the system's."""
    modules = [sys.modules[each] for each in sorted(sys.modules) if each.startswith(SIMULATED)]
    return [module for module in modules if vars(module).get(name) is value]


def _swaps() -> list[tuple[Any, str, object]]:
    fake: Any = Threading
    return [
        *((module, "threading", fake) for module in _modules_with("threading", threading)),
        *((module, "allocate_lock", Lock) for module in _modules_with("allocate_lock", allocate_lock)),
        *((module, "socket", Sockets) for module in (_ear, _node)),
        *((module, "DICE", _dice) for module in (_backend, _waiting)),
        *((module, "Bell", _Bell) for module in (_fan, _waiting)),
        (_link, "get_ident", Threading.get_ident),
        (_ear, "_readable", readable),
        (_fan, "_Selector", Selector),
        (_waiting, "selectors", _Selectors),
        (_backend, "time", SIM),
        (_channels, "secrets", _Secrets),
        (_who, "new_claim_id", _next_name),
        (_who, "introduce", lambda actor, metadata: "{}"),
    ]


def reset() -> None:
    """Another history begins."""
    SIM.reset()
    forget_sockets()
    _dice.seed(0)


@contextmanager
def simulated() -> Iterator[None]:
    """Nothing of distlock's runs on real time inside, so that the test is to be alone in its process."""
    log, loud = logging.getLogger("distlock"), _Loud(logging.ERROR)
    level, propagates = log.level, log.propagate
    with ExitStack() as exits:
        exits.enter_context(_renamed(_clock.now, SIM.now))
        for module, name, value in _swaps():
            exits.enter_context(_swapped(module, name, value))
        log.addHandler(loud)
        exits.callback(log.removeHandler, loud)
        exits.callback(setattr, log, "propagate", propagates)
        exits.callback(log.setLevel, level)
        log.setLevel(logging.ERROR)
        log.propagate = False
        exits.callback(SIM.end)
        reset()
        yield
