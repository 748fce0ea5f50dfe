"""The nodes that a Redlock URL names."""

from __future__ import annotations

from collections.abc import Sequence

from ...base import ConfigurationError
from .._connect import Server, shown
from .._url import Place

__all__ = ("servers_of",)

_FORM = "redlock://[user:password@]host1:6379,host2:6379,host3:6379/0"


def servers_of(url: str) -> tuple[Sequence[Server], str]:
    """The nodes, and an address without secrets. All share user, password, database and options."""
    place = Place.parse(url)
    db = "".join(place.path[:1]) or "0"
    if len(place.path) > 1:
        raise ConfigurationError(f"not a usable Redlock URL (one database, and no more of a path): {_FORM}")
    servers = place.servers(db, 6379)
    places = [(str(one.settings["host"]).lower(), int(one.settings["port"])) for one in servers]
    if len(set(places)) < len(places):
        raise ConfigurationError("a Redlock URL names a node twice; its vote would count twice")
    if len(places) < 3 or len(places) % 2 == 0:
        raise ConfigurationError(
            f"a Redlock needs an odd number of nodes, 3 at least, not {len(places)}: a fourth node lets no more of them"
            f" fail than three do ({_FORM})"
        )
    return servers, f"{place.scheme}://{','.join(map(shown, places))}/{db}"
