"""The warehouse as a DuckLake: its catalog in PostgreSQL, its data as Parquet in a folder or an object store.

    schema NAME_working    the lake's own catalog, written by tasks; each change is a new version of the lake
    schema NAME            views of that catalog as it was at the published version; NAME.releases lists the kept ones

Readers attach the schema NAME, read-only, and find the documented tables. Publish and rollback only change which
version the views show, so they take the same time at any size, and readers that are attached follow at once.

Settings: `DUCKLAKE_CATALOG` is a libpq connection string without a password, which comes from `PGPASSWORD` or
`PGPASSFILE`. `DUCKLAKE_DATA` is a folder or an `s3://` URL, by default `lake` in the warehouse's folder; an object
store is reached with the usual `AWS_*` variables.
"""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import psycopg
from psycopg import sql as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from include import provenance, sql
from include.duckdb_session import open_duckdb
from include.settings import REPOSITORY_ROOT, warehouse_name
from include.warehouse import builds, paths
from include.warehouse.connection import spill_config
from include.warehouse.errors import NotReadyError, PublishError, WarehouseError, first_line
from include.warehouse.paths import release_id
from include.warehouse.targets import pg_releases
from include.warehouse.targets.base import Check, Gate, Release, has_built, keep_releases, no_gate, nothing

logger = logging.getLogger(__name__)

# DuckLake's default of 10 is too low for several writers.
_RETRIES = 100
# Deleted files stay this long for whoever still reads a release that has just been removed.
# No transaction is open longer: a task's time limit is an hour.
_LONGEST = "2 hours"
_ORPHANED = "1 day"
_GRACE = "1 day"
# Files below this many bytes are merged: each delivery and build adds some, and a query opens all files of a table.
_SMALL = 10_000_000

# Creates the views that are missing, and replaces those over a table that gained a column in an upgrade of DuckLake.
# Not of inlined rows (see `_attach_working`): a view would keep DuckLake from dropping their tables.
_VIEWS = """
do $$
declare
    one record;
    version text := '(select version from {readers}.releases where published)';
    condition text;
begin
    for one in
        select table_name, count(*) as columns, bool_or(column_name = 'begin_snapshot') as has_versions
        from information_schema.columns
        where table_schema = {working_text} and table_name like 'ducklake\\_%'
            and table_name not like 'ducklake\\_inlined\\_data\\_%\\_%'
        group by table_name
    loop
        continue when one.columns = (
            select count(*) from information_schema.columns
            where table_schema = {readers_text} and table_name = one.table_name
        );
        condition := case
            when one.table_name = 'ducklake_snapshot' then 'snapshot_id <= ' || version
            when one.has_versions then 'begin_snapshot <= ' || version
            else 'true'
        end;
        execute format(
            'create or replace view %I.%I as select * from %I.%I where %s',
            {readers_text}, one.table_name, {working_text}, one.table_name, condition
        );
    end loop;
    if exists (select from pg_roles where rolname = {role_text}) then
        grant usage on schema {readers} to {role};
        grant select on all tables in schema {readers} to {role};
    end if;
end $$
"""


def _working_schema() -> str:
    return f"{warehouse_name()}_working"


def _catalog() -> str:
    text = os.environ.get("DUCKLAKE_CATALOG", "")
    try:
        given = conninfo_to_dict(text)
    except psycopg.Error as error:
        raise WarehouseError(f"DUCKLAKE_CATALOG is not a libpq connection string: {first_line(error)}") from None
    if "password" in given:
        raise WarehouseError("DUCKLAKE_CATALOG must not contain a password: use PGPASSWORD or PGPASSFILE.")
    if "dbname" not in given:
        raise WarehouseError(
            "DBT_TARGET=ducklake needs DUCKLAKE_CATALOG, such as: host=db.example.com dbname=lake user=lake"
        )
    return make_conninfo(text)


def _data_path() -> str:
    text = os.environ.get("DUCKLAKE_DATA") or str(paths.warehouse_dir() / "lake")
    if "://" in text:
        return f"{text.rstrip('/')}/{warehouse_name()}/"
    return f"{(REPOSITORY_ROOT / Path(text).expanduser()).resolve()}/{warehouse_name()}/"


def prepare_statements() -> list[str]:
    """Return the SQL that a connection needs before it attaches the lake; it may contain a secret."""
    data_path = _data_path()
    in_object_store = data_path.startswith("s3://")
    # Only what is needed: DuckDB checks an extension's signature in each process, which takes 0.1 s.
    extensions = ["ducklake", "postgres_scanner", *(["httpfs"] if in_object_store else [])]
    pg_releases.install_extensions("ducklake", *extensions)
    statements = [f"load {name}" for name in extensions]
    statements.append(f"set ducklake_max_retry_count = {_RETRIES}")
    if in_object_store:
        options = {"type": "s3", "scope": sql.literal(data_path), "url_style": "'path'"}
        for option, variable in (
            ("key_id", "AWS_ACCESS_KEY_ID"),
            ("secret", "AWS_SECRET_ACCESS_KEY"),
            ("session_token", "AWS_SESSION_TOKEN"),
            ("region", "AWS_REGION"),
        ):
            if value := os.environ.get(variable):
                options[option] = sql.literal(value)
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            url = urlsplit(endpoint)
            options |= {"endpoint": sql.literal(url.netloc), "use_ssl": str(url.scheme == "https").lower()}
        listed = ", ".join(f"{name} {value}" for name, value in options.items())
        statements.append(f"create or replace secret lake ({listed})")
    return statements


