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
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import duckdb
import psycopg
from psycopg import sql as pg
from psycopg.conninfo import make_conninfo

from include import provenance, sql
from include.duckdb_session import open_duckdb
from include.settings import warehouse_name
from include.warehouse import builds
from include.warehouse.connection import spill_config
from include.warehouse.errors import NotReadyError, PublishError, WarehouseError, first_line
from include.warehouse.paths import release_id
from include.warehouse.targets import pg_releases
from include.warehouse.targets.base import (
    Check,
    Gate,
    Release,
    find_waiting,
    has_built,
    keep_releases,
    no_gate,
    nothing,
)

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
    return make_conninfo(dbname=database or os.environ["PGDATABASE"])


def _release(release: Release) -> str:
    return f"{working_database()}-{int(release.location)}"


def _attach(database: str, *options: str, name: str | None = None) -> list[str]:
    pg_releases.install_extensions("postgres", "postgres_scanner")
    listed = ", ".join(["type postgres", "isolation_level 'read committed'", *options])
    target = f"attach {sql.literal(_server(database))} as {name or warehouse_name()} ({listed})"
    return ["load postgres_scanner", target]


@contextlib.contextmanager
def _open_working() -> Iterator[duckdb.DuckDBPyConnection]:
    if not _exists(working_database()):
        _create(working_database(), "template1")
    with _opened(_attach(working_database())) as connection:
        connection.execute("create schema if not exists main")  # dbt's default one, as in DuckDB
        yield connection


@contextlib.contextmanager
def _opened(statements: list[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_duckdb(config=spill_config()) as connection:
        pg_releases.attach(connection, statements)
        yield connection


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
        listed = {_release(one) for one in pg_releases.needed(server)}
        prefix = f"{working_database()}-"
        found = server.execute("select datname from pg_database where starts_with(datname, %s)", [prefix]).fetchall()
    for (database,) in found:
        if database.removeprefix(prefix).isdecimal() and database not in listed:
            _drop(database)


def _let_in_readers(release: Release) -> None:
    with pg_releases.connect(_server(_release(release))) as connection:
        connection.execute(pg.SQL(_GRANT).format(**pg_releases.names()))


class Postgres(pg_releases.ListedReleases):
    """Databases on a server; `Release.location` is the number in the name of the release's own."""

    has_duckdb_views = False

    def server(self) -> str:
        return _server()

    @contextlib.contextmanager
    def open_working(self, timeout_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        # dbt's tasks write beside each other and don't take this lock.
        with pg_releases.exclusively(_server(), timeout_seconds), _open_working() as connection:
            yield connection

    def create_working(self) -> None:
        if not _exists(working_database()):
            super().create_working()

    def _views(self, connection: duckdb.DuckDBPyConnection, catalog: str) -> list[tuple[str, str]]:
        # DuckDB lists them as tables.
        return connection.execute(
            f"select schemaname, viewname from {sql.identifier(catalog)}.pg_catalog.pg_views"
            " where schemaname not in ('pg_catalog', 'information_schema')"
        ).fetchall()

    def kept_type(self, type_: str) -> str:
        if re.search(r"\b(STRUCT|MAP|UNION)\(", type_):
            return "JSON"
        return sql.exact_type(type_, "enum", "nanoseconds")

    def stored_type(self, type_: str) -> str:
        return _STORED.get(type_.upper(), type_.upper())

    def replace_table(
        self, connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]
    ) -> None:
        """Empty a table with these columns, so that the views on it stay; replace any other."""
        wanted = [(name, self.stored_type(type_)) for name, type_ in columns.items()]
        if self.columns_of(connection, schema, table) == wanted:
            truncate = f"truncate {sql.identifier(schema, table)}"
            connection.execute(f"call postgres_execute({sql.literal(warehouse_name())}, {sql.literal(truncate)})")
        else:
            super().replace_table(connection, schema, table, columns)

    def drop(
        self,
        connection: duckdb.DuckDBPyConnection,
        schema: str,
        name: str,
        kind: str = "table",
        *,
        cascade: bool = True,
    ) -> None:
        place = sql.identifier(warehouse_name(), schema, name)
        connection.execute(f"drop {kind} if exists {place}{' cascade' if cascade else ''}")

    def publish(self, run_id: str, check: Check, clean: Check = nothing, gate: Gate = no_gate) -> Release:
        """Copy the database, check the copy, and mark it as what readers see."""
        started = time.monotonic()
        new_id, keep = release_id(run_id), keep_releases()
        with pg_releases.exclusively(_server()):
            with _open_working() as connection:
                check(connection)
                clean(connection)
                builds.check_not_older(connection)
                made_by = provenance.current()
                created_at = builds.stamp(connection, new_id, run_id, made_by)
            new = replace(self._copy(), id=new_id, run_id=run_id, created_at=created_at, made_by=made_by)
            try:
                self.verify(new, check)
                new = replace(new, published=not gate(new))
                if new.published:
                    _let_in_readers(new)
            except BaseException:
                _drop(_release(new))
                raise
            with pg_releases.connect(_server()) as server:
                (pg_releases.record if new.published else pg_releases.record_waiting)(server, new)
            _remove_old(keep)
        done = "Published" if new.published else "Made, not shown to readers:"
        logger.info("%s %s: %s in %.2f s", done, new.id, _release(new), time.monotonic() - started)
        return new

    def approve(self, release_or_run_id: str) -> Release:
        with pg_releases.exclusively(_server()):
            _let_in_readers(find_waiting(self.waiting_release(), release_or_run_id))
        return super().approve(release_or_run_id)

    def _copy(self) -> Release:
        """Copy the working database under the next number; nobody sees the copy yet."""
        _remove_unlisted()
        with pg_releases.connect(_server()) as server:
            number = max((int(one.location) for one in pg_releases.needed(server)), default=0) + 1
        new = Release("", "", str(number), datetime.now(UTC), 0, True)
        try:
            _create(_release(new), working_database())
            with pg_releases.connect(_server()) as server:
                row = server.execute("select pg_database_size(%s)", [_release(new)]).fetchone()
        except WarehouseError as error:
            raise PublishError(f"{error} The copy could not be made. Nothing changes for readers.") from error
        assert row is not None
        return replace(new, size_bytes=int(row[0]))

    def verify(self, release: Release, check: Check = nothing) -> None:
        with _opened(self.attach_statements(release)) as reader:
            try:
                tables = self.count_rows(reader)
            except duckdb.Error as error:
                raise PublishError(
                    f"{_release(release)} cannot be read: {first_line(error)} Nothing changes for readers."
                ) from error
            if not has_built(tables):
                raise NotReadyError("The database has only loaded tables: run the pipeline, then publish.")
            check(reader)

    def restore(self, release_or_run_id: str | None = None) -> str:
        with pg_releases.exclusively(_server()):
            source = self.find_or_published(release_or_run_id)
            if source:
                self.verify(source)
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

    def attach_statements(self, release: Release | None = None, name: str | None = None) -> list[str]:
        if release is None and (release := self.published_release()) is None:
            raise duckdb.CatalogException(f"Nothing is published in {self.published_location()}.")
        return _attach(_release(release), "read_only", name=name)

    def published_location(self) -> str:
        return f"the releases of {working_database()} in PostgreSQL"

    def how_to_open(self) -> str:
        found = self.published_release()
        database = _release(found) if found else f"{working_database()}-N"
        return f"Open it with any PostgreSQL client (SERVE_URL copies the marts to a fixed place):\n  psql {database}"
