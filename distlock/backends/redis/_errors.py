"""What the errors of redis-py, of sockets and of the server mean."""

from __future__ import annotations

import ssl

from redis import exceptions

from ..base import BackendError, BackendUnavailable

__all__ = ("mapped",)

RIGHTS = (
    "+@scripting +@read +@write +@pubsub +@connection +time on ~distlock:* &distlock:*; with Sentinel +role, with"
    " wait_replicas +wait, on a Cluster +cluster|slots"
)


def mapped(error: Exception, address: str, *, key: str | None = None, sent: bool = True) -> BackendError:
    """A driver's or a socket's exception as one of ours, with what to do about it."""
    text = str(error)
    away = _not_now(error, text)
    if away is not None:
        return BackendUnavailable(f"{away} [{address}]", key=key, backend=address, sent=False)
    if text.startswith(("BUSY ", "MASTERDOWN")):
        what = f"the server is busy, or waits for its primary; try again: {text}"
    elif (refusal := _refusal(error, text)) is not None:
        return BackendError(f"{refusal} [{address}]", key=key, backend=address)
    elif isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        what = "the server did not answer in time"
    elif isinstance(error, (exceptions.ConnectionError, OSError)):
        if isinstance(error.__context__, ssl.SSLError):  # older releases of redis-py lose its text
            text = str(error.__context__)
        what = f"the server cannot be reached; is it running, and is the address right? ({text})"
    else:
        return BackendError(f"the server answered with an error: {text} [{address}]", key=key, backend=address)
    return BackendUnavailable(f"{what} [{address}]", key=key, backend=address, sent=sent)


def _not_now(error: Exception, text: str) -> str | None:
    """Of a server that has certainly not done what it was asked, and may do so later or elsewhere."""
    if isinstance(error, exceptions.BusyLoadingError):
        return "the server is still loading its data; try again"
    if isinstance(error, exceptions.ReadOnlyError) or "READONLY" in text:
        return "the server is a read-only replica; connect to the primary"
    if text.startswith(("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")):
        return (
            "the slot of this lock is another node's, or just moving; a Redis Cluster is reached by redis+cluster://:"
            f" {text}"
        )
    return None


def _refusal(error: Exception, text: str) -> str | None:
    """Of a server that says no, and would again."""
    unknown = exceptions.AuthenticationError, exceptions.AuthenticationWrongNumberOfArgsError
    if isinstance(error, unknown) or text.startswith(("NOAUTH", "WRONGPASS")) or "unauthenticated" in text:
        return f"the server refused the user or the password; check them: {text}"
    if isinstance(error, exceptions.NoPermissionError) or "user executing the script" in text:
        return f"the user may not do this; its ACL needs {RIGHTS}: {text}"
    if isinstance(error, exceptions.OutOfMemoryError) or "OOM command" in text:
        return "the server is out of memory; raise maxmemory, and use maxmemory-policy noeviction for locks"
    if text.startswith("CROSSSLOT"):
        return "the server is a node of a Redis Cluster; reach it by redis+cluster://host"
    if "unknown command" in text:
        return f"the server knows no scripts; a Sentinel is reached by redis+sentinel://host/name: {text[:60]}"
    if "WRONGTYPE" in text:
        return f"a key of this lock holds data of another kind; delete it or use another namespace: {text}"
    return None
