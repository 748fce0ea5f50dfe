"""``distlock torture``: processes contend for locks of a store while they, and it, are hurt; and what that proves."""

from __future__ import annotations

import importlib
import json
import math
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from distlock import ConfigurationError, Fault

from .._open import without_secrets
from ._app import INTERRUPTED, NOTHING_DONE, AsJson, Debug, app, say

# The kit itself is imported when it is used: no other command has to wait for it.
if TYPE_CHECKING:
    from distlock.testing.torture import Hurt, Plan, Verdict

__all__ = ("torture",)

COLOURS = "sync,asyncio,trio"
DEFAULT_WORKERS = 3
WIDE = 120
"""Columns of a table that is not for a terminal."""

HELP = """Prove the locks of a store: processes contend for them, a nemesis hurts them, and a checker judges.

Workers, of sync code, asyncio and trio, are killed, stopped, forked, cancelled and starved; before a store of one
address a proxy drops, holds and cuts what passes; servers are stopped if you name them, and what else can happen to
them is yours to say, as commands. Every critical section writes to a register that refuses stale tokens.

The exit status is 0 if all was well, or excused by what the store says it cannot promise; 1 if anything was not."""

EPILOG = """Examples:

`distlock torture redis://localhost:6379/0`

`distlock torture redis://localhost:6379/0 --pid "$(pidof redis-server)" --for 60 --timeline torture.html`

`distlock torture etcd://localhost:2379 --faults kill,SIGSTOP --seed 42 --json`

`distlock torture redis+sentinel://host/m --hook 'failover=redis-cli -p 26379 sentinel failover m' --excuse FAILOVER`"""


@app.command(help=HELP, epilog=EPILOG)
def torture(
    url: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on 3.10 too
        typer.Argument(metavar="[URL]", envvar="DISTLOCK_URL", help="The store; files in a temporary folder if none."),
    ] = None,
    seconds: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--for", min=0, help="Seconds that the nemesis is at work. One round of all faults if not given."),
    ] = None,
    seed: Annotated[Optional[int], typer.Option(help="The one of a run that is to be repeated.")] = None,  # noqa: UP045
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=64, help="How many processes. 3, or 1 if the store is this process, if not given."),
    ] = None,
    actors: Annotated[int, typer.Option(min=1, max=1000, help="How many threads or tasks of each.")] = 4,
    colours: Annotated[str, typer.Option(metavar="COLOUR,..", help="What the workers are, in turn.")] = COLOURS,
    keys: Annotated[int, typer.Option(min=1, max=1000, help="How many locks.")] = 2,
    ttl: Annotated[float, typer.Option(min=0.1, help="Seconds a lease lasts.")] = 2.0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for a lock.")] = 10.0,
    overlong: Annotated[
        float, typer.Option(min=0, max=1, help="The share of critical sections that outlast their lease.")
    ] = 0.05,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that this machine may be late.")] = 2.0,
    faults: Annotated[
        str, typer.Option(metavar="all|none|NAME,..", help="Those that have one of these in their names.")
    ] = "all",
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Name the faults, and do nothing else.")] = False,
    proxy: Annotated[bool, typer.Option(help="Hurt the network too, by a proxy before a store of one address.")] = True,
    pid: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(metavar="PID", help="A server process, to be stopped and continued. May be repeated."),
    ] = None,
    hook: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="'NAME=BEGIN;;END'", help="A fault of your own: two commands. May be repeated."),
    ] = None,
    excuse: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="FAULT", help="What --pid and --hook are cases of, as EMPTY_RESTART. May be repeated."),
    ] = None,
    as_json: AsJson = False,
    timeline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", dir_okay=False, help="Write a page that shows who held what when."),
    ] = None,
    logs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", file_okay=False, help="Keep the logs there. Else only if anything was wrong."),
    ] = None,
    debug: Debug = False,
) -> None:
    from distlock.testing.torture import CLIENT_FAULTS, Plan

    for number in (signal.SIGTERM, signal.SIGHUP):  # what was begun is ended and judged, as by Ctrl-C
        signal.signal(number, signal.default_int_handler)
    if not all(math.isfinite(value) for value in (ttl, timeout, grace, seconds or 0.0)):
        raise ValueError("--for, --ttl, --timeout and --grace are finite numbers of seconds")
    own = _own_faults(pid or (), hook or (), excuse or ())
    with _store(url, proxy) as (direct, url, network):
        hurts = _chosen([*CLIENT_FAULTS, *network, *own], faults)
        if list_faults:
            print("\n".join(hurt.name for hurt in hurts))
            return
        plan = Plan(
            url,
            seed=random.SystemRandom().randrange(1_000_000) if seed is None else seed,
            colours=_colours(colours),
            actors=actors,
            keys=keys,
            ttl=ttl,
            timeout=timeout,
            overlong=overlong,
            grace=grace,
        )
        more = {"--faults": [faults], "--pid": pid, "--hook": hook, "--excuse": excuse}
        said = [word for name, values in more.items() for value in values or () for word in (name, str(value))]
        said += [] if proxy else ["--no-proxy"]
        _prove(plan, workers, seconds, hurts, _Wishes(direct, tuple(said), as_json, timeline, logs))


