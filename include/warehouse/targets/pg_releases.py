"""What targets with a PostgreSQL server share: connections, the lock of a warehouse, the list of its releases.

The list is the table NAME.releases; one transaction on it publishes or rolls back.
"""

import contextlib
import logging
import os
import socket
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC
from functools import cache
from typing import Literal

import duckdb
import psycopg
from psycopg import sql as pg
from psycopg.conninfo import make_conninfo

from include.duckdb_session import open_duckdb
from include.provenance import Provenance
from include.settings import warehouse_name
from include.warehouse import locks
from include.warehouse.errors import WarehouseError, first_line
from include.warehouse.targets.base import Check, Release, Target, find, find_waiting, nothing

logger = logging.getLogger(__name__)

_LOCK = 0x1A4E  # our class of advisory locks; the object is the warehouse

_SCHEMA = """
create schema if not exists {readers};
create table if not exists {readers}.releases (
    release_id text primary key, -- named snapshot_id where an older version made the table
    run_id text not null,
    version bigint not null,
    created_at timestamptz not null,
    size_bytes bigint not null,
    published boolean not null,
    provenance text -- last, where an older version made the table
);
-- Only if it is missing: this waits for all readers, and new ones wait for it.
do $$ begin
    if not exists (
        select from pg_attribute
        where attrelid = to_regclass(format('%I.releases', {readers_text})) and attname = 'provenance'
    ) then
        alter table {readers}.releases add column provenance text;
    end if;
end $$;
create table if not exists {readers}.waiting (like {readers}.releases);
create unique index if not exists only_one_published on {readers}.releases (published) where published;
"""


class _UnreachableError(WarehouseError):
    """The server does not answer."""

    retryable = True
    runbook = "The warehouse's PostgreSQL cannot be reached"


def unreachable(error: Exception) -> WarehouseError:
    """Wrap a connection error, keeping the server's message."""
    return _UnreachableError(f"The warehouse's PostgreSQL cannot be reached: {' '.join(str(error).split())}")


def reader_role() -> str:
    """Return the role that each publish lets read what is published, if it exists."""
    return f"{warehouse_name()}_reader"


@contextlib.contextmanager
def connect(conninfo: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection]:
    """Connect to the server; the connection's transaction is committed at the end.

    Args:
        conninfo: a libpq connection string.
        autocommit: for statements that cannot run in a transaction.

    Raises:
        WarehouseError: it cannot be reached, or a statement failed.
    """
    try:
        with psycopg.connect(_signed(conninfo), autocommit=autocommit) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    except psycopg.Error as error:
        raise WarehouseError(f"The warehouse's PostgreSQL: {first_line(error)}") from error


@contextlib.contextmanager
def exclusively(conninfo: str, timeout_seconds: float | None = None) -> Iterator[None]:
    """Hold the warehouse's advisory lock, which Postgres releases when this process or its connection ends.

    Args:
        conninfo: a libpq connection string.
        timeout_seconds: how long to wait; default `WAREHOUSE_LOCK_TIMEOUT`, else 60.

    Raises:
        WarehouseLockedError: the lock was still held at the timeout; names the holder.
        WarehouseError: the server cannot be reached.
    """
    try:
        holder = psycopg.connect(_signed(conninfo), autocommit=True)
    except psycopg.OperationalError as error:
        raise unreachable(error) from error

    def attempt() -> None:
        key = (_LOCK, warehouse_name())
        row = holder.execute("select pg_try_advisory_lock(%s, hashtext(%s))", key).fetchone()
        if not (row and row[0]):
            found = holder.execute(
                "select application_name, client_addr from pg_locks join pg_stat_activity using (pid)"
                " where locktype = 'advisory' and granted and classid = %s"
                " and objid = (hashtext(%s)::bigint & 4294967295)::oid and database = (select oid from pg_database"
                " where datname = current_database())",
                key,
            ).fetchone()
            raise locks.LockHeldError(f"{found[0]} ({found[1] or 'local'})" if found else "another process")

    with contextlib.closing(holder):
        advice = "A load, publish, rollback or restore is in progress: let it finish or stop it, then clear the task."
        locks.wait_for_lock(attempt, f"The warehouse {warehouse_name()}", timeout_seconds, advice)
        yield


def _signed(conninfo: str) -> str:
    return make_conninfo(conninfo, application_name=f"{socket.gethostname()} PID {os.getpid()}", connect_timeout=10)


def releases(connection: psycopg.Connection, table: Literal["releases", "waiting"] = "releases") -> list[Release]:
    """Return the kept releases, or the one that waits for a person, newest first; `location` is the version."""
    query = pg.SQL("select * from {readers}.{table} order by created_at desc, version desc")
    try:
        with connection.transaction():
            rows = connection.execute(query.format(table=pg.Identifier(table), **names())).fetchall()
    except psycopg.errors.UndefinedTable:  # before the first publish, or the first one of this version
        return []
    return [
        Release(
            id=row[0],
            run_id=row[1],
            location=str(row[2]),
            created_at=row[3].astimezone(UTC),
            size_bytes=row[4],
            published=row[5],
            made_by=Provenance.from_json(row[6] if len(row) > 6 else None),
        )
        for row in rows
    ]


