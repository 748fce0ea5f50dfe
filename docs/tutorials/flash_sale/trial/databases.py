"""A database for each sale."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError

from ..running.system import opening_database

__all__ = ("new_database",)


@contextmanager
def new_database(server: str) -> Iterator[str]:
    """The URL of a new one on the server of PostgreSQL that ``server`` is a URL of; it is dropped at the end.
    `CannotStart`: there is no such server.

    The same for no server: then each sale has a file of SQLite, in its folder.
    """
    if not server:
        yield server
        return
    name = f"flash_sale_{uuid.uuid4().hex}"
    with opening_database():
        if make_url(server).get_backend_name() != "postgresql":
            raise ValueError("each sale gets a new one: give a URL of PostgreSQL, or none for SQLite")
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with opening_database(), engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with suppress(OperationalError), engine.connect() as connection:  # the server is down
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        engine.dispose()
