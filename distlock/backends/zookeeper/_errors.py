"""What the errors of kazoo and of ZooKeeper mean."""

from __future__ import annotations

from kazoo.exceptions import ZookeeperError

from ..base import BackendError, BackendUnavailable

__all__ = ("is_answer", "mapped")

_LOGIN = (
    "the server refused the user or the password, or lets nobody in without: zookeeper://user:password@host;"
    " for SASL add ?auth=sasl"
)
# By their names: older releases of kazoo do not have all of them.
_REFUSALS = {
    "NoAuthError": (
        "the user may not do this; the nodes' ACLs (and those of the node above) must let it create, read and delete"
    ),
    "AuthFailedError": _LOGIN,
    "SessionClosedRequireSaslError": _LOGIN,
    "InvalidACLError": "the ACL is not valid there; ?acl=creator needs a user: zookeeper://user:password@host",
    "UnimplementedError": "the server does not know the request; is it a ZooKeeper of 3.5 or later?",
    "MarshallingError": "the server did not understand the request; is it a ZooKeeper of 3.5 or later?",
    "QuotaExceededError": "the quota of the path is used up",
    "NoChildrenForEphemeralsError": "the node above is ephemeral, and can have none below; choose another path",
}
# The request was carried out or will be, or not: nobody knows, or another try may go better.
_TEMPORARY = {
    "ConnectionLoss",
    "SessionExpiredError",
    "ConnectionClosedError",
    "SessionMovedError",
    "OperationTimeoutError",
    "RequestTimeoutError",
    "ThrottledOpError",
    "NotReadOnlyCallError",
}


def mapped(error: Exception, address: str, *, key: str | None = None) -> BackendError:
    """A request's error as one of ours, with what to do about it."""
    name = type(error).__name__
    if name in _REFUSALS:
        return BackendError(f"{_REFUSALS[name]} ({name}) [{address}]", key=key, backend=address)
    if name in _TEMPORARY:
        why = f"the connection or the session was lost ({name})"
        return BackendUnavailable(f"{why} [{address}]", key=key, backend=address, sent=True)
    text = f"{name} {error}".strip()
    return BackendError(f"the server answered with an error: {text} [{address}]", key=key, backend=address, sent=True)


def is_answer(outcome: object) -> bool:
    """Whether it is what the server has said, be it an error."""
    return not isinstance(outcome, Exception) or (
        isinstance(outcome, ZookeeperError) and type(outcome).__name__ not in _TEMPORARY
    )
