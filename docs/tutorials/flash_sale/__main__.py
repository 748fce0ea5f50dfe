"""The shop by one command: ``python docs/tutorials/flash_sale``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

if not __package__:  # started as a folder, whose parent has the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from flash_sale.running.console import ending_in_order, say
from flash_sale.running.system import System
from flash_sale.settings import Settings
from flash_sale.trial.commands import load, throughput

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(load)
app.command()(throughput)


@app.callback()
def _group() -> None:
    """A shop that sells a small stock to a crowd. Without a command it serves."""


@app.command()
def serve(
    database: Annotated[str, typer.Option(help="A URL for SQLAlchemy. A file of SQLite if not given.")] = "",
    redis: Annotated[str, typer.Option(help="A URL, of one sale at a time. Its own server if not given.")] = "",
    stock: Annotated[int, typer.Option(min=1, help="Pieces there are.")] = 100,
    limit: Annotated[int, typer.Option(min=1, help="Pieces for a customer.")] = 2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer the customers.")] = 3,
) -> None:
    """Starts the shop, prints its address as the first line, and runs until Ctrl-C or SIGTERM; then the status is 0.

    The database has to be a new one. If the shop cannot start, the status is 2.
    """
    with ending_in_order(interrupted=0), tempfile.TemporaryDirectory(prefix="flash-sale-") as folder:
        settings = Settings(database=database, redis=redis, services="", folder=folder, stock=stock, limit=limit)
        say("the processes are started, which takes some seconds")
        with System(settings, port=port, shop_workers=workers, tell=say) as system:
            print(system.url, flush=True)
            say("it runs until Ctrl-C")
            system.wait()


def main() -> None:
    words = sys.argv[1:]
    app(words if words and (words[0] == "--help" or not words[0].startswith("-")) else ["serve", *words])


if __name__ == "__main__":
    main()
