"""Who is running: a task of asyncio or trio, else a thread.

Always the object, never its id: ids are reused.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from .._errors import ConfigurationError

Post = Callable[[Callable[[], object]], object]


def current_actor() -> object:
    """The running task, else the running thread."""
    modules = sys.modules
    if "asyncio.events" in modules:
        loop = running_loop()
        if loop is not None and (task := _asyncio().current_task(loop)) is not None:
            return task
    if "trio" in modules and (trio_task := _trio_task()) is not None:
        return trio_task
    return threading.current_thread()


def actor_name(actor: object) -> str:
    """What people call it."""
    if isinstance(actor, threading.Thread):
        return actor.name
    get_name = getattr(actor, "get_name", None)  # asyncio
    return str(get_name() if get_name is not None else getattr(actor, "name", actor))


def current_loop() -> object:
    """The running event loop, as an object that lives as long as it does."""
    loop = running_loop()
    if loop is not None:
        return loop
    if "trio" in sys.modules and _trio_task() is not None:
        return _trio().lowlevel.current_trio_token()
    raise ConfigurationError("no event loop is running: use the async API inside asyncio or trio")


def poster() -> Post:
    """A function that runs another one soon in the running event loop, callable from any thread.

    It raises RuntimeError once that loop has ended.
    """
    loop = running_loop()
    if loop is not None:
        return loop.call_soon_threadsafe  # type: ignore[no-any-return]
    return _trio().lowlevel.current_trio_token().run_sync_soon  # type: ignore[no-any-return]


# Neither is imported here: who uses one has done so, and asyncio takes longer to import than all of distlock.


def _asyncio() -> Any:
    return sys.modules["asyncio"]


def running_loop() -> Any:
    """Of asyncio; None: there is none."""
    events = sys.modules.get("asyncio.events")
    try:
        return None if events is None else events._get_running_loop()
    except AttributeError:  # half imported
        return None


def _trio() -> Any:
    return sys.modules["trio"]


def _trio_task() -> object | None:
    try:
        lowlevel = _trio().lowlevel
        # Asked first where it can be (trio 0.26), as the exception costs ten times as much.
        inside = getattr(lowlevel, "in_trio_task", None)
        return lowlevel.current_task() if inside is None or inside() else None
    except (RuntimeError, AttributeError):  # not in trio; or trio is half imported
        return None
