"""``distlock idempotency``: what is known of work that is done once, and to forget it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distlock import Manager
from distlock.idempotency import Operation

from ._app import NOTHING_DONE, USAGE, AsJson, Debug, Namespace, Url, app, printable, say, store
from ._shown import add_waiters, console, details, fields, line_by_line, moment, seconds, table_of, who

__all__ = ("forget", "idempotency", "ls", "show")

idempotency: typer.Typer = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Show what is known of work that is done once, and forget it.",
)
app.add_typer(idempotency, name="idempotency")


@idempotency.callback(invoke_without_command=True)
def _options(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(USAGE)


def _keys(context: typer.Context, incomplete: str) -> list[str]:
    """For completion, which must neither last nor complain."""
    try:
        with store(context.params.get("url"), context.params.get("namespace"), op_timeout=1.0) as locks:
            return [found.key for found in locks.results.list(incomplete)]
    except Exception:  # noqa: BLE001
        return []


Key = Annotated[
    str, typer.Argument(metavar="KEY", help="The key of the work.", show_default=False, autocompletion=_keys)
]


@idempotency.command(
    epilog="Examples:\n\n`distlock idempotency show pay:42`\n\n"
    "`distlock idempotency show pay:42 --result --json | jq .result`"
)
def show(
    key: Key,
    url: Url = None,
    namespace: Namespace = None,
    result: Annotated[bool, typer.Option("--result", help="The result too; it may be a secret.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show who is at a work or has done it, when, and what is kept of it.

    The exit status is 1 if nothing is known of it.
    """
    with store(url, namespace) as locks:
        found = locks.results.get(key)
        if as_json:
            print(json.dumps(None if found is None else _as_dict(found, result)))
        elif found is not None:
            console().print(_portrait(found, result))
        if found is None:
            raise _unknown(key, locks)


@idempotency.command(
    epilog="Examples:\n\n`distlock idempotency ls pay:`\n\n"
    "`distlock idempotency ls --json | jq -r '.[] | select(.state == \"failed\") | .key'`"
)
def ls(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only those whose keys start so.", show_default=False)
    ] = "",
    url: Url = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the work that is in progress, and that which is kept."""
    with store(url, namespace) as locks:
        listed = sorted(locks.results.list(prefix), key=lambda found: found.key)
    if as_json:
        print(json.dumps([_as_dict(found, False) for found in listed]))
    elif listed:
        console().print(_table(listed))
    else:
        print("nothing is known")


@idempotency.command(
    epilog="Examples:\n\n`distlock idempotency forget pay:42`\n\n`distlock idempotency forget pay:42 --yes`"
)
def forget(
    key: Key,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    namespace: Namespace = None,
    debug: Debug = False,
) -> None:
    """Delete what is kept of a work, which is shown before: the next request under its key is done again.

    What is in progress is left alone, and so is what came after it was shown.
    """
    with store(url, namespace) as locks:
        found = locks.results.get(key)
        if found is None:
            raise _unknown(key, locks)
        Console(stderr=True, highlight=False).print(_portrait(found, False))
        if found.state == "in progress":
            raise _left_alone(f"{key!r} is in progress", locks)
        if not yes and not typer.confirm("Forget it? Then the next request is done again.", err=True):
            raise typer.Exit(NOTHING_DONE)
        known = locks.results.get(key)
        if known is not None and (known.state, known.token) != (found.state, found.token):
            raise _left_alone(f"{key!r} is another work by now", locks)
        if known is None or not locks.results.forget(key):
            raise _unknown(key, locks)


def _left_alone(why: str, locks: Manager) -> typer.Exit:
    say(f"{why}, and is left alone [{locks.address}]")
    return typer.Exit(NOTHING_DONE)


def _unknown(key: str, locks: Manager) -> typer.Exit:
    say(f"nothing is known of {key!r} [{locks.address}]")
    return typer.Exit(NOTHING_DONE)


def _table(listed: Sequence[Operation]) -> Table:
    table = table_of(("key", "state", "by"), ("at", "ago", "took", "expires in", "bytes", "waiting"))
    for found in listed:
        row = (
            found.key,
            found.state,
            who(found.by),
            found.by.site,
            seconds(_ago(found)),
            seconds(found.took),
            seconds(found.expires_in),
            "" if found.outcome.payload is None else str(len(found.outcome.payload)),
            str(len(found.waiters)),
        )
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _portrait(found: Operation, with_result: bool) -> Table:
    """One work, line by line."""
    lines, add = line_by_line()
    known = [
        ("key", found.key),
        ("state", found.state),
        ("by", who(found.by)),
        *(each for each in details(found.by) if each != ("owner", "?")),  # of what is done no owner is kept
        ("began", None if found.began_at is None else f"{moment(found.began_at)}, {seconds(_ago(found))} ago"),
        ("took", None if found.state == "in progress" else seconds(found.took)),
        ("expires", None if found.expires_in is None else f"in {seconds(found.expires_in)}"),
        ("token", found.token),
        ("fingerprint", found.fingerprint),
        ("error", None if found.outcome.error is None else ": ".join(found.outcome.error.values())),
        ("result", _kept(found)),
    ]
    for name, value in known:
        if value is not None:
            add(name, value)
    if with_result and found.outcome.payload is not None:
        add("", _text(found.outcome.payload))
    add_waiters(add, found.waiters)
    return lines


def _kept(found: Operation) -> str | None:
    if found.outcome.payload is not None:
        return f"{len(found.outcome.payload)} bytes"
    return f"not kept: {found.outcome.problem}" if found.outcome.problem else None


def _ago(found: Operation) -> float | None:
    """Seconds since it began: by the clock of whoever did it, which may be another one."""
    return None if found.began_at is None else max(0.0, time.time() - found.began_at)


def _as_dict(found: Operation, with_result: bool) -> dict[str, Any]:
    """For JSON."""
    outcome = found.outcome
    shown: dict[str, Any] = {
        "key": found.key,
        "state": found.state,
        "by": fields(found.by),
        "began_at": found.began_at,
        "took": found.took,
        "expires_in": found.expires_in,
        "token": found.token,
        "fingerprint": found.fingerprint,
        "error": None if outcome.error is None else dict(outcome.error),
        "problem": outcome.problem or None,
        "result_bytes": None if outcome.payload is None else len(outcome.payload),
        "waiters": [fields(waiter) for waiter in found.waiters],
    }
    if with_result:
        shown["result"] = None if outcome.payload is None else _value(outcome.payload)
    return shown


def _value(payload: bytes) -> Any:
    """The result, if it is JSON, as results are unless a program has a serializer of its own."""
    try:
        return json.loads(payload)
    except ValueError:
        return _text(payload)


def _text(payload: bytes) -> str:
    return payload.decode(errors="backslashreplace")