def record(connection: psycopg.Connection, new: Release) -> None:
    """Add a release, or replace the one with its id, and make it the published one; in the caller's transaction."""
    connection.execute(pg.SQL(_SCHEMA).format(**names()))
    connection.execute(pg.SQL("delete from {readers}.waiting").format(**names()))
    _mark_none(connection)
    connection.execute(
        pg.SQL(
            "insert into {readers}.releases values (%s, %s, %s, %s, %s, true, %s)"
            " on conflict on constraint releases_pkey do update set run_id = excluded.run_id,"
            " version = excluded.version,"
            " created_at = excluded.created_at, size_bytes = excluded.size_bytes, published = true,"
            " provenance = excluded.provenance"
        ).format(**names()),
        [new.id, new.run_id, int(new.location), new.created_at, new.size_bytes, new.made_by.to_json()],
    )


def record_waiting(connection: psycopg.Connection, new: Release) -> None:
    """Make a release the one that waits for a person; in the caller's transaction."""
    connection.execute(pg.SQL(_SCHEMA).format(**names()))
    connection.execute(pg.SQL("delete from {readers}.waiting").format(**names()))
    connection.execute(
        pg.SQL("insert into {readers}.waiting values (%s, %s, %s, %s, %s, false, %s)").format(**names()),
        [new.id, new.run_id, int(new.location), new.created_at, new.size_bytes, new.made_by.to_json()],
    )


def _mark_none(connection: psycopg.Connection) -> None:
    connection.execute(pg.SQL("update {readers}.releases set published = false where published").format(**names()))


def needed(connection: psycopg.Connection) -> list[Release]:
    """Return the kept releases, and the one that waits."""
    return [*releases(connection), *releases(connection, "waiting")]


def forget_old(connection: psycopg.Connection, keep: int) -> None:
    """Remove the releases beyond the newest ones from the list, but not the published one."""
    for old in releases(connection)[keep:]:
        if not old.published:
            delete = pg.SQL("delete from {readers}.releases where version = %s").format(**names())
            connection.execute(delete, [int(old.location)])


@cache
def install_extensions(target: str, *names: str) -> None:
    """Install DuckDB's extensions from their packages, once per process; nothing is downloaded.

    Args:
        target: whose lock file has them, for the message.
        names: of the extensions.

    Raises:
        WarehouseError: a package is missing; says how to install it.
    """
    import duckdb_extensions  # lazily: the extensions are in lock files of their own

    with open_duckdb() as connection:
        for name in names:
            try:
                duckdb_extensions.import_extension(name, con=connection)
            except ImportError as error:
                raise WarehouseError(
                    f"DBT_TARGET={target} needs DuckDB's extension {name}: make setup-{target} ({error})"
                ) from error


def attach(connection: duckdb.DuckDBPyConnection, statements: Iterable[str]) -> None:
    """Attach a database by its target's statements, and make it the default catalog.

    Raises:
        WarehouseError: the server cannot be reached.
        duckdb.Error: any other error.
    """
    try:
        for statement in statements:
            connection.execute(statement)
    except duckdb.Error as error:
        if "connect to Postgres" in str(error):
            raise unreachable(error) from error
        raise
    connection.execute(f"use {warehouse_name()}")


def names() -> dict[str, pg.Composable]:
    """Return the warehouse's names, quoted for SQL."""
    readers, working, role = warehouse_name(), f"{warehouse_name()}_working", reader_role()
    return {
        "readers": pg.Identifier(readers),
        "readers_text": pg.Literal(readers),
        "working": pg.Identifier(working),
        "working_text": pg.Literal(working),
        "role": pg.Identifier(role),
        "role_text": pg.Literal(role),
    }


class ListedReleases(Target):
    """A target whose releases are listed in PostgreSQL; several writers at a time.

    `postgres_query` runs any SQL on the server, whatever DuckDB's settings: so it cannot be sandboxed.
    """

    @abstractmethod
    def server(self) -> str:
        """Return how to connect to the list: a libpq connection string.

        Raises:
            WarehouseError: a setting is missing.
        """

    @abstractmethod
    def verify(self, release: Release, check: Check = nothing) -> None:
        """Check a release in a connection of its own: its tables can be read, and pass the check.

        Raises:
            PublishError: it cannot be read.
            NotReadyError: it has no marts; or raised by `check`.
        """

    def list_releases(self) -> list[Release]:
        with connect(self.server()) as connection:
            return releases(connection)

    def find_or_published(self, release_or_run_id: str | None) -> Release | None:
        """Return a kept release; without an id the published one, or None before the first publish.

        Raises:
            UnknownReleaseError: there is none with this id.
        """
        if release_or_run_id:
            return find(self.list_releases(), release_or_run_id, self.published_location())
        return self.published_release()

    def rollback(self, release_or_run_id: str) -> Release:
        with exclusively(self.server()):
            found = find(self.list_releases(), release_or_run_id, self.published_location())
            self.verify(found)
            with connect(self.server()) as connection:
                _mark_none(connection)
                statement = pg.SQL("update {readers}.releases set published = true where version = %s")
                connection.execute(statement.format(**names()), [int(found.location)])
        logger.info("Rolled back to %s", found.id)
        return replace(found, published=True)

    def waiting_release(self) -> Release | None:
        with connect(self.server()) as connection:
            return next(iter(releases(connection, "waiting")), None)

    def approve(self, release_or_run_id: str) -> Release:
        with exclusively(self.server()):
            found = find_waiting(self.waiting_release(), release_or_run_id)
            self.verify(found)
            with connect(self.server()) as connection:
                record(connection, found)
        logger.info("Approved %s", found.id)
        return replace(found, published=True)

    def refuse(self, release_or_run_id: str) -> Release:
        # What only it needs is removed by the next publish.
        with exclusively(self.server()):
            found = find_waiting(self.waiting_release(), release_or_run_id)
            with connect(self.server()) as connection:
                connection.execute(pg.SQL("delete from {readers}.waiting").format(**names()))
        logger.info("Refused %s", found.id)
        return found
