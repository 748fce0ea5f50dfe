"""The same work done by other libraries' locks, each in its own pinned environment: ``python -m benchmarks.peers``.

One file a peer: how its lock is made, what it is pinned to, and what it does not guarantee. A worker imports it in the
peer's environment, which has nothing but the peer, and may be an older Python's.
"""
