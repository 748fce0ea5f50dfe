"""``python -m benchmarks``: runs them one after the other and prints one table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ._measure import Report
from ._plots import plot, plot_folder
from ._progress import progress
from ._records import RATIOS, append, commit_of, judge, read, records_of
from ._run import BENCHMARKS, run
from ._table import table


def main() -> int:
    """The exit code: 0 unless a benchmark could not be run. A target that is missed is told, not judged."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    reports: list[Report] = []
    failed: list[str] = []
    stopped = False
    try:
        with progress(len(options.only)) as tell:
            for name in options.only:
                found = run(name, tell, quick=options.quick)
                reports.extend(found)
                failed.extend([] if found else [name])
    except KeyboardInterrupt:
        stopped = True
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=1, ensure_ascii=False))
    else:
        print(table(reports))
    if options.plot:
        print("drawn:", *plot(reports, options.plot), file=sys.stderr)
    if reports and not options.quick:
        _compare(reports, options, record=options.record and not stopped)
    for name in failed:
        print(f"{name} could not be run", file=sys.stderr)
    if stopped:
        print("stopped: this is what was done until then", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _compare(reports: Sequence[Report], options: argparse.Namespace, *, record: bool) -> None:
    """Says what has moved since the last records, and adds these to them if asked to."""
    found = records_of(reports, options.commit)
    print(judge(found, read(), options.against), file=sys.stderr)
    if record:
        append(found)
        print(f"{len(found)} ratios recorded for {options.commit} in {RATIOS}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="See docs/benchmarks.md.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=plot_folder, metavar="FOLDER", help="draw what grows, as SVG; needs matplotlib")
    parser.add_argument("--quick", action="store_true", help="only see that all of it runs: the figures say nothing")
    parser.add_argument(
        "--only",
        action="append",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; repeatable",
    )
    parser.add_argument("--against", default="", metavar="COMMIT", help="compare with the records of that commit alone")
    parser.add_argument(
        "--record", action="store_true", help=f"add the ratios to {RATIOS.name}, for the commit at hand"
    )
    parser.add_argument("--dirty", action="store_true", help="record even what is not committed, marked with a +")
    options = parser.parse_args()
    options.commit = ""
    if options.record and options.quick:
        parser.error("--quick measures nothing that could be recorded")
    if options.record:
        try:
            options.commit = commit_of(RATIOS.parent, dirty=options.dirty)
        except RuntimeError as error:
            parser.error(str(error))
    options.only = options.only or list(BENCHMARKS)
    return options


if __name__ == "__main__":
    sys.exit(main())
