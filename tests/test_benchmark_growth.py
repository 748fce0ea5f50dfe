"""What grows is measured and drawn. The figures of the first tests are made up: no test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._measure import Report, Row, Spread
from benchmarks._plots import plot
from benchmarks._records import records_of
from benchmarks._table import table

from .etcd_servers import require_etcd
from .servers import require_redis
from .zookeeper_servers import require_zookeeper

SERVERS = {"redis", "etcd", "zookeeper"}


def point(curve: str, at: int, value: float, ratio: float) -> Row:
    return Row(f"{curve}, {at}", Spread.of([value]), "B", Spread.of([ratio]), curve=curve, at=at)


GROWTH = Report(
    "growth, held",
    "memory",
    [point("redis", 1, 2, 1), point("redis", 10, 4, 2), point("etcd", 1, 8, 1), point("etcd", 10, 8, 1)],
    axis="locks held",
)
PLAIN = Report("redis", "one pair", [Row("raw", Spread.of([1]), "µs"), Row("distlock", Spread.of([2]), "µs")])


def test_the_ratios_of_a_curve_are_to_its_first_point() -> None:
    assert [GROWTH.floor_of(row).name for row in GROWTH.rows] == ["redis, 1", "redis, 1", "etcd, 1", "etcd, 1"]
    assert "| etcd, 10 | 8 B | 1 | 1.00 |" in table([GROWTH])
    assert [record.row for record in records_of([GROWTH], "1111111")] == ["redis, 10", "etcd, 10"]


def test_reports_with_an_axis_are_drawn_those_of_one_name_together(tmp_path: Path) -> None:
    nothing_left = Report("growth, held", "keys", [point("redis", 1, 0, 1), point("redis", 10, -3, 1)], axis="locks")
    assert plot([PLAIN, GROWTH, nothing_left], tmp_path / "new") == [tmp_path / "new" / "growth-held.svg"]
    assert plot([PLAIN], tmp_path) == []


@pytest.mark.parametrize(
    ("name", "stores"),
    [("held", SERVERS | {"file", "memory"}), ("waiting", SERVERS), ("names", SERVERS | {"file", "memory"})],
    ids=["held", "waiting", "names"],
)
def test_growth_is_measured_and_drawn(name: str, stores: set[str], tmp_path: Path) -> None:
    for require in (require_redis, require_etcd, require_zookeeper):
        require()
    options = ["--quick", "--json", "--plot", str(tmp_path), "--only", f"growth-{name}"]
    command = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    for report in reports:
        assert SERVERS <= {row["curve"] for row in report["rows"]} <= stores
        assert {row["at"] for row in report["rows"]} == {2}
    assert {row["curve"] for row in reports[0]["rows"]} == stores
    assert (tmp_path / f"growth-{name}.svg").read_text("utf-8").startswith("<?xml")