@dataclass(frozen=True)
class _Wishes:
    """Where all that is found is to go, and how to call what was done."""

    url: str
    """Of the store itself."""
    said: tuple[str, ...]
    """Options that the plan does not know."""
    as_json: bool
    timeline: Path | None
    logs: Path | None

    @property
    def address(self) -> str:
        """The URL without secrets."""
        return without_secrets(self.url)


def _prove(plan: Plan, workers: int | None, seconds: float | None, hurts: Sequence[Hurt], wishes: _Wishes) -> None:
    """Runs it, and says what came of it. Ends by an exit status unless all was well."""
    from distlock.testing.torture import torture
    from distlock.testing.torture._nemesis import a_round
    from distlock.testing.torture._run import guarantees_of

    guarantees = guarantees_of(replace(plan, url=wishes.url))  # an error is to name the store, not the proxy
    if wishes.timeline is not None:
        wishes.timeline.touch()  # if it cannot be written, now is the time to say so
    alone = guarantees.scope == "process"
    plan = replace(plan, workers=workers or (1 if alone else DEFAULT_WORKERS))
    unfit = [hurt.name for hurt in hurts if not hurt.fits(plan, guarantees)]
    if unfit:
        say(f"left out, as nothing would come of it here: {', '.join(unfit)}")
    hurts = [hurt for hurt in hurts if hurt.name not in unfit]
    plan = replace(plan, seconds=a_round(plan, hurts) if seconds is None else seconds)
    with _folder(wishes.logs) as folder:
        with _progress(plan) as heard:
            verdict = torture(plan, folder, hurts, tell=heard)
        _show(verdict, folder, wishes)
    missed = sorted({hurt.name for hurt in hurts} - set(verdict.figures.faults))
    if missed and not heard.interrupted:
        enough = math.ceil(a_round(plan, hurts))
        say(f"no time was left for: {', '.join(missed)}; --for {enough} or more is enough for all")
    if wishes.logs is None and verdict.ok:
        shutil.rmtree(folder)
    else:
        say(f"the logs are in {folder}")
    if not verdict.ok:
        raise typer.Exit(NOTHING_DONE)
    if heard.interrupted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    """Where the logs are. If the run breaks off, it says so, or nothing is left."""
    folder = wanted or Path(tempfile.mkdtemp(prefix="distlock-torture-"))
    try:
        yield folder
    except BaseException:
        if next(folder.glob("*.jsonl"), None) is not None:
            say(f"the logs are in {folder}")
        elif wanted is None:
            shutil.rmtree(folder)
        raise


