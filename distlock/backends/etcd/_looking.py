"""What becomes of many keys, asked for together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..base import TooLarge
from ._client import Client
from ._requests import gets
from ._rpc import TXN, pb

__all__ = ("looked_up",)

BATCH = 100
"""Keys that are looked at in one transaction. A server takes 128 operations unless it is told otherwise."""


def looked_up(
    client: Client, keys: Iterable[bytes], deadline: float, *, keys_only: bool = False
) -> Iterator[pb.KeyValue | None]:
    """Each of them, in order; None: it is not there. In as few transactions as the server lets it be."""
    left, batch = [*keys], BATCH
    while left:
        try:
            txn = client.call(TXN, gets(left[:batch], keys_only=keys_only), deadline).value
        except TooLarge:
            if batch == 1:
                raise
            batch = min(batch, len(left)) // 2 or 1
            continue
        for response in txn.responses:
            kvs = response.response_range.kvs
            yield kvs[0] if kvs else None
        del left[:batch]
