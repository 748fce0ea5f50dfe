"""grpc and fork: a child that was forked from a user of etcd gets a clear error, or does nothing, and never hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .etcd_servers import EtcdServer

START = """
import os, sys, signal, threading
from distlock import BackendError
from distlock.backends.etcd._client import Client
from distlock.backends.etcd._url import Place
from tests.etcd_client_tools import Watching, get, put

def forked(body, *clients):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(15)  # it would hang
        for client in clients:
            client.after_fork()
        body()
        sys.exit(0)  # as a child does: with all that happens at the end of a Python
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status

def refused(client):
    try:
        get(client)
    except BackendError as error:
        assert "forked" in str(error), error
        assert not isinstance(error, ConnectionError), "asking again would not help"
    else:
        raise AssertionError("it was used")

client = Client.at(Place.parse(sys.argv[1]))
"""
CASES = {
    "a child of a parent that has not used etcd can use it": """
forked(lambda: print(put(client)), client)
print(put(client))
""",
    "a child that uses the parent's client is told": """
watching = Watching(client)
watching.next()
forked(lambda: refused(client), client)
put(client)
assert watching.next().events, "and the parent's connection is its own"
client.close()
""",
    "a child that uses a client of its own is told": """
get(client)
forked(lambda: refused(Client.at(Place.parse(sys.argv[1]))), client)
get(client)
""",
    "a child that watches is told": """
get(client)
forked(lambda: print("forked" in str(Watching(client).end()) or sys.exit("not told")), client)
get(client)
""",
    # Not one that ends with the clean-up of a Python: grpc's part in that may abort it, as it may any program's with
    # calls under way.
    "a child of a busy parent that does nothing is unharmed": """
watching = Watching(client)
watching.next()
busy = [threading.Thread(target=lambda: [get(client) for _ in range(2000)], daemon=True) for _ in range(2)]
for thread in busy:
    thread.start()
for _ in range(10):
    forked(lambda: os._exit(0), client)
get(client)
""",
    "a child that does nothing, and ends as a Python does, is unharmed": """
watching = Watching(client)
watching.next()
forked(lambda: None, client)
put(client)
assert watching.next().events
""",
    "a child that closes the client is unharmed": """
watching = Watching(client)
watching.next()
forked(client.close, client)
put(client)
assert watching.next().events
""",
    "a process can end with a stream open": """
watching = Watching(client)
watching.next()
""",
}


@pytest.mark.parametrize("case", CASES)
def test_fork(case: str, shared_etcd: EtcdServer) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", START + CASES[case], shared_etcd.url],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