@contextmanager
def _store(url: str | None, proxy: bool) -> Iterator[tuple[str, str, Sequence[Hurt]]]:
    """Its URL, the one that workers use, and what can happen on the way to it."""
    from distlock.testing.torture._proxy_faults import proxied, proxy_faults

    with ExitStack() as stack:
        if not url:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="distlock-torture-"))
            url = Path(folder).resolve().as_uri()
        direct = url
        network: Sequence[Hurt] = ()
        if proxy:
            with suppress(ConfigurationError):  # it has several addresses, or none, or its traffic is encrypted
                url, between = proxied(url)
                stack.callback(between.close)
                network = proxy_faults(between)
        yield direct, url, network


def _own_faults(pids: Sequence[int], hooks: Sequence[str], excuses: Sequence[str]) -> list[Hurt]:
    from distlock.testing.torture._own_faults import hook, stop_of

    known = [fault.name for fault in Fault]
    for name in excuses:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint="--excuse")
    excused = frozenset(Fault[name] for name in excuses)
    hurts = [stop_of(pid, excused) for pid in pids]
    for text in hooks:
        name, _, commands = text.partition("=")
        begin, _, end = commands.partition(";;")
        if not name.strip() or not begin.strip():
            raise typer.BadParameter(f"{text!r} is not NAME=BEGIN;;END", param_hint="--hook")
        hurts.append(hook(name.strip(), begin.strip(), end.strip() or ":", excused))
    return hurts


def _chosen(hurts: Sequence[Hurt], wanted: str) -> list[Hurt]:
    if wanted in ("all", "none"):
        return list(hurts) if wanted == "all" else []
    words = [word.strip().lower() for word in wanted.split(",") if word.strip()]
    for word in words:
        if not any(word in hurt.name.lower() for hurt in hurts):
            raise typer.BadParameter(f"no fault has {word!r} in its name; see --list-faults", param_hint="--faults")
    return [hurt for hurt in hurts if any(word in hurt.name.lower() for word in words)]


def _colours(text: str) -> tuple[str, ...]:
    colours = tuple(text.split(","))
    wrong = [colour for colour in colours if colour not in COLOURS.split(",")]
    if wrong:
        raise typer.BadParameter(f"{wrong[0]!r} is none of {COLOURS}", param_hint="--colours")
    if "trio" in colours:
        try:
            importlib.import_module("trio")
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"{error.name} is not installed; run: pip install 'pydistlock[testing]', or give --colours sync,asyncio"
            ) from error
    return colours


class _Heard:
    """What the run has told, on the terminal, if there is one."""

    def __init__(self, plan: Plan, status: Status | None) -> None:
        self.interrupted = False
        self._plan, self._status = plan, status
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        self.interrupted |= text == "interrupted"
        if self._status is not None:
            t = time.monotonic() - self._began
            self._status.update(Text(f"{t:.0f} s of about {self._plan.seconds + 2 * self._plan.ttl:.0f}  {text}"))


@contextmanager
def _progress(plan: Plan) -> Iterator[_Heard]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Heard(plan, None)
        return
    with console.status("") as status:
        yield _Heard(plan, status)


def _show(verdict: Verdict, folder: Path, wishes: _Wishes) -> None:
    from distlock.testing.torture import read_logs
    from distlock.testing.torture._report import as_json, repeat, table
    from distlock.testing.torture._timeline import timeline

    if wishes.timeline is not None:
        title = f"{wishes.address}, seed {verdict.plan.seed}"
        wishes.timeline.write_text(timeline(read_logs(folder), verdict, title), encoding="utf-8")
    verdict = replace(verdict, plan=replace(verdict.plan, url=wishes.address))  # not that of the proxy
    again = f"{repeat(verdict.plan)} {shlex.join(wishes.said)}"
    if wishes.as_json:
        print(json.dumps(as_json(verdict, again)))
    else:
        Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table(verdict, again), crop=False)
