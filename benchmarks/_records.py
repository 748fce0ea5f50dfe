"""What the ratios to the floor were at earlier commits, and whether one has moved since.

``ratios.csv`` is only ever added to. A run is compared with the last record of each row from a like machine: one with
the same processors, as many of them, and the same Python. A ratio has *moved by more than its noise* if

* the middle half of the rounds of one run lies wholly above or below that of the other (the extremes of hundreds of
  rounds are hiccups of the machine, and say nothing of the library), and
* the medians are more than 5 % apart: by so much two runs of one commit may differ though neither could know, for
  where its memory lies and which processors it was given last for the whole run.
"""

from __future__ import annotations

import csv
import datetime
import math
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ._measure import Report

__all__ = ("RATIOS", "Judgement", "Record", "append", "commit_of", "judge", "read", "records_of")

RATIOS = Path(__file__).with_name("ratios.csv")
LEAST = 0.05
"""What is never more than noise, as a share of a ratio."""


class Record(NamedTuple):
    """One row of a run: its ratio to the floor."""

    commit: str
    """With a ``+`` if there were changes that were not committed."""
    date: str
    processor: str
    """How many, and of which kind."""
    python: str
    benchmark: str
    what: str
    row: str
    median: float
    low: float
    """From here to ``high`` the middle half of the rounds lies."""
    high: float

    @property
    def like(self) -> tuple[str, ...]:
        """What records have in common that can be compared."""
        return self.processor, self.python, self.benchmark, self.what, self.row

    def has_moved(self, before: Record) -> bool:
        """By more than its noise, as the module's text has it."""
        apart = self.low > before.high or self.high < before.low
        return apart and abs(self.median - before.median) > LEAST * before.median

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}–{self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What has become of the ratios of a run."""

    moved: Sequence[tuple[Record, Record]]
    """Before and now."""
    steady: Sequence[Record]
    """Within their noise."""
    new: Sequence[Record]
    """No like machine has recorded them."""

    def __str__(self) -> str:
        lines = [
            f"moved: {now.benchmark}, {now.what}: {now.row}: {before} at {before.commit} of {before.date},"
            f" now {now}: {now.median / before.median - 1:+.0%}"
            for before, now in self.moved
        ]
        lines += [f"{len(self.moved)} ratios moved by more than their noise, {len(self.steady)} did not"]
        if self.new:
            machines = ", ".join(sorted({f"{each.processor}, {each.python}" for each in self.new}))
            lines += [f"{len(self.new)} have no record of a like machine ({machines})"]
        return "\n".join(lines)


def records_of(reports: Iterable[Report], commit: str) -> list[Record]:
    """Of all rows that have a ratio, but for the floors themselves."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    found = []
    for report in reports:
        machine = report.conditions.get("processor", ""), report.conditions.get("python", "")
        for row in report.rows:
            ratio = row.ratio
            if row is report.floor_of(row) or ratio is None or not (math.isfinite(ratio.median) and ratio.median):
                continue
            low, high = ratio.middle or (ratio.low, ratio.high)
            figures = (float(f"{value:.4g}") for value in (ratio.median, low, high))
            found.append(Record(commit, date, *machine, report.name, report.what, row.name, *figures))
    return found


def judge(found: Iterable[Record], known: Iterable[Record], against: str = "") -> Judgement:
    """``known`` in the order in which they were recorded; ``against``: those of this commit alone."""
    last = {each.like: each for each in known if each.commit.startswith(against)}
    moved, steady, new = [], [], []
    for now in found:
        before = last.get(now.like)
        if before is None:
            new.append(now)
        elif now.has_moved(before):
            moved.append((before, now))
        else:
            steady.append(now)
    return Judgement(moved, steady, new)


def read(path: Path = RATIOS) -> list[Record]:
    """All records, in their order; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        _, *rows = csv.reader(lines)
    return [Record(*row[:7], *map(float, row[7:])) for row in rows]  # type: ignore[arg-type]


def append(records: Iterable[Record], path: Path = RATIOS) -> None:
    """Adds them at the end."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if fresh:
            writer.writerow(Record._fields)
        writer.writerows(records)


def commit_of(folder: Path, *, dirty: bool = False) -> str:
    """The commit that is checked out in ``folder``; its own records are no change.

    Raises RuntimeError if something else is changed, unless that is allowed by ``dirty``, or if there is no commit.
    """
    changed = _git(folder, "status", "--porcelain", "--", ":/", f":(exclude,top)*{RATIOS.name}")
    if changed and not dirty:
        raise RuntimeError("there are changes that are not committed: of which commit would the ratios be?")
    return _git(folder, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"git does not run: {error}") from error
    if done.returncode:
        raise RuntimeError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()
