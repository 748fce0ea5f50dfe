"""``python -m benchmarks.peers``: every contender over every store it has, in turns; prints two tables."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

from .._machine import awake, description
from .._measure import Pace
from .._plots import plot_folder
from .._progress import progress
from .._stores import STORES
from ._driver import Failed
from ._environments import python_of
from ._measured import Results, measure
from ._peer import WORKLOADS, Peer, peers
from ._plots import plot
from ._tables import figures, guarantees


def main() -> int:
    """The exit code: 0 unless something could not be measured."""
    contenders = peers()
    options = _options(contenders)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    if options.guarantees:
        print(guarantees(contenders.values()))
        return 0
    chosen = _chosen(contenders, options.only)
    results = Results(conditions=description())
    stopped = False
    try:
        _measure(chosen, options.workload or WORKLOADS, results, options.quick)
    except KeyboardInterrupt:
        stopped = True
    if options.json:
        claims = {peer.name: asdict(peer.guarantees) for peer in chosen.values() if peer.guarantees}
        print(json.dumps({**asdict(results), "guarantees": claims}, indent=1, ensure_ascii=False))
    else:
        print(figures(results), guarantees(chosen.values()), sep="\n\n")
    if options.plot:
        print("drawn:", *plot(results, options.plot), file=sys.stderr)
    for what, why in results.failures.items():
        print(f"{what}: {why}", file=sys.stderr)
    if stopped:
        print("stopped: this is what was done until then", file=sys.stderr)
        return 130
    return 1 if results.failures else 0


def _options(contenders: Mapping[str, Peer]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="See docs/benchmarks.md.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", type=plot_folder, metavar="FOLDER", help="draw them, too, as SVG; needs matplotlib")
    parser.add_argument("--quick", action="store_true", help="only see that all of it runs: the figures say nothing")
    parser.add_argument("--guarantees", action="store_true", help="only print what each of them guarantees")
    names = [name for name, peer in contenders.items() if peer.guarantees]
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="PEER",
        help=f"beside distlock and the floors; one of {', '.join(names)}; repeatable",
    )
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only that; repeatable")
    return parser.parse_args()


def _chosen(contenders: Mapping[str, Peer], only: list[str] | None) -> dict[str, Peer]:
    """Those that are asked for, and what their figures are ratios to."""
    if not only:
        return dict(contenders)
    asked = [contenders[name] for name in only]
    stores, colours = ({store for peer in asked for store in peer.stores}, {peer.colour for peer in asked})
    always = {"raw", "raw_queue", *(f"distlock_{colour}" for colour in colours)}
    return {
        name: peer
        for name, peer in contenders.items()
        if name in only or (name in always and stores.intersection(peer.stores))
    }


def _measure(chosen: Mapping[str, Peer], workloads: Sequence[str], results: Results, quick: bool) -> None:
    ready: dict[str, Peer] = {}
    pythons: dict[str, str] = {}
    named = {name: peer for name, peer in chosen.items() if peer.guarantees and not name.startswith("distlock_")}
    wanted = {store for peer in (named or chosen).values() for store in peer.stores}
    stores = [store for store in STORES if store in wanted]
    with progress(len(stores) * len(workloads)) as tell:
        for name, peer in chosen.items():
            tell(f"{peer.name}: environment", False)
            try:
                pythons[name] = python_of(peer)
                ready[name] = peer
            except Failed as why:
                results.failures[f"{peer.name}, its environment"] = str(why)
        with awake():
            for store in stores:
                for workload in workloads:
                    tick = partial(tell, f"{store}, {workload}", False)
                    measure(store, workload, ready, pythons, Pace(tick, quick), results)
                    tell(f"{store}, {workload}", True)


if __name__ == "__main__":
    sys.exit(main())
