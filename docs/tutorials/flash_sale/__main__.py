"""The shop by one command: ``python docs/tutorials/flash_sale``."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

if not __package__:  # started as a folder, whose parent has the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from flash_sale.settings import Settings
from flash_sale.system import CannotStart, System

USAGE = 2

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def end_by_signal() -> None:
    """From now on SIGTERM and SIGHUP do what Ctrl-C does, and only the first of them counts: what is being ended in
    order is not to be interrupted."""
    told = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:  # as under nohup
            signal.signal(each, end)


def say(line: str) -> None:
    print(f"flash_sale: {line}", file=sys.stderr, flush=True)


@app.callback()
def _group() -> None:
    """A shop that sells a small stock to a crowd. Without a command it serves."""


@app.command()
def serve(
    database: Annotated[str, typer.Option(help="A URL for SQLAlchemy. A file of SQLite if not given.")] = "",
    redis: Annotated[str, typer.Option(help="A URL. A redis-server is started if not given.")] = "",
    stock: Annotated[int, typer.Option(min=1, help="Pieces there are.")] = 100,
    limit: Annotated[int, typer.Option(min=1, help="Pieces for a customer.")] = 2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer the customers.")] = 3,
) -> None:
    """Starts the shop, prints its address as the first line, and runs until Ctrl-C or SIGTERM; then the status is 0.

    An old sale in the database is dropped. If the shop cannot start, the status is 2.
    """
    end_by_signal()
    try:
        with tempfile.TemporaryDirectory(prefix="flash-sale-") as folder:
            settings = Settings(database=database, redis=redis, services="", folder=folder, stock=stock, limit=limit)
            say("the processes are started, which takes some seconds")
            with System(settings, port=port, shop_workers=workers, tell=say) as system:
                print(system.url, flush=True)
                say("it runs until Ctrl-C")
                system.wait()
    except CannotStart as error:
        say(str(error))
        raise typer.Exit(USAGE) from None
    except KeyboardInterrupt:
        say("it has ended")


def main() -> None:
    words = sys.argv[1:]
    app(words if words and (words[0] == "--help" or not words[0].startswith("-")) else ["serve", *words])


if __name__ == "__main__":
    main()
