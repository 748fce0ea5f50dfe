"""A process of its own that acquires a lock: ``python -m tests.redis_child url key ttl op_timeout``.

Prints "ready", then "got <token>"; then answers lines: "state", "release".
"""

from __future__ import annotations

import sys

import distlock


def main(url: str, key: str, ttl: str, op_timeout: str) -> None:
    locks = distlock.connect(url, op_timeout=float(op_timeout))
    say("ready")
    lease = locks.lock(key, ttl=float(ttl)).acquire()
    say(f"got {lease.token}")
    for line in sys.stdin:
        try:
            if line.strip() == "release":
                lease.release()
            say(lease.state.value)
        except distlock.DistLockError as error:
            say(type(error).__name__)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
