"""What is said of ratios that were recorded. The figures are made up: nothing here measures anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks._measure import Report, Row, Spread
from benchmarks._records import Record, append, commit_of, judge, read, records_of

OLD = Record("1111111", "2026-01-02", "2 × Abacus", "CPython 3.12.1", "redis", "one pair", "distlock", 1.5, 1.4, 1.6)


def later(median: float, low: float, high: float, **other: str) -> Record:
    return OLD._replace(commit="2222222", median=median, low=low, high=high, **other)


@pytest.mark.parametrize(
    ("now", "moved"),
    [
        (later(1.5, 1.4, 1.6), False),
        (later(1.7, 1.55, 1.9), False),
        (later(1.7, 1.61, 1.9), True),
        (later(1.3, 1.2, 1.39), True),
        (later(1.3, 0.9, 1.5), False),
        (later(9.0, 1.6, 20.0), False),
    ],
    ids=["same", "up, overlapping", "up, apart", "down, apart", "down, overlapping", "far up, with as much noise"],
)
def test_a_ratio_has_moved_if_the_middle_halves_are_apart(now: Record, moved: bool) -> None:
    assert now.has_moved(OLD) is moved
    assert OLD.has_moved(now) is moved


def test_what_has_no_spread_moves_by_more_than_a_twentieth() -> None:
    counted = OLD._replace(median=2.0, low=2.0, high=2.0)
    assert not counted._replace(median=2.09, low=2.09, high=2.09).has_moved(counted)
    assert counted._replace(median=2.11, low=2.11, high=2.11).has_moved(counted)


@pytest.mark.parametrize(
    "other",
    [{"processor": "4 × Abacus"}, {"python": "CPython 3.13.0"}, {"row": "redis-py"}, {"what": "x"}, {"benchmark": "y"}],
    ids=str,
)
def test_only_like_is_compared_with_like(other: dict[str, str]) -> None:
    judgement = judge([later(9.0, 8.9, 9.1, **other)], [OLD])
    assert (judgement.moved, judgement.steady, len(judgement.new)) == ([], [], 1)
    assert "no record of a like machine" in str(judgement)


def test_the_last_record_counts_unless_a_commit_is_named() -> None:
    newer, now = later(2.0, 1.9, 2.1), later(2.0, 1.9, 2.1)._replace(commit="3333333")
    assert judge([now], [OLD, newer]).steady == [now]
    judgement = judge([now], [OLD, newer], against="1111")
    assert judgement.moved == [(OLD, now)]
    assert "redis, one pair: distlock: 1.5 (1.4–1.6) at 1111111 of 2026-01-02, now 2 (1.9–2.1): +33%" in str(judgement)
    assert judge([now], [OLD], against="3333").new == [now]


def test_each_row_has_a_last_record_of_its_own() -> None:
    """A run may have been of some benchmarks alone."""
    other = later(5.0, 4.9, 5.1, benchmark="etcd")
    judgement = judge([later(1.5, 1.4, 1.6), other], [OLD, other])
    assert (len(judgement.steady), judgement.moved, judgement.new) == (2, [], [])


def test_records_are_of_all_rows_with_a_ratio_but_the_floor() -> None:
    ratios = [1.0, 1.1, 1.2, 1.3, 9.0]
    rows = [
        Row("floor", Spread.of(ratios), "µs", Spread.of([1.0])),
        Row("distlock", Spread.of(ratios), "µs", Spread.of(ratios)),
        Row("one turn", Spread.of(ratios), "µs", Spread.of([1.23456])),
        Row("by hand", Spread.of(ratios), "µs", Spread(1.0, 0.5, 2.0)),
        Row("no floor", Spread.of(ratios), "µs", Spread.of([float("inf")])),
        Row("counted", Spread.of(ratios), "requests"),
    ]
    machine = {"processor": OLD.processor, "python": OLD.python, "load before": "0"}
    found = records_of([Report("redis", "one pair", rows, machine)], "1111111")
    assert [each[4:] for each in found] == [
        ("redis", "one pair", "distlock", 1.2, 1.1, 1.3),
        ("redis", "one pair", "one turn", 1.235, 1.235, 1.235),
        ("redis", "one pair", "by hand", 1.0, 0.5, 2.0),
    ]
    assert {each.like[:2] for each in found} == {OLD.like[:2]}


def test_the_file_is_only_added_to(tmp_path: Path) -> None:
    path, now = tmp_path / "ratios.csv", later(1.7, 1.6, 1.8, what='most by least, a "ratio"')
    assert read(path) == []
    append([OLD], path)
    before = path.read_text("utf-8")
    append([now], path)
    assert path.read_text("utf-8").startswith(before)
    assert read(path) == [OLD, now]


def test_what_is_recorded_is_a_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e@e", *arguments], check=True)

    with pytest.raises(RuntimeError, match="git status"):
        commit_of(tmp_path)
    git("init", "-q")
    (tmp_path / "code").write_text("1")
    (tmp_path / "ratios.csv").write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = commit_of(tmp_path)
    assert len(commit) == 12
    append([OLD], tmp_path / "ratios.csv")
    assert commit_of(tmp_path) == commit, "earlier records are no change"
    (tmp_path / "code").write_text("2")
    with pytest.raises(RuntimeError, match="not committed"):
        commit_of(tmp_path)
    assert commit_of(tmp_path, dirty=True) == f"{commit}+"
