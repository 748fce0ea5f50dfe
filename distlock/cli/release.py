"""``distlock release``: for the holder that is out of order."""

from __future__ import annotations

from typing import Annotated, Optional

import typer
from rich.console import Console

from distlock import ConfigurationError, Holder, Manager

from ._app import NOTHING_DONE, Debug, Key, Namespace, Url, app, say, store
from .look import portrait

__all__ = ("release",)


@app.command(
    epilog="Examples:\n\n`distlock release orders:42 --force`\n\n"
    "`distlock release orders:42 --force --yes --token 1795266658379240`"
)
def release(
    key: Key,
    force: Annotated[bool, typer.Option("--force", help="Needed, as the holder may still be at work.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    token: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only the lease that has this token. Whichever there is now if not given."),
    ] = None,
    url: Url = None,
    namespace: Namespace = None,
    debug: Debug = False,
) -> None:
    """End the lease of someone else, who is shown before, and no newer one.

    The holder learns it at its next renewal, a third of its ttl later at most, and goes on until then as if it held
    the lock. Nothing is needed after a crash: a lease ends by itself.
    """
    if not force:
        raise ConfigurationError("a lock is given up by its holder; to end its lease all the same, add --force")
    with store(url, namespace) as locks:
        holder = _holder(locks, key, token)
        if not yes and not typer.confirm("End this lease?", err=True):
            raise typer.Exit(NOTHING_DONE)
        if holder.token is None or not locks.force_release(key, token=holder.token):
            raise typer.Exit(NOTHING_DONE)
        left = locks.inspect(key).holder
        if left is not None and left.token == holder.token:  # where the store itself cannot take it away
            say("its holder has been told, and gives it up at its next renewal")


def _holder(locks: Manager, key: str, token: int | None) -> Holder:
    found = locks.inspect(key)
    if found.holder is None:
        say(f"nobody holds {key!r} [{locks.address}]")
        raise typer.Exit(NOTHING_DONE)
    Console(stderr=True, highlight=False).print(portrait(found))
    if found.holder.token is None:
        say(f"the value of {key!r} is none of distlock's, and is left alone [{locks.address}]")
        raise typer.Exit(NOTHING_DONE)
    if token not in (None, found.holder.token):
        say(f"the lease with the token {token} has ended already; the present one is left alone")
        raise typer.Exit(NOTHING_DONE)
    return found.holder
