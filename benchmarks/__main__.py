"""``python -m benchmarks``: runs them one after the other and prints one table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict

from ._measure import Report
from ._progress import progress
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
    for name in failed:
        print(f"{name} could not be run", file=sys.stderr)
    if stopped:
        print("stopped: this is what was done until then", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="See docs/benchmarks.md.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="only see that all of it runs: the figures say nothing")
    parser.add_argument(
        "--only",
        action="append",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; repeatable",
    )
    options = parser.parse_args()
    options.only = options.only or list(BENCHMARKS)
    return options


if __name__ == "__main__":
    sys.exit(main())
