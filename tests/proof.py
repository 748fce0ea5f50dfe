"""Every backend against every fault: ``python -m tests.proof``, and what came of it in one table.

Each combination is a run of its own, in which that one fault strikes again and again. What cannot happen to a backend
is a dash, and why stands below. The exit status is 1 if anything was wrong that the backend does not except,
and 2 if there was nothing to be done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distlock.testing.torture import CLIENT_FAULTS, Hurt, Plan, Verdict, torture
from distlock.testing.torture._report import as_json
from distlock.testing.torture._run import guarantees_of

from .arenas import ARENAS, Ground, why_not
from .wires import IS_WIRED, go_there, redis_behind_a_wire

__all__ = ("main", "plan_of")

PEERS = {
    "redis-py": ("redis", "RedisPy", ("sync", "asyncio")),
    "python-redis-lock": ("redis", "PythonRedisLock", ("sync",)),
    "kazoo": ("zookeeper", "Kazoo", ("sync",)),
}
"""Locks of other libraries, by the adapters of ``benchmarks.torture_peers``: their store, adapter and colours."""
MIXED = "all of them"
"""The run in which every fault has its turn."""
CROWD = "a thousand waiters"
"""The run in which nothing is wrong but that there are so many."""
NOTHING = "it has nothing that this could hurt"
LINES = 12
"""Of the proof of a finding, for people."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one backend and one fault."""

    backend: str
    fault: str
    verdict: Verdict
    folder: str

    def text(self) -> str:
        """For the table."""
        found = self.verdict.findings
        wrong, excused = (sum(bool(each.excused) is is_excused for each in found) for is_excused in (False, True))
        figures = self.verdict.figures
        words = [f"[red]✗ {wrong}[/]" if wrong else "[green]✓[/]", f"{figures.grants}"]
        if excused:
            words.append(f"[yellow]{excused} excused[/]")
        return " ".join(words)

    def data(self) -> dict[str, Any]:
        """For programs."""
        which = "peer" if self.backend in PEERS else "backend"
        again = f"python -m tests.proof --{which} {self.backend} --fault '{self.fault}' --seed {self.verdict.plan.seed}"
        again += f" --seconds {self.verdict.plan.seconds:g} --grace {self.verdict.plan.grace:g}"
        again += " --wired" if IS_WIRED else ""
        return {"backend": self.backend, "fault": self.fault, "folder": self.folder, **as_json(self.verdict, again)}


def plan_of(ground: Ground, *, seconds: float, seed: int, **more: Any) -> Plan:
    """A plan for a backend."""
    given = {"seconds": seconds, "seed": seed, "ttl": 1.0, "work": 0.2, "overlong": 0.05, "grace": 3.0}
    return Plan(ground.url, **{**given, **ground.plan, **more})


def _cells(args: argparse.Namespace, out: Path, tell: Any) -> Iterator[Cell]:
    for backend in args.backend:
        store, more = _store_of(backend)
        with (redis_behind_a_wire if args.wired else ARENAS[store])() as ground:
            usual = plan_of(ground, seconds=args.seconds, seed=args.seed, grace=args.grace, **more)
            for fault, run, plan in _runs(args, usual, ground.hurts):
                tell(f"{backend}: {fault}")
                folder = out / backend / fault.replace(" ", "-").replace(",", "")
                yield Cell(backend, fault, torture(plan, folder, run, left=ground.left), str(folder))


def _runs(args: argparse.Namespace, plan: Plan, hurts: Sequence[Hurt]) -> Iterator[tuple[str, Sequence[Hurt], Plan]]:
    """Those that were asked for, by name."""
    guarantees = guarantees_of(plan)
    known = hurts if args.wired else [*CLIENT_FAULTS, *hurts]
    fit = [hurt for hurt in known if hurt.fits(plan, guarantees)]
    for hurt in fit:
        if args.fault in hurt.name and args.fault != MIXED:
            yield hurt.name, [hurt], plan
    if args.fault in CROWD and not args.wired:
        yield CROWD, [], replace(plan, actors=-(-1000 // plan.workers), work=0.01, overlong=0.0)
    if args.fault in ("", MIXED):
        yield MIXED, fit, plan


def _store_of(backend: str) -> tuple[str, dict[str, Any]]:
    """Where it runs, and what else a plan for it says."""
    if backend not in PEERS:
        return backend, {}
    store, adapter, colours = PEERS[backend]
    return store, {"party": f"benchmarks.torture_peers:{adapter}", "colours": colours}


def _table(cells: Sequence[Cell], backends: Sequence[str]) -> Table:
    """Faults down, backends across."""
    found = {(cell.backend, cell.fault): cell for cell in cells}
    table = Table(title="grants under each fault, and what was wrong", caption="– cannot happen: see below")
    table.add_column("fault")
    for backend in backends:
        table.add_column(backend)
    for fault in dict.fromkeys(cell.fault for cell in cells):
        row = [found.get((backend, fault)) for backend in backends]
        table.add_row(fault, *(cell.text() if cell else "[dim]–[/]" for cell in row))
    return table


def _reasons(cells: Sequence[Cell], backends: Sequence[str]) -> Iterator[str]:
    """What the dashes mean."""
    there = {(cell.backend, cell.fault) for cell in cells}
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for fault in dict.fromkeys(cell.fault for cell in cells):
        for backend in backends:
            if (backend, fault) not in there:
                found[backend, why_not(_store_of(backend)[0], fault) or NOTHING].append(fault)
    for (backend, reason), faults in found.items():
        yield f"{backend}: {reason}: {'; '.join(faults)}"


def _findings(cell: Cell) -> Iterator[str]:
    """Those that nothing excuses, with the lines that prove them."""
    for each in cell.verdict.findings:
        if each.excused is None:
            yield f"{cell.backend}, {cell.fault}: {each.kind.name}: {each.text}"
            yield from (f"    {event.text()}" for event in each.proof[:LINES])


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    yield Path(tempfile.mkdtemp(prefix="distlock-proof-"))  # kept: it holds what proves a finding


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("--backend", action="append", choices=list(ARENAS), help="this one only; may be repeated")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="locks of another library, beside those")
    parser.add_argument("--fault", default="", help=f"those whose names have this in them; {MIXED!r} is one, too")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each combination")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grace", type=float, default=3.0, help="seconds that this machine may be late")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--out", type=Path, help="where the logs go")
    parser.add_argument("--wired", action="store_true", help="Redis behind a network that is cut by the kernel")
    args = parser.parse_args(argv)
    args.backend = ["redis"] if args.wired else [*(args.backend or ()), *(args.peer or ())] or list(ARENAS)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    args = _arguments(argv)
    if args.wired and not IS_WIRED:
        return go_there(sys.argv[1:] if argv is None else argv)
    said, seen = Console(stderr=True), Console()
    cells = []
    with _folder(args.out) as out:
        for cell in _cells(args, out, said.print):
            cells.append(cell)
            for line in _findings(cell):
                said.print(line, markup=False, highlight=False, soft_wrap=True)
    if not cells:
        said.print(f"No fault that could happen has {args.fault!r} in its name.", markup=False)
        return 2
    if args.json:
        seen.print_json(data=[cell.data() for cell in cells])
    else:
        seen.print(_table(cells, args.backend))
        for line in _reasons(cells, args.backend):
            seen.print(f"– {line}", style="dim")
        seen.print(f"The logs are in {out}.")
    return 0 if all(cell.verdict.ok for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
