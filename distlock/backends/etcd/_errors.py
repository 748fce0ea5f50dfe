"""What the errors of grpc and of etcd mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from ..base import BackendError, BackendUnavailable, TooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("AuthDisabled", "LeaseNotFound", "TokenRefused", "closed", "is_unreachable", "mapped", "nobody_answered")

Code = grpc.StatusCode


class LeaseNotFound(BackendError):
    """etcd knows no such lease: it has expired, or was revoked. What was asked for has not been done."""


class TokenRefused(BackendError):
    """The token was refused, and a new one may be taken. What was asked for has not been done."""


class AuthDisabled(BackendError):
    """The server has no users, and so gives no token."""


# By what etcd says. None of these requests was carried out (but see below), and it would be refused again.
_REFUSALS = {
    "authentication failed": "the server refused the user or the password; check them",
    "user name not found": "the server refused the user or the password; check them",
    "permission denied": (
        "the user (that of the URL, or whom the client's certificate names) may not do this; its role needs the"
        " permission readwrite for the prefix of the locks (etcdctl role grant-permission --prefix=true …)"
    ),
    "database space exceeded": (
        "the server's space quota is used up: compact and defragment it, and take back the alarm"
        " (etcdctl compact, defrag, alarm disarm)"
    ),
    "corrupt cluster": "the server says that its cluster's data are corrupt; mend the cluster",
}
# Of a member that cannot know: what it was asked for may still be carried out by the others.
_TEMPORARY = ("request timed out", "leader changed", "server stopped", "unhealthy cluster", "request cancelled")
# The same of its own parts to each other, for a request whose time is over.
_TOO_LATE = ("context deadline exceeded", "context canceled")
# Of one that has certainly not done it, and may later, or another may.
_NOT_NOW = {
    "no leader": "the member sees no leader (of a majority); is it cut off?",
    "not leader": "the member is not the leader",
    "not capable": "the member is still starting",
    "too many requests": "the server has more requests than it can take; try again",
    "rpc not supported for learner": "the member is a learner, which has no vote yet",
}
_OLD_TOKEN = ("invalid auth token", "revision of auth store is old", "revision in header is old")
_BROKEN_OFF = ("RST_STREAM", "Stream removed")  # by grpc, not by etcd
_NEVER_SENT = ("failed to connect", "DNS", "resol", "connections to all backends", "mpty address list", "mpty update")
_TLS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted; name its authority by ?ca=file.pem",
    "is not in peer certificate": "its certificate is for another name; if that is right, ?server_name=…",
    "Hostname Verification": "its certificate is for another name; if that is right, ?server_name=…",
    "WRONG_VERSION_NUMBER": "it speaks no TLS; write etcd:// for it",
    "security handshaker": "the files of ca, cert and key are not what they should be, in PEM, or do not go together",
    "empty address list": "the files of ca, cert and key are not what they should be, in PEM, or do not go together",
    "Unwrap failed": "it broke TLS off; does it want a certificate of the client (another one)? ?cert=file.pem&key=…",
    "handshake failed": "TLS cannot be agreed on",
    "Socket closed": "it broke TLS off; if it speaks none, write etcd:// for it",
    "reset by peer": "it broke TLS off; if it speaks none, write etcd:// for it",
}


def mapped(error: grpc.RpcError, address: str, *, key: str | None = None) -> BackendError:
    """A call's error as one of ours, with what to do about it."""
    code, text = _said(error)
    for what, because in _NOT_NOW.items():
        if text.startswith("etcdserver: ") and what in text:
            return BackendUnavailable(f"{because} [{address}]", key=key, backend=address, sent=False)
    if code is Code.DEADLINE_EXCEEDED:
        unavailable, sent = "the server did not answer in time", True
    elif any(text.startswith(f"etcdserver: {what}") for what in _TEMPORARY) or text.startswith(_TOO_LATE):
        unavailable, sent = f"the server could not come to an end in time; try again ({text})", True
    elif code in (Code.UNAVAILABLE, Code.CANCELLED):
        unavailable, sent = _unreachable(text, address), not is_unreachable(error)
    else:
        return _answered(code, text, address, key)
    return BackendUnavailable(f"{unavailable} [{address}]", key=key, backend=address, sent=sent)


def is_unreachable(error: grpc.RpcError) -> bool:
    """There was no connection to send it over, nor will there be one in a moment."""
    code, text = _said(error)
    return code is Code.UNAVAILABLE and any(mark in text for mark in _NEVER_SENT)


def _said(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Every error of a call has a code and a text, but the type does not tell."""
    if isinstance(error, grpc.Call):
        return error.code(), error.details() or ""
    return Code.UNKNOWN, str(error)


def _answered(code: grpc.StatusCode, text: str, address: str, key: str | None) -> BackendError:
    """The error that a server has answered with, for good."""
    if "user name is empty" in text:
        because = "the server wants a user and a password: etcd://user:password@host:2379"
        return TokenRefused(f"{because} ({text}) [{address}]", key=key, backend=address)
    if code is Code.UNAUTHENTICATED or any(what in text for what in _OLD_TOKEN):
        return TokenRefused(f"the server refused the token: {text} [{address}]", key=key, backend=address)
    if "authentication is not enabled" in text:
        return AuthDisabled(f"{text} [{address}]", key=key, backend=address)
    if "lease not found" in text:
        return LeaseNotFound(f"the server knows no such lease (any more) [{address}]", key=key, backend=address)
    if "request is too large" in text or "larger than max" in text:  # etcd's own limit, and grpc's
        because = "the server takes no request of that size (its --max-request-bytes)"
        return TooLarge(f"{because}: {text} [{address}]", key=key, backend=address)
    if "too many operations" in text:
        because = "the server takes no transaction of so many operations (its --max-txn-ops)"
        return TooLarge(f"{because} [{address}]", key=key, backend=address)
    for what, because in _REFUSALS.items():
        if what in text:
            sent = "space exceeded" in text  # the request that uses up the quota is carried out, and refused then
            return BackendError(f"{because}: {text} [{address}]", key=key, backend=address, sent=sent)
    if code is Code.INTERNAL or any(mark in text for mark in _BROKEN_OFF):
        return BackendUnavailable(f"the call was broken off: {text} [{address}]", key=key, backend=address, sent=True)
    if code is Code.UNIMPLEMENTED:
        because = "the server has no such method; is it an etcd of 3.4 or later?"
        return BackendError(f"{because} ({text}) [{address}]", key=key, backend=address)
    return BackendError(f"the server answered with an error: {text} [{address}]", key=key, backend=address)


def _unreachable(text: str, address: str) -> str:
    why = "is it running, and is the address right?"
    if not any(mark in text for mark in _NEVER_SENT):
        why = "the connection was lost"
    elif address.startswith("etcd+tls:"):
        why = next((because for mark, because in _TLS.items() if mark in text), why)
    elif "Socket closed" in text or "reset by peer" in text:
        why += " And if it speaks TLS, write etcd+tls://"
    return f"the server cannot be reached; {why} ({text.rpartition('last error: ')[2]})"


def nobody_answered(troubles: Sequence[BackendError], address: str, *, key: str | None) -> BackendError:
    """What has become of a call that no endpoint answered."""
    if len(troubles) == 1:
        return troubles[0]
    told = "; ".join(map(str, troubles))
    sent = any(trouble.sent for trouble in troubles)
    return BackendUnavailable(f"no endpoint answered: {told}", key=key, backend=address, sent=sent)


def closed(address: str, *, key: str | None = None) -> BackendError:
    """Of a client that was closed."""
    return BackendError(f"closed [{address}]", key=key, backend=address)
