"""The results for people, in Markdown so that they can go into the documentation as they are."""

from __future__ import annotations

from collections.abc import Iterable

from .._measure import Spread
from .._table import _figures as spread
from ._measured import Results
from ._peer import PROMISES, Guarantees, Peer

__all__ = ("figures", "guarantees")


def figures(results: Results) -> str:
    """All that was measured, why something was not, and under which conditions."""
    lines = [
        "| store | measured | contender | median (min–max) | ratio to the floor | ratio to distlock |",
        "|---|---|---|--:|--:|--:|",
    ]
    for each in results.figures:
        value = f"{spread(each.value)} {each.unit}".rstrip()
        ratios = f"{_ratio(each.to_floor)} | {_ratio(each.to_distlock)}"
        lines.append(f"| {each.store} | {each.figure} | {each.peer} | {value} | {ratios} |")
    lines.append("")
    lines += [f"- failed: {what}: {why}" for what, why in results.failures.items()]
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in results.conditions.items())])


def _ratio(ratio: Spread | None) -> str:
    return spread(ratio) if ratio else ""


def guarantees(peers: Iterable[Peer]) -> str:
    """What each of them promises, one line a library."""
    lines = ["| |" + "|".join(f" {promise} " for promise in PROMISES) + "|", "|---|" + "---|" * len(PROMISES)]
    told: set[Guarantees] = set()
    for peer in peers:
        if peer.guarantees is not None and peer.guarantees not in told:
            told.add(peer.guarantees)
            cells = " | ".join(str(claim) for claim in peer.guarantees.each())
            lines.append(f"| {_title(peer)} | {cells} |")
    return "\n".join(lines)


def _title(peer: Peer) -> str:
    """The library, and its version where it is pinned to one."""
    wanted = peer.name.removesuffix(", asyncio")
    names = {"redis-py": "redis", "etcd3": "cslab-etcd3"}
    versions = dict(pin.split("==") for pin in peer.pins.split())
    version = versions.get(names.get(wanted, wanted), "")
    return f"{wanted} {version}".rstrip()
