"""The warehouse in PostgreSQL: tasks write one database, and each publish makes a copy of it, on the server.

    database PGDATABASE                 schema NAME: the list of the kept releases; the published one is marked
    database PGDATABASE_NAME            written by tasks
    database PGDATABASE_NAME-3          release 3: what the database above held when it was published

No warehouse has a hyphen in its name, so none can be taken for a release of another one.

Readers open the release that is marked, or the marts that `SERVE_URL` copies to a fixed place.

Settings: libpq's own variables: `PGHOST`, `PGUSER`, `PGDATABASE`, and `PGPASSWORD` or `PGPASSFILE`. The user may create
databases.
"""

import contextlib
import logging
import os
import time
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import duckdb
import psycopg
from psycopg import sql as pg
from psycopg.conninfo import make_conninfo

from include import sql
from include.settings import warehouse_name
from include.warehouse import builds, pg_releases
from include.warehouse import connection as tables
from include.warehouse.connection import columns_of, count_rows, spill_config
from include.warehouse.errors import NotReadyError, PublishError, WarehouseError, first_line
from include.warehouse.paths import release_id
from include.warehouse.pg_releases import begin_turn as begin_turn
from include.warehouse.pg_releases import end_turn as end_turn
from include.warehouse.target import MARTS_SCHEMA, Check, Release, keep_releases

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_NAME = 63
_SETTINGS = ("PGHOST", "PGUSER", "PGDATABASE")

# As DuckDB's extension creates tables.
_STORED = {
    "TINYINT": "SMALLINT",
    "UTINYINT": "BIGINT",
    "USMALLINT": "BIGINT",
    "UINTEGER": "BIGINT",
    "UBIGINT": "DECIMAL(20,0)",
    "TIMESTAMP_S": "TIMESTAMP",
    "TIMESTAMP_MS": "TIMESTAMP",
}

_GRANT = """
do $$
declare one record;
begin
    if exists (select from pg_roles where rolname = {role_text}) then
        execute format('grant connect on database %I to {role}', current_database());
        for one in select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema' loop
            execute format('grant usage on schema %I to {role}', one.nspname);
            execute format('grant select on all tables in schema %I to {role}', one.nspname);
        end loop;
    end if;
end $$
"""


def working_database() -> str:
    """Return the name of the database that tasks write."""
    return f"{os.environ['PGDATABASE']}_{warehouse_name()}"


def _server(database: str | None = None) -> str:
    """Return how to connect to a database, by default that of the list; the rest is in libpq's variables."""
    if missing := [name for name in _SETTINGS if not os.environ.get(name)]:
        raise WarehouseError(f"DBT_TARGET=postgres needs {', '.join(missing)}: libpq's variables (docs/scaling.md).")
    if len(working_database()) > _NAME - len("-restored"):
        raise WarehouseError(f"PostgreSQL's names have {_NAME} characters at most: choose a shorter PGDATABASE.")
    if os.environ.get("WAREHOUSE_ENCRYPTION_KEY"):
        raise WarehouseError("DBT_TARGET=postgres does not encrypt its files: unset WAREHOUSE_ENCRYPTION_KEY.")
    return make_conninfo(dbname=database or os.environ["PGDATABASE"])


def list_releases() -> list[Release]:
    """Return the kept releases, newest first; `location` is the number in the database's name."""
    with pg_releases.connect(_server()) as connection:
        return pg_releases.releases(connection)


def published_release() -> Release | None:
    """Return the published release, or None before the first publish."""
    return next((one for one in list_releases() if one.published), None)


def published_version() -> Hashable | None:
    """Return the identity of the published release; None before the first one."""
    found = published_release()
    return (found.id, found.location, found.created_at) if found else None


def published_location() -> str:
    """Return where readers find what is published, for messages."""
    return f"the releases of {working_database()} in PostgreSQL"


def can_be_sandboxed() -> bool:
    """Return False: `postgres_query` runs any SQL on the server, whatever DuckDB's settings."""
    return False


def how_to_open() -> str:
    """Return the command that opens what is published."""
    found = published_release()
    database = _release(found) if found else f"{working_database()}-N"
    return f"Open it with any PostgreSQL client (SERVE_URL copies the marts to a fixed place):\n  psql {database}"


def _release(release: Release) -> str:
    return f"{working_database()}-{int(release.location)}"


