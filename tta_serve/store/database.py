"""A database, opened and brought to the newest schema."""

import json
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from tta_serve.exceptions import ConfigError

BUSY_S = 30  # how long a transaction on SQLite waits for others to finish writing
CONNECT_S = 10  # how long PostgreSQL may take to answer
_MIGRATION_LOCK = 0x747461  # of PostgreSQL's advisory locks; any number that others do not use
_FORMS = "store.url is sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"


class Database:
    """An SQLite file on a disk of this machine, or a PostgreSQL database.

    Its calls block and may come from any thread. SQLite is in WAL mode, so that readers and the one
    writer do not wait for each other, and syncs at every commit.
    """

    def __init__(self, url: str) -> None:
        """Open the database, make what is not there, and bring it to the newest schema.

        Raises:
            ConfigError: The database cannot be used.
        """
        parsed = _check_url(url)
        # PostgreSQL takes no NaN in JSON; SQLite is to take none either.
        strict = partial(json.dumps, allow_nan=False)
        self._engine = create_engine(
            parsed, pool_pre_ping=True, json_serializer=strict, connect_args=_timeout_of(parsed)
        )
        self._writing = self._engine.execution_options(writing=True)
        if self.is_sqlite:
            event.listen(self._engine, "connect", _on_connect)
            event.listen(self._engine, "begin", _on_begin)
        try:
            self._migrate()
        except (DBAPIError, CommandError) as error:
            self.close()
            shown = parsed.render_as_string(hide_password=True)
            raise ConfigError(f"the database {shown} cannot be used: {_cause(error)}") from None

    @property
    def is_sqlite(self) -> bool:
        """Whether it is an SQLite file, not a PostgreSQL database."""
        return self._engine.dialect.name == "sqlite"

    def read(self) -> AbstractContextManager[Connection]:
        """Begin a transaction that changes nothing.

        A statement sees the database as it was when the statement began.
        """
        return self._engine.connect()

    def write(self) -> AbstractContextManager[Connection]:
        """Begin a transaction, which the block's end commits and an exception rolls back."""
        return self._writing.begin()

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return INSERT in the database's own dialect, which has ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        """Bring the schema up to date, under a lock: every replica does so when it starts."""
        config = Config()
        config.set_main_option("script_location", "tta_serve.store:migrations")
        with self.write() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _check_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(f"this is no URL of a database; {_FORMS}") from None
    if parsed.drivername not in {"sqlite", "postgresql"}:
        raise ConfigError(f"there is no store on {parsed.drivername}; {_FORMS}")
    if parsed.drivername == "sqlite" and (parsed.database or ":memory:") == ":memory:":
        raise ConfigError(f"a database in memory would be lost at the end; {_FORMS}")
    if parsed.drivername == "postgresql" and find_spec("psycopg") is None:
        raise ConfigError("PostgreSQL needs a driver: pip install 'tta-serve[postgres]'")
    return parsed


def _timeout_of(url: URL) -> dict[str, int]:
    return {"timeout": BUSY_S} if url.drivername == "sqlite" else {"connect_timeout": CONNECT_S}


def _cause(error: DBAPIError | CommandError) -> str:
    if isinstance(error, CommandError):
        return f"a newer version of this program made it ({error})"
    return str(error.orig).strip()


def _on_connect(connection: Any, record: object) -> None:
    # Else sqlite3 begins transactions itself, and not all of them.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_begin(connection: Connection) -> None:
    """Take the lock of writers at once.

    A transaction that turned to writing only later would fail if another had written since it began
    to read.
    """
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
