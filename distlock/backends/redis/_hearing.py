"""What is heard on the channels of those who wait."""

from __future__ import annotations

import logging
import math
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ..base import now
from ._channels import Channels
from ._connect import Target
from ._ear import Ear
from ._errors import mapped
from ._listeners import Listeners
from ._scripts import Dialect

__all__ = ("ECHO", "Hearing")

log = logging.getLogger("distlock")

ECHO = 1.0
"""Seconds that a message of our own may take to come back."""
REFUSED = 0.1
"""Seconds until those whose slot is not to be listened to there are to look where it is now."""


class Hearing(Listeners):
    """A subscribed connection, and what its messages mean for those who wait."""

    def __init__(self, server: Target, namespace: str, op_timeout: float, dialect: Dialect) -> None:
        self._server = server
        self._namespace = namespace
        self._op_timeout = op_timeout
        self._dialect = dialect
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self._channels = Channels(self._namespace, self._dialect)
        self._unheard = False  # someone waits for a slot that was not asked for yet
        self._look_at = math.inf  # to be refreshed before its time
        self._echo_due = math.inf

    def _subscribe(self, timeout: float) -> Ear:
        """A connection that listens for all who wait."""
        deadline = now() + max(0.01, min(timeout, self._op_timeout))
        ear: Ear | None = None
        try:
            ear = Ear(self._server, deadline, self._op_timeout)
            self._channels.clear()
            self._ask_to_hear(ear)
            while self._channels.asked:
                if now() >= deadline:
                    raise TimeoutError
                for reply in ear.hear(deadline):
                    self._receive(reply)
        except BaseException as error:
            self._channels.clear()
            if ear is not None:
                ear.close()
            if isinstance(error, (RedisError, OSError)):
                raise mapped(error, self._server.address, sent=False) from error
            raise
        return ear

    def _ask_to_hear(self, ear: Ear) -> None:
        with self._mutex:
            self._unheard = False
            request = self._channels.ask_for({waiting.slot for waiting in self._waiting.values()})
        if request:
            self._echo_due = now() + ECHO
            ear.say(request)

    def _listen(self, ear: Ear, until: float) -> None:
        if self._unheard:
            self._ask_to_hear(ear)
        for reply in ear.hear(min(until, self._due)):
            self._receive(reply)

    def _receive(self, message: Any) -> None:  # whoever is subscribed gets arrays, and errors
        if isinstance(message, ResponseError):
            self._refused(message)
        elif message[0] == self._dialect.message:
            self._told(message[2])
        elif message[0] == self._dialect.subscribed and self._channels.asked:
            self._hears(self._channels.asked.popleft())
        elif message[0] == self._dialect.unsubscribed:
            self._hears_no_more(message[1])

    def _hears(self, slot: int) -> None:
        self._echo_due = math.inf
        with self._mutex:
            self._channels.heard.add(slot)
            unqueued = [one for one, waiting in self._waiting.items() if waiting.slot == slot and not waiting.queued]
        self._wake(unqueued)

    def _hears_no_more(self, channel: bytes) -> None:
        """By the server's own will: the slot is another node's now."""
        with self._mutex:
            gone = self._channels.gone(channel)
            claim_ids = [one for one, waiting in self._waiting.items() if waiting.slot in gone]
            for claim_id in claim_ids:
                self._waiting[claim_id].queued = False
        self._wake(claim_ids)

    def _refused(self, error: ResponseError) -> None:
        if not self._channels.asked or not self._dialect.by_slot:
            raise error
        slot = self._channels.asked.popleft()  # another node's, most likely
        log.info("the server does not tell of slot %d: %s", slot, error)
        self._echo_due = math.inf
        with self._mutex:
            self._look_at = now() + REFUSED
            self._due = min(self._due, self._look_at)

    def _told(self, news: bytes) -> None:
        kind, _, rest = news.decode(errors="replace").partition(" ")
        claim_id, _, given = rest.partition(" ")
        if kind == "e":
            self._echo_due = math.inf
            return
        with self._mutex:
            waiting = self._waiting.get(claim_id)
            if waiting is None:
                return
            if kind != "w":  # granted, or to stand by: if nobody confirms it, the lock is free in a moment
                waiting.hear(given)
                self._due = min(self._due, waiting.stand_by)
            if kind == "s":
                return
            waiting.woken = True
            if self._reader == claim_id:  # it has heard so itself
                return
            waiting.stir()
        if waiting.wake is not None:
            waiting.wake()