def _attach(schema: str, *options: str, name: str | None = None) -> str:
    listed = ", ".join([f"metadata_schema {sql.literal(schema)}", *options])
    return f"attach {sql.literal(f'ducklake:postgres:{_catalog()}')} as {name or warehouse_name()} ({listed})"


def _attach_working() -> str:
    # Small tables as files too, not inlined into the catalog: a reader's view of those would block their removal.
    return _attach(_working_schema(), f"data_path {sql.literal(_data_path())}", "data_inlining_row_limit 0")


def _open(connection: duckdb.DuckDBPyConnection, attach: str) -> None:
    pg_releases.attach(connection, [*prepare_statements(), attach])


def _size(catalog: psycopg.Connection, version: int) -> int:
    query = (
        "select coalesce(sum(file_size_bytes), 0) from {working}.ducklake_data_file"
        " where begin_snapshot <= %s and coalesce(end_snapshot > %s, true)"
    )
    row = catalog.execute(pg.SQL(query).format(**pg_releases.names()), [version, version]).fetchone()
    assert row is not None
    return int(row[0])


def _version(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the version of the lake that this connection's last commit made."""
    row = connection.execute(
        f"select id from ducklake_last_committed_snapshot({sql.literal(warehouse_name())})"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _clean_up(connection: duckdb.DuckDBPyConnection, keep: int) -> None:
    """Remove the releases beyond the kept ones and what only they need; then merge small files.

    Files that are merged still serve every version that they came from: kept releases don't change.
    """
    try:
        with pg_releases.connect(_catalog()) as catalog:
            pg_releases.forget_old(catalog, keep)
            kept = sorted(int(one.location) for one in pg_releases.needed(catalog))
        before = kept[-2] if len(kept) > 1 else 0
        lake = sql.literal(warehouse_name())
        # A commit compares itself with the versions since its transaction began; without them, it loses what others
        # have deleted. So those that are younger than a transaction may be stay.
        rows = connection.execute(
            f"select snapshot_id from ducklake_snapshots({lake}) where snapshot_time < now() - interval '{_LONGEST}'"
        ).fetchall()
        unused = [version for (version,) in rows if version < before and version not in kept]
        if unused:
            connection.execute(f"call ducklake_expire_snapshots({lake}, versions => {unused})")
            connection.execute(f"call ducklake_cleanup_old_files({lake}, older_than => now() - interval '{_GRACE}')")
        connection.execute(f"call ducklake_merge_adjacent_files({lake}, max_file_size => {_SMALL})")
    except (duckdb.Error, WarehouseError) as error:  # the publish itself has succeeded
        logger.warning("The lake could not be cleaned up: %s", first_line(error))


def _check_exact(connection: duckdb.DuckDBPyConnection, tables: Collection[tuple[str, str]]) -> None:
    """Refuse values that the lake's Parquet files have not kept.

    Args:
        connection: the working tables.
        tables: those to look at.
    """
    found = connection.execute(
        "select schema_name, table_name, column_name, data_type from duckdb_columns()"
        " where database_name = ? and regexp_matches(data_type, 'HUGEINT|INTERVAL') order by all",
        [warehouse_name()],
    ).fetchall()
    for schema, table, column, type_ in found:
        if (schema, table) not in tables or sql.parquet_type(type_) == type_:
            continue
        place = f"{schema}.{table}.{column}"
        if type_ == "HUGEINT":
            name, limit = sql.identifier(column), 2**53
            query = (
                f"select count(*) from {sql.identifier(schema, table)} where {name} not between -{limit} and {limit}"
            )
            try:
                if connection.execute(query).fetchall() == [(0,)]:
                    continue
            except duckdb.ConversionException:  # too large to be read back
                pass
        raise NotReadyError(
            f"Not published: a lake does not keep each value of {place}, a {type_} (integers of 128 bits, such as sum()"
            f" gives, are stored as DOUBLE). In the model, cast it to {sql.parquet_type(type_)}."
        )


def _tables(connection: duckdb.DuckDBPyConnection, catalog: str) -> list[tuple[str, str]]:
    query = "select schema_name, table_name from duckdb_tables() where database_name = ? order by all"
    return connection.execute(query, [catalog]).fetchall()


class DuckLake(pg_releases.ListedReleases):
    """A lake; `Release.location` is its version."""

    def server(self) -> str:
        return _catalog()

    @contextlib.contextmanager
    def open_working(self, timeout_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        # dbt's tasks write beside each other and don't take this lock.
        with (
            pg_releases.exclusively(_catalog(), timeout_seconds),
            open_duckdb(config=spill_config()) as connection,
        ):
            _open(connection, _attach_working())
            yield connection

    def create_working(self) -> None:
        with pg_releases.connect(_catalog()) as catalog:
            row = catalog.execute("select to_regclass(%s)", [f"{_working_schema()}.ducklake_metadata"]).fetchone()
        if row == (None,):
            super().create_working()

    def publish(self, run_id: str, check: Check, clean: Check = nothing, gate: Gate = no_gate) -> Release:
        # The version is fixed first, then that version is checked: what is written meanwhile is not published.
        started = time.monotonic()
        new_id, keep = release_id(run_id), keep_releases()
        with self.open_working() as connection:
            check(connection)
            clean(connection)
            _check_exact(connection, [one for one, kind in self.relations(connection).items() if kind == "table"])
            builds.check_not_older(connection)
            made_by = provenance.current()
            created_at = builds.stamp(connection, new_id, run_id, made_by)
            version = _version(connection)
            new = Release(new_id, run_id, str(version), created_at, 0, True, made_by)
            self.verify(new, check)
            waits = gate(new)
            with pg_releases.connect(_catalog()) as catalog:
                release = replace(new, size_bytes=_size(catalog, version), published=not waits)
                if waits:
                    pg_releases.record_waiting(catalog, release)
                else:
                    pg_releases.record(catalog, release)
                    catalog.execute(pg.SQL(_VIEWS).format(**pg_releases.names()))
            _clean_up(connection, keep)
        done = "Made, not shown to readers:" if waits else "Published"
        logger.info("%s %s: version %s in %.2f s", done, release.id, version, time.monotonic() - started)
        return release

    def restore(self, release_or_run_id: str | None = None) -> str:
        with self.open_working() as connection:
            source = self.find_or_published(release_or_run_id)
            wanted: set[tuple[str, str]] = set()
            if source:
                self.verify(source)
                connection.execute(self.attach_statements(source, "kept")[-1])
                wanted = set(_tables(connection, "kept"))
            connection.begin()
            for schema, table in set(_tables(connection, warehouse_name())) - wanted:
                connection.execute(f"drop table {sql.identifier(warehouse_name(), schema, table)}")
            for schema, table in sorted(wanted):
                connection.execute(f"create schema if not exists {sql.identifier(warehouse_name(), schema)}")
                connection.execute(
                    f"create or replace table {sql.identifier(warehouse_name(), schema, table)} as"
                    f" from {sql.identifier('kept', schema, table)}"
                )
            connection.commit()
            builds.forget_loads(connection)
        now = f"The lake's tables are now those of {source.id}" if source else "The lake is now empty"
        return f"{now}. Clear `load` with downstream, or start a run."

    def kept_type(self, type_: str) -> str:
        return sql.exact_type(type_, "enum", "interval", "time")

    def tidy(self) -> int:
        lake = sql.literal(warehouse_name())
        with self.open_working() as connection:  # old enough: a task may be writing some that it has not committed
            call = f"call ducklake_delete_orphaned_files({lake}, older_than => now() - interval '{_ORPHANED}')"
            return len(connection.execute(call).fetchall())

    def verify(self, release: Release, check: Check = nothing) -> None:
        """Read the tables of a version down to their files."""
        with open_duckdb(config=spill_config()) as reader:
            try:
                _open(reader, self.attach_statements(release)[-1])
                tables = self.count_rows(reader)
                for schema, table in tables:
                    reader.execute(f"from {sql.identifier(warehouse_name(), schema, table)} limit 1").fetchall()
            except duckdb.Error as error:
                raise PublishError(
                    f"Version {release.location} of the lake, {release.id}, cannot be read: {first_line(error)} "
                    "Nothing changes for readers."
                ) from error
            if not has_built(tables):
                raise NotReadyError("The lake has only loaded tables: run the pipeline, then publish.")
            check(reader)

    def attach_statements(self, release: Release | None = None, name: str | None = None) -> list[str]:
        if release is None:
            return [*prepare_statements(), _attach(warehouse_name(), "read_only", name=name)]
        at = f"snapshot_version {int(release.location)}"
        return [*prepare_statements(), _attach(_working_schema(), at, "read_only", name=name)]

    def published_location(self) -> str:
        return f"the schema {warehouse_name()} of the lake's catalog"

    def how_to_open(self) -> str:
        return f"""Open it in DuckDB, read-only, with the extensions ducklake and postgres:
  {_attach(warehouse_name(), "read_only")}; use {warehouse_name()};"""
