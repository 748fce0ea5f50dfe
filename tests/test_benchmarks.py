"""The benchmarks run. What they find is for people to judge: no test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .etcd_servers import require_etcd
from .servers import require_redis
from .zookeeper_servers import require_zookeeper

STORES = [("redis", require_redis), ("etcd", require_etcd), ("zookeeper", require_zookeeper)]


@pytest.mark.parametrize(("store", "require"), STORES)
def test_a_benchmark_runs_and_reports(store, require):
    require()
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", "--only", f"{store}-requests"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert {row["name"] for row in report["rows"]} >= {"distlock acquire", "distlock on asyncio release"}