def attach_statements(release: Release | None = None, name: str | None = None) -> list[str]:
    """Return the SQL that attaches a kept release, by default the published one; see `target.Target`."""
    if release is None and (release := published_release()) is None:
        raise duckdb.CatalogException(f"Nothing is published in {published_location()}.")
    return _attach(_release(release), "read_only", name=name)


def _attach(database: str, *options: str, name: str | None = None) -> list[str]:
    pg_releases.install_extensions("postgres", "postgres_scanner")
    listed = ", ".join(["type postgres", "isolation_level 'read committed'", *options])
    target = f"attach {sql.literal(_server(database))} as {name or warehouse_name()} ({listed})"
    return ["load postgres_scanner", target]


@contextlib.contextmanager
def open_working(timeout_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database for writing, creating it if missing, and keep other loads and publishes out.

    dbt's tasks write beside each other and don't take this lock.

    Args:
        timeout_seconds: how long to wait for the lock; default `WAREHOUSE_LOCK_TIMEOUT`, else 60.

    Yields:
        A connection whose default catalog is the database.

    Raises:
        WarehouseLockedError: the lock was still held at the timeout; names the holder.
        WarehouseError: a setting is missing, or the server cannot be reached.
        duckdb.Error: any other error of DuckDB or PostgreSQL.
    """
    with pg_releases.exclusively(_server(), timeout_seconds), _open_working() as connection:
        yield connection


@contextlib.contextmanager
def _open_working() -> Iterator[duckdb.DuckDBPyConnection]:
    if not _exists(working_database()):
        _create(working_database(), "template1")
    with _opened(_attach(working_database())) as connection:
        connection.execute("create schema if not exists main")  # dbt's default one, as in DuckDB
        yield connection


@contextlib.contextmanager
def _opened(statements: list[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:", config=spill_config()) as connection:
        pg_releases.attach(connection, statements)
        yield connection


def replace_table(connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]) -> None:
    """Empty a table with these columns, so that the views on it stay; replace any other. See `target.Target`."""
    if columns_of(connection, schema, table) == [(name, stored_type(type_)) for name, type_ in columns.items()]:
        truncate = f"truncate {sql.identifier(schema, table)}"
        connection.execute(f"call postgres_execute({sql.literal(warehouse_name())}, {sql.literal(truncate)})")
    else:
        tables.replace_table(connection, schema, table, columns)


def stored_type(type_: str) -> str:
    """Return the type that holds all values of a DuckDB type; see `target.Target`."""
    return _STORED.get(type_.upper(), type_.upper())


def _exists(database: str) -> bool:
    with pg_releases.connect(_server()) as connection:
        return bool(connection.execute("select from pg_database where datname = %s", [database]).rowcount)


def _create(database: str, template: str) -> None:
    """Create a database as a copy of another one, which nobody may be connected to meanwhile."""
    new, old = pg.Identifier(database), pg.Identifier(template)
    with pg_releases.connect(_server(), autocommit=True) as server:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                server.execute(pg.SQL("create database {} template {}").format(new, old))
                break
            except psycopg.errors.ObjectInUse:
                if attempt == _ATTEMPTS:
                    raise
                server.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [template])
                time.sleep(0.2 * attempt)
        server.execute(pg.SQL("revoke connect on database {} from public").format(new))


def _drop(database: str) -> None:
    with pg_releases.connect(_server(), autocommit=True) as server:
        server.execute(pg.SQL("drop database if exists {} with (force)").format(pg.Identifier(database)))


def publish(run_id: str, check: Check, clean: Check) -> Release:
    """Copy the database, check the copy, and mark it as what readers see.

    Args:
        run_id: the run that publishes.
        check: raises if what the database holds must not be published.
        clean: called before: drops what must not be published.

    Returns:
        The published release.

    Raises:
        NotReadyError: nothing to publish, or an older load than readers see; or raised by `check`.
        PublishError: the copy cannot be made or read; readers still see the previous one.
        WarehouseLockedError: a load or another publish was still running at the timeout.
    """
    started = time.monotonic()
    new_id, keep = release_id(run_id), keep_releases()
    with pg_releases.exclusively(_server()):
        with _open_working() as connection:
            check(connection)
            clean(connection)
            builds.check_not_older(connection)
            created_at = builds.stamp(connection, new_id, run_id)
        new = replace(_copy(), id=new_id, run_id=run_id, created_at=created_at)
        try:
            _verify(new, check)
            with pg_releases.connect(_server(_release(new))) as release:
                release.execute(pg.SQL(_GRANT).format(**pg_releases.names()))
        except BaseException:
            _drop(_release(new))
            raise
        with pg_releases.connect(_server()) as server:
            pg_releases.record(server, new)
        _remove_old(keep)
    logger.info("Published %s: %s in %.2f s", new.id, _release(new), time.monotonic() - started)
    return new


def _copy() -> Release:
    """Copy the working database under the next number; nobody sees the copy yet."""
    _remove_unlisted()
    number = max((int(one.location) for one in list_releases()), default=0) + 1
    new = Release("", "", str(number), datetime.now(UTC), 0, True)
    try:
        _create(_release(new), working_database())
        with pg_releases.connect(_server()) as server:
            row = server.execute("select pg_database_size(%s)", [_release(new)]).fetchone()
    except WarehouseError as error:
        raise PublishError(f"{error} The copy could not be made. Nothing changes for readers.") from error
    assert row is not None
    return replace(new, size_bytes=int(row[0]))


def _verify(release: Release, check: Check = lambda connection: None) -> None:
    """Check a release in a connection of its own: its tables can be read."""
    with _opened(attach_statements(release)) as reader:
        try:
            tables = count_rows(reader)
        except duckdb.Error as error:
            raise PublishError(
                f"{_release(release)} cannot be read: {first_line(error)} Nothing changes for readers."
            ) from error
        if not any(schema == MARTS_SCHEMA for schema, _ in tables):
            raise NotReadyError(f"The database has no table in {MARTS_SCHEMA}: run the pipeline, then publish.")
        check(reader)


def _remove_old(keep: int) -> None:
    try:
        with pg_releases.connect(_server()) as server:
            pg_releases.forget_old(server, keep)
        _remove_unlisted()
    except WarehouseError as error:  # the publish itself has succeeded
        logger.warning("Old releases could not be removed: %s", first_line(error))


def _remove_unlisted() -> None:
    """Drop the copies that are not in the list: old ones, and those of a publish that was killed."""
    with pg_releases.connect(_server()) as server:
        listed = {_release(one) for one in pg_releases.releases(server)}
        prefix = f"{working_database()}-"
        found = server.execute("select datname from pg_database where starts_with(datname, %s)", [prefix]).fetchall()
    for (database,) in found:
        if database.removeprefix(prefix).isdecimal() and database not in listed:
            _drop(database)


def rollback(release_or_run_id: str) -> Release:
    """Show readers an older (or newer) kept release.

    Args:
        release_or_run_id: id of a release, or of the run that published it.

    Returns:
        The release that is now published.

    Raises:
        UnknownReleaseError: no such release; lists the kept ones.
        PublishError: it cannot be read; nothing changes for readers.
        WarehouseLockedError: a load, a publish or another rollback was still running at the timeout.
    """
    return pg_releases.rollback(_server(), release_or_run_id, published_location(), _verify)


def restore(release_or_run_id: str | None = None) -> str:
    """Replace the database that tasks write with a copy of a release; the next load and build start from it.

    Args:
        release_or_run_id: id of a release, or of the run that published it; default: the published one.

    Returns:
        What was done, in one line.

    Raises:
        UnknownReleaseError: no such release is kept.
        PublishError: it cannot be read; choose another.
        WarehouseLockedError: a load or publish was still running at the timeout.
    """
    with pg_releases.exclusively(_server()):
        source = pg_releases.find_or_published(list_releases(), release_or_run_id, published_location())
        if source:
            _verify(source)
        copy = f"{working_database()}-restored"  # made first: whoever is killed now has lost nothing
        _drop(copy)
        _create(copy, _release(source) if source else "template1")
        _drop(working_database())
        with pg_releases.connect(_server(), autocommit=True) as server:
            rename = pg.SQL("alter database {} rename to {}")
            server.execute(rename.format(pg.Identifier(copy), pg.Identifier(working_database())))
        with _open_working() as connection:
            builds.forget_loads(connection)
    now = f"{working_database()} is now a copy of {source.id}" if source else f"{working_database()} is now empty"
    return f"{now}. Clear `load` with downstream, or start a run."
