"""What targets share that DuckDB does not reach. Their part is the small set of operations of `Remote`.

The rest of the project works on a DuckDB of the worker, which has the build graph, what was fetched and what was
written. What has changed there goes back as Parquet, into staging tables; one transaction of DML then moves all of it
into the warehouse's tables, and the record with it, unless somebody else has loaded meanwhile.

    warehouse, NAME_raw, staging, marts, ...    the working tables
    NAME                                        the list of the releases; staging tables
    NAME_release_N_raw, NAME_release_N_marts    release N: clones of the tables, which never change
    NAME_marts                                  what readers see, under fixed names

A transaction of such a service changes rows, not tables. So publish rewrites the marts, in the transaction that names
the release; tables are created, and get new columns, before it, and lose them after it. Views are not part of a
release, except marts, which become tables.

A release is read in a copy on the worker, a DuckDB file that is fetched when it is first needed: it never changes.
"""

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import duckdb
import pyarrow

from include import provenance
from include.duckdb_session import open_duckdb
from include.provenance import Provenance
from include.settings import MARTS_SCHEMA, warehouse_name
from include.sql import identifier, literal
from include.warehouse import builds, locks, paths
from include.warehouse.connection import spill_config
from include.warehouse.errors import NotReadyError, PublishError, WarehouseError
from include.warehouse.paths import release_id
from include.warehouse.targets.base import (
    Check,
    Gate,
    Release,
    Target,
    find,
    find_waiting,
    has_built,
    keep_releases,
    no_gate,
    nothing,
    rows_with,
)

logger = logging.getLogger(__name__)

# In the worker's DuckDB: the columns that the service has, by table; what was in those that were fetched; which are to
# be dropped; and the builds that it has.
_STATE = """
create temp table remote_columns (
    schema_name varchar, name varchar, kind varchar, place bigint, column_name varchar, type varchar
);
create temp table remote_rows (schema_name varchar, name varchar, row_count bigint, digest hugeint);
create temp table remote_dropped (schema_name varchar, name varchar);
create temp table remote_builds (node varchar, version bigint, is_load boolean)
"""
_BUILDS = ("warehouse", "builds")
# Of dlt's merges: of no use once they are done.
_HELPERS = "_raw_staging"
_STAGING = "staging_"
_LEFT_SECONDS = 86_400
_LIST = {
    "release_id": "VARCHAR",
    "run_id": "VARCHAR",
    "location": "VARCHAR",
    "created_at": "TIMESTAMP WITH TIME ZONE",
    "size_bytes": "BIGINT",
    "state": "VARCHAR",  # kept, published, waiting
    "provenance": "VARCHAR",
}
_BUILD_TYPES = dict.fromkeys(
    ("version", "node", "build_id", "code", "parents", "passed", "stateful", "relation", "run_id", "recorded_at"),
    "VARCHAR",
) | {
    "version": "BIGINT",
    "passed": "BOOLEAN",
    "stateful": "BOOLEAN",
    "recorded_at": "TIMESTAMP WITH TIME ZONE",
}


class UnreachableError(WarehouseError):
    """The service does not answer."""

    retryable = True
    runbook = "The warehouse's service cannot be reached"


@dataclass(frozen=True)
class Column:
    """A column of a table or view there; `type` is that of DuckDB."""

    schema: str
    table: str
    kind: str
    name: str
    type: str


@dataclass(frozen=True)
class _Change:
    """What one table of the worker's DuckDB has more than the service: rows to add, and whether they replace all."""

    schema: str
    table: str
    columns: Mapping[str, str]
    rows: str
    replaces: bool = False


class Remote(Target):
    """A service with tables in schemas, and transactions of DML; `Release.location` is the N in its schemas' names."""

    has_duckdb_views = False
    keeps_types = False
    can_be_sandboxed = True  # a copy is a file
    new_table: ClassVar[str] = "table"  # what `create` says

    # What a service must do.

    @abstractmethod
    def schemas(self) -> list[str]:
        """Return the names of all schemas."""

    @abstractmethod
    def columns_there(self, schemas: Sequence[str]) -> list[Column]:
        """Return the columns of the tables and views of some schemas that exist, in order."""

    @abstractmethod
    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Run one statement, which may be DDL, and return its rows."""

    @abstractmethod
    def change(self, statements: Sequence[str]) -> None:
        """Run statements of DML in one transaction."""

    @abstractmethod
    def rows(self, schema: str, table: str, columns: Mapping[str, str]) -> pyarrow.RecordBatchReader:
        """Read a table, with columns that can be cast to these DuckDB types."""

    @abstractmethod
    def upload(self, file: Path, schema: str, table: str) -> None:
        """Add the rows of a Parquet file to a table, whose columns it has."""

    @abstractmethod
    def size(self, schema: str) -> int:
        """Return the bytes of a schema's tables."""

    @abstractmethod
    def drop_schema(self, schema: str) -> None:
        """Drop a schema with all that is in it, if it exists."""

    @abstractmethod
    def name_of(self, *parts: str) -> str:
        """Return a schema's, table's or column's name, quoted."""

    @abstractmethod
    def literal(self, text: str | None) -> str:
        """Return a text as a literal of SQL; None as NULL."""

    @abstractmethod
    def type_of(self, type_: str) -> str:
        """Return the service's type for a DuckDB type."""

    @abstractmethod
    def duckdb_type(self, type_: str) -> str:
        """Return the DuckDB type for one of the service's, as `stored_type` does."""

    # SQL that is the same on each; a service overrides what is not.

    def create(self, schema: str, table: str, columns: Mapping[str, str]) -> None:
        """Create a table with columns of DuckDB types, and its schema, if they do not exist."""
        self.query(f"create schema if not exists {self.name_of(schema)}")
        self.query(f"create {self.new_table} if not exists {self.name_of(schema, table)} ({self._defined(columns)})")

    def drop_there(self, schema: str, name: str, kind: str = "table") -> None:
        """Drop a table or view, if it exists."""
        self.query(f"drop {kind} if exists {self.name_of(schema, name)}")

    def clone(self, source: tuple[str, str], copy: tuple[str, str]) -> None:
        """Clone a table into a schema that exists."""
        self.query(f"create {self.new_table} {self.name_of(*copy)} clone {self.name_of(*source)}")

    def fail_unless(self, condition: str, message: str) -> str:
        """Return a statement that ends its transaction unless a condition holds."""
        return f"select if({condition}, true, error({self.literal(message)}))"

    def stored_type(self, type_: str) -> str:
        return self.duckdb_type(self.type_of(type_))

    def kept_type(self, type_: str) -> str:
        return self.stored_type(type_)

    def _defined(self, columns: Mapping[str, str]) -> str:
        return ", ".join(f"{self.name_of(name)} {self.type_of(type_)}" for name, type_ in columns.items())

    def _insert(self, target: tuple[str, str], source: tuple[str, str], columns: Iterable[str]) -> str:
        listed = ", ".join(self.name_of(one) for one in columns)
        return f"insert into {self.name_of(*target)} ({listed}) select {listed} from {self.name_of(*source)}"

    # The working tables, on the worker.

    @contextlib.contextmanager
    def open_working(self, timeout_seconds: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        # Else DuckDB takes a Python variable for a table that is missing.
        config = {**spill_config(), "python_enable_replacements": False}
        with _exclusively(timeout_seconds), open_duckdb(config=config) as connection:
            connection.execute(f"attach ':memory:' as {warehouse_name()}; use {warehouse_name()}")
            connection.execute(_STATE)
            schemas = [one for one in self.schemas() if not _is_ours(one)]
            there = enumerate(self.columns_there(schemas))
            found = [(one.schema, one.table, one.kind, at, one.name, one.type) for at, one in there]
            if found:
                connection.executemany("insert into temp.remote_columns values (?, ?, ?, ?, ?, ?)", found)
            self.fetch(connection, "warehouse", lambda _: True)
            _remember_builds(connection)
            yield connection
            self._push(connection)

    def create_working(self) -> None:
        if not self.columns_there([one for one in self.schemas() if one == "warehouse"]):
            self.create(*_BUILDS, _BUILD_TYPES)

    @contextlib.contextmanager
    def transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        with super().transaction(connection):
            yield
        self._push(connection)

    def fetch(self, connection: duckdb.DuckDBPyConnection, schema: str, is_wanted: Callable[[str], bool]) -> None:
        here = super().relations(connection)
        for place, table in sorted(set(_there(connection)) - set(here)):
            if place != schema or not is_wanted(table):
                continue
            columns = dict(self.columns_of(connection, schema, table))
            connection.execute(f"create schema if not exists {identifier(schema)}")
            connection.execute(f"create table {identifier(schema, table)} ({_defined_here(columns)})")
            _fill(connection, identifier(schema, table), self.rows(schema, table, columns))
            _remember(connection, schema, table, columns)

    def relations(
        self, connection: duckdb.DuckDBPyConnection, catalog: str | None = None
    ) -> dict[tuple[str, str], str]:
        here = super().relations(connection, catalog)
        if catalog or not _is_working(connection):
            return here
        return dict(sorted((_there(connection) | here).items()))

    def columns(
        self, connection: duckdb.DuckDBPyConnection, schema: str, table: str | None = None
    ) -> list[tuple[str, str, str]]:
        here = super().columns(connection, schema, table)
        if not _is_working(connection):
            return here
        there = connection.execute(
            "select name, column_name, type from temp.remote_columns anti join temp.remote_dropped"
            " using (schema_name, name) where schema_name = ? and name = coalesce(?, name) order by name, place",
            [schema, table],
        ).fetchall()
        known = {one[0] for one in here}
        return sorted([*here, *(one for one in there if one[0] not in known)], key=lambda one: one[0])

    def count_rows(self, connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
        if not _is_working(connection):
            return super().count_rows(connection)
        here, counts = super().relations(connection), {}
        for (schema, table), kind in self.relations(connection).items():
            if kind == "table" and (schema, table) in here:
                counts[schema, table] = _digest(connection, identifier(warehouse_name(), schema, table))[0]
            elif kind == "table":
                [(count,)] = self.query(f"select count(*) from {self.name_of(schema, table)}")
                counts[schema, table] = int(str(count))
        return counts

    def rows_with(
        self,
        connection: duckdb.DuckDBPyConnection,
        relation: tuple[str, str],
        column: str,
        values: tuple[tuple[str, str], str],
        limit: int,
    ) -> tuple[list[str], list[tuple[object, ...]]]:
        names = [name for name, _ in self.columns_of(connection, *relation)]
        return names, self.query(rows_with(self.name_of, relation, column, values, limit))

    def replace_table(
        self, connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]
    ) -> None:
        stored = {name: self.stored_type(type_) for name, type_ in columns.items()}
        super().replace_table(connection, schema, table, stored)

    def drop(
        self,
        connection: duckdb.DuckDBPyConnection,
        schema: str,
        name: str,
        kind: str = "table",
        *,
        cascade: bool = True,
    ) -> None:
        super().drop(connection, schema, name, kind, cascade=cascade)
        connection.execute("insert into temp.remote_dropped values (?, ?)", [schema, name])

    # What has changed on the worker, to the service.

    def _push(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Bring the service's tables to the state of those here, all rows in one transaction."""
        changes = self._changes(connection)
        here = super().relations(connection)
        known = connection.execute("select schema_name, name from temp.remote_rows").fetchall()
        for gone in set(known) - set(here):  # dropped by SQL of dlt's or of somebody's
            connection.execute("insert into temp.remote_dropped values (?, ?)", gone)
        removed = {one: kind for one, kind in _there(connection, dropped=True).items() if one not in here}
        if not changes and not removed:
            return
        staged: list[str] = []
        try:
            statements = [self._guard(connection)] if changes else []
            for one in changes:
                self._prepare(connection, one)
                if stage := self._stage(connection, one.rows, one.columns):
                    staged.append(stage)
                place = self.name_of(one.schema, one.table)
                if (one.schema, one.table) == _BUILDS:
                    statements += self._forget_builds(connection, staged)
                elif one.replaces:
                    statements.append(f"delete from {place} where true")
                if stage:
                    statements.append(self._insert((one.schema, one.table), (warehouse_name(), stage), one.columns))
            if statements[1:]:
                self.change(statements)
        finally:
            with contextlib.suppress(WarehouseError):  # a later publish drops them
                for stage in staged:
                    self.drop_there(warehouse_name(), stage)
        for (schema, name), kind in removed.items():
            self.drop_there(schema, name, kind)
        connection.execute("delete from temp.remote_dropped")
        for schema, name in removed:
            _forget(connection, schema, name)
        for one in changes:
            _remember(connection, one.schema, one.table, one.columns)
        _remember_builds(connection)

    def _changes(self, connection: duckdb.DuckDBPyConnection) -> list[_Change]:
        known = {
            (schema, name): (count, digest)
            for schema, name, count, digest in connection.execute("from temp.remote_rows").fetchall()
        }
        found = []
        for (schema, table), kind in super().relations(connection).items():
            if kind != "table" or schema.endswith(_HELPERS):
                continue
            place = identifier(warehouse_name(), schema, table)
            columns = {name: type_ for _, name, type_ in super().columns(connection, schema, table)}
            same_columns = columns == self._columns_known(connection, schema, table)
            if (schema, table) == _BUILDS:
                new = "anti join temp.remote_builds using (node, version)"
                if connection.execute(f"select 1 from {place} {new} limit 1").fetchall() or _gone_builds(connection):
                    found.append(_Change(schema, table, columns, f"from {place} {new}"))
                continue
            before = known.get((schema, table))
            if before is None or not same_columns or before != _digest(connection, place, before[0]):
                found.append(_Change(schema, table, columns, f"from {place}", replaces=True))
            elif before != _digest(connection, place):
                found.append(_Change(schema, table, columns, f"from {place} where rowid >= {before[0]}"))
        return found

    def _columns_known(self, connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> dict[str, str]:
        query = "select column_name, type from temp.remote_columns where schema_name = ? and name = ? order by place"
        return dict(connection.execute(query, [schema, table]).fetchall())

    def _guard(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Return a statement that refuses to overwrite what another machine has loaded since this one looked."""
        self.create(*_BUILDS, _BUILD_TYPES)
        latest = "select coalesce(max(version), 0) from {} where node = relation"
        [(seen,)] = connection.execute(
            "select coalesce(max(version), 0) from temp.remote_builds where is_load"
        ).fetchall()
        message = "somebody else has loaded meanwhile: clear this task"
        return self.fail_unless(f"({latest.format(self.name_of(*_BUILDS))}) = {seen}", message)

    def _prepare(self, connection: duckdb.DuckDBPyConnection, change: _Change) -> None:
        """Create what is missing. A table with other columns is replaced by an empty one, once its record is void."""
        there = self._columns_known(connection, change.schema, change.table)
        stored = {name: self.stored_type(type_) for name, type_ in change.columns.items()}
        if there and there != stored:
            relation = self.literal(f"{change.schema}.{change.table}")
            void = f"update {self.name_of(*_BUILDS)} set build_id = null, passed = false where relation = {relation}"
            self.change([void])
            self.drop_there(change.schema, change.table)
        if there != stored:
            self.create(change.schema, change.table, change.columns)

    def _stage(self, connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, str]) -> str:
        """Upload rows into a table of their own; return its name, or nothing if there are none."""
        stored = {name: self.stored_type(type_) for name, type_ in columns.items()}
        selected = ", ".join(
            f"{_as_text(name, columns[name], type_)} as {identifier(name)}" for name, type_ in stored.items()
        )
        name = f"{_STAGING}{time.time_ns()}"
        with tempfile.TemporaryDirectory(dir=paths.warehouse_dir()) as folder:
            file = Path(folder) / "rows.parquet"
            query = f"copy (select {selected} from ({rows}) as changed) to {literal(file)} (format parquet)"
            [(count,)] = connection.execute(query).fetchall()
            if not count:
                return ""
            self.create(warehouse_name(), name, stored)
            self.upload(file, warehouse_name(), name)
        return name

    def _forget_builds(self, connection: duckdb.DuckDBPyConnection, staged: list[str]) -> list[str]:
        """Return what deletes the records that were pruned; others may have added some since."""
        stage = ""
        if _gone_builds(connection):
            stage = self._stage(connection, _gone(), {"node": "VARCHAR", "version": "BIGINT"})
        if not stage:
            return []
        staged.append(stage)
        old, pruned = self.name_of(*_BUILDS), self.name_of(warehouse_name(), stage)
        matched = "pruned.node = builds.node and pruned.version = builds.version"
        return [f"delete from {old} where exists (select 1 from {pruned} as pruned where {matched})"]

    # Releases.

    def publish(self, run_id: str, check: Check, clean: Check = nothing, gate: Gate = no_gate) -> Release:
        """Clone the tables, then name the clones and rewrite the marts in one transaction."""
        started = time.monotonic()
        new_id, keep = release_id(run_id), keep_releases()
        with self.open_working() as connection:
            check(connection)
            clean(connection)
            builds.check_not_older(connection)
            if not has_built(dict.fromkeys(self.relations(connection), 0)):
                raise NotReadyError("The warehouse has only loaded tables: run the pipeline, then publish.")
            made_by = provenance.current()
            created_at = builds.stamp(connection, new_id, run_id, made_by)
            new = Release(new_id, run_id, f"{created_at:%Y%m%d%H%M%S%f}", created_at, 0, True, made_by)
            self._remove_unlisted()
            try:
                new = replace(new, size_bytes=self._clone_all(connection, new))
                self._check_unchanged(connection, new)
                new = replace(new, published=not gate(new))
                self._list_as(new, "published" if new.published else "waiting")
            except BaseException:
                self._drop_release(new)
                raise
        self._forget_old(keep)
        done = "Published" if new.published else "Made, not shown to readers:"
        logger.info("%s %s: %s in %.2f s", done, new.id, new.location, time.monotonic() - started)
        return new

    def _clone_all(self, connection: duckdb.DuckDBPyConnection, new: Release) -> int:
        schemas = dict[str, None]()
        for (schema, table), kind in self.relations(connection).items():
            if kind == "view" and schema != MARTS_SCHEMA:
                continue
            copy = _schema_of(new, schema)
            if schema not in schemas:
                self.query(f"create schema if not exists {self.name_of(copy)}")
                schemas[schema] = None
            if kind == "table":
                self.clone((schema, table), (copy, table))
            else:
                made, view = self.name_of(copy, table), self.name_of(schema, table)
                self.query(f"create {self.new_table} {made} as select * from {view}")
        return sum(self.size(_schema_of(new, one)) for one in schemas)

    def _check_unchanged(self, connection: duckdb.DuckDBPyConnection, new: Release) -> None:
        """Refuse clones that were made while somebody built: each build is recorded before it starts, and after."""
        with self.open_release(new, builds_only=True) as release:
            query = "select md5(string_agg(node || ':' || version, ',' order by node, version)) from warehouse.builds"
            if release.execute(query).fetchall() == connection.execute(query).fetchall():
                return
        raise PublishError(
            "Something was built while the release was made. Nothing changes for readers: let it finish, then clear "
            "this task."
        )

    def _list_as(self, release: Release, state: str, *, keep_waiting: bool = False) -> None:
        """Name a release in the list; if it is `published`, rewrite the marts in the same transaction."""
        name, listed = warehouse_name(), self.name_of(warehouse_name(), "releases")
        self.create(name, "releases", _LIST)
        gone = [f"release_id = {self.literal(release.id)}", *([] if keep_waiting else ["state = 'waiting'"])]
        texts = [self.literal(one) for one in (release.id, release.run_id, release.location)]
        created = self.literal(f"{release.created_at:%Y-%m-%d %H:%M:%S.%f+00:00}")
        texts.append(f"cast({created} as {self.type_of(_LIST['created_at'])})")
        texts += [str(release.size_bytes), self.literal(state), self.literal(release.made_by.to_json())]
        columns = ", ".join(self.name_of(one) for one in _LIST)
        statements = [f"delete from {listed} where {' or '.join(gone)}"]
        afterwards: list[str] = []
        if state == "published":
            statements.append(f"update {listed} set state = 'kept' where state = 'published'")
            rewrite, afterwards = self._rewrite_marts(release)
            statements += rewrite
        statements.append(f"insert into {listed} ({columns}) values ({', '.join(texts)})")
        self.change(statements)
        for statement in afterwards:
            self.query(statement)

    def _rewrite_marts(self, release: Release) -> tuple[list[str], list[str]]:
        """Return DML that gives the readers' tables a release's rows, and DDL for after it; add columns they lack."""
        readers, source = readers_schema(), _schema_of(release, MARTS_SCHEMA)
        self.query(f"create schema if not exists {self.name_of(readers)}")
        marts, shown = ({key[1]: one for key, one in self._tables([place]).items()} for place in (source, readers))
        during, afterwards = [], []
        for table in sorted({*marts, *shown}):
            place, wanted, has = self.name_of(readers, table), marts.get(table, {}), shown.get(table, {})
            if not wanted:
                during.append(f"delete from {place} where true")
                afterwards.append(f"drop table if exists {place}")
                continue
            if any(wanted[name] != has[name] for name in wanted if name in has):
                # No statement changes types and rows of several tables at once: this one follows, whole.
                logger.warning("%s.%s: columns change their types, so it is switched after the others", readers, table)
                rows = self.name_of(source, table)
                afterwards.append(f"create or replace {self.new_table} {place} as select * from {rows}")
                continue
            if not has:
                self.create(readers, table, wanted)
            for name in [one for one in wanted if has and one not in has]:
                self.query(f"alter table {place} add column {self._defined({name: wanted[name]})}")
            during += [f"delete from {place} where true", self._insert((readers, table), (source, table), wanted)]
            afterwards += [f"alter table {place} drop column {self.name_of(one)}" for one in has if one not in wanted]
        return during, afterwards

    def _tables(self, schemas: Sequence[str]) -> dict[tuple[str, str], dict[str, str]]:
        """Return the columns of the tables of some schemas."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for one in self.columns_there(schemas):
            if one.kind == "table":
                found.setdefault((one.schema, one.table), {})[one.name] = one.type
        return found

    def _listed(self, condition: str) -> list[Release]:
        name = warehouse_name()
        if name not in self.schemas() or (name, "releases") not in self._tables([name]):
            return []  # before the first publish
        columns = ", ".join(self.name_of(one) for one in _LIST)
        listed = self.name_of(warehouse_name(), "releases")
        rows = self.query(f"select {columns} from {listed} where {condition} order by created_at desc")
        return [_release(row) for row in rows]

    def list_releases(self) -> list[Release]:
        return self._listed("state != 'waiting'")

    def waiting_release(self) -> Release | None:
        return next(iter(self._listed("state = 'waiting'")), None)

    def rollback(self, release_or_run_id: str) -> Release:
        with _exclusively():
            found = find(self.list_releases(), release_or_run_id, self.published_location())
            self._verify(found)
            self._list_as(found, "published", keep_waiting=True)
        logger.info("Rolled back to %s", found.id)
        return replace(found, published=True)

    def approve(self, release_or_run_id: str) -> Release:
        with _exclusively():
            found = find_waiting(self.waiting_release(), release_or_run_id)
            self._verify(found)
            self._list_as(found, "published")
        logger.info("Approved %s", found.id)
        return replace(found, published=True)

    def refuse(self, release_or_run_id: str) -> Release:
        with _exclusively():
            found = find_waiting(self.waiting_release(), release_or_run_id)
            self.change([f"delete from {self.name_of(warehouse_name(), 'releases')} where state = 'waiting'"])
            self._remove_unlisted()
        logger.info("Refused %s", found.id)
        return found

    def restore(self, release_or_run_id: str | None = None) -> str:
        with _exclusively():
            source = self.published_release()
            if release_or_run_id:
                source = find(self.list_releases(), release_or_run_id, self.published_location())
            kept = self._verify(source) if source else set()
            self.create(*_BUILDS, _BUILD_TYPES)
            builds_table = self.name_of(*_BUILDS)
            # From now on publish refuses, until everything is there and loaded again.
            self.change([f"update {builds_table} set build_id = null, passed = false where true"])
            for schema, table in self._tables([one for one in self.schemas() if not _is_ours(one)]):
                if (schema, table) != _BUILDS:
                    self.drop_there(schema, table)
            for schema, table in sorted(kept - {_BUILDS}):
                self.query(f"create schema if not exists {self.name_of(schema)}")
                self.clone((_schema_of(source, schema), table), (schema, table))
            statements = [f"delete from {builds_table} where true"]
            if source:
                statements.append(self._insert(_BUILDS, (_schema_of(source, "warehouse"), "builds"), _BUILD_TYPES))
                # As `builds.forget_loads`.
                statements.append(
                    f"update {builds_table} set build_id = null, passed = false, run_id = null where node = relation"
                )
            self.change(statements)
        now = f"The working tables are now those of {source.id}" if source else "The warehouse is now empty"
        return f"{now}. Clear `load` with downstream, or start a run."

    def attach_statements(self, release: Release | None = None, name: str | None = None) -> list[str]:
        return [f"attach {literal(self._copy(release))} as {name or warehouse_name()} (read_only)"]

    @contextlib.contextmanager
    def open_release(
        self, release: Release | None = None, builds_only: bool = False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        with open_duckdb() as reader:
            reader.execute(f"attach {literal(self._copy(release, builds_only))} as {warehouse_name()} (read_only)")
            reader.execute(f"use {warehouse_name()}")
            yield reader

    def _copy(self, release: Release | None, builds_only: bool = False) -> Path:
        """Return the worker's copy of a release, made if it is missing."""
        if release is None and (release := self.published_release()) is None:
            raise duckdb.CatalogException(f"Nothing is published in {self.published_location()}.")
        whole = _copies() / f"{warehouse_name()}-{release.location}.duckdb"
        path = whole.with_suffix(".builds.duckdb") if builds_only and not whole.exists() else whole
        if path.exists():
            return path
        tables = self._tables(self._schemas_of(release, "warehouse" if path != whole else None))
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open_duckdb(made) as copy:
                for (place, table), columns in tables.items():
                    schema = place.removeprefix(_schema_of(release, ""))
                    copy.execute(f"create schema if not exists {identifier(schema)}")
                    copy.execute(f"create table {identifier(schema, table)} ({_defined_here(columns)})")
                    _fill(copy, identifier(schema, table), self.rows(place, table, columns))
            made.rename(path)
        finally:
            made.unlink(missing_ok=True)
        return path

    def _schemas_of(self, release: Release, only: str | None = None) -> list[str]:
        prefix = _schema_of(release, only or "")
        return [one for one in self.schemas() if (one == prefix if only else one.startswith(prefix))]

    def _verify(self, release: Release) -> set[tuple[str, str]]:
        """Return the tables of a release, of which one must be built."""
        prefix = _schema_of(release, "")
        tables = {(one.schema.removeprefix(prefix), one.table) for one in self.columns_there(self._schemas_of(release))}
        if not has_built(dict.fromkeys(tables, 0)):
            raise PublishError(f"The tables of {release.id} are gone. Nothing changes for readers.")
        return tables

    def _drop_release(self, release: Release) -> None:
        for schema in self._schemas_of(release):
            self.drop_schema(schema)

    def _forget_old(self, keep: int) -> None:
        try:
            old = [one for one in self.list_releases()[keep:] if not one.published]
            if old:
                listed = ", ".join(self.literal(one.location) for one in old)
                releases = self.name_of(warehouse_name(), "releases")
                self.change([f"delete from {releases} where location in ({listed})"])
            self._remove_unlisted()
        except WarehouseError as error:  # the publish itself has succeeded
            logger.warning("Old releases could not be removed: %s", error)

    def _remove_unlisted(self) -> None:
        """Drop what no release in the list needs, and what a publish or a load left that was killed."""
        for _, table in self._tables([one for one in self.schemas() if one == warehouse_name()]):
            made = table.removeprefix(_STAGING)
            if made != table and made.isdecimal() and time.time() - int(made) / 1e9 > _LEFT_SECONDS:
                self.drop_there(warehouse_name(), table)
        listed = {one.location for one in self._listed("true")}
        prefix = f"{warehouse_name()}_release_"
        for schema in self.schemas():
            if schema.startswith(prefix) and schema.removeprefix(prefix).split("_", 1)[0] not in listed:
                self.drop_schema(schema)
        for path in _copies().glob(f"{warehouse_name()}-*.duckdb"):
            if path.name.removeprefix(f"{warehouse_name()}-").split(".", 1)[0] not in listed:
                path.unlink(missing_ok=True)


def _copies() -> Path:
    return paths.warehouse_dir() / "copies"


def readers_schema() -> str:
    """Return where readers find the marts."""
    return f"{warehouse_name()}_{MARTS_SCHEMA}"


def _schema_of(release: Release | None, schema: str) -> str:
    assert release is not None
    return f"{warehouse_name()}_release_{release.location}_{schema}"


def _is_ours(schema: str) -> bool:
    """Return whether a schema is not one of working tables."""
    name = warehouse_name()
    return schema in (name, readers_schema()) or schema.startswith(f"{name}_release_")


def _release(row: Sequence[object]) -> Release:
    created = row[3]
    assert isinstance(created, datetime)
    return Release(
        id=str(row[0]),
        run_id=str(row[1]),
        location=str(row[2]),
        created_at=created.astimezone(UTC),
        size_bytes=int(str(row[4])),
        published=row[5] == "published",
        made_by=Provenance.from_json(None if row[6] is None else str(row[6])),
    )


@contextlib.contextmanager
def _exclusively(timeout_seconds: float | None = None) -> Iterator[None]:
    """Keep other loads, publishes and rollbacks of this machine out; the kernel drops the lock of whoever is killed."""
    path = paths.warehouse_dir() / f".{warehouse_name()}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def attempt() -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise locks.LockHeldError(locks.signed_by(lock, "another process")) from None

    try:
        advice = "A load, publish, rollback or restore is in progress: let it finish or stop it, then clear the task."
        locks.wait_for_lock(attempt, f"The warehouse {warehouse_name()}", timeout_seconds, advice)
        locks.sign(lock)
        yield
    finally:
        os.close(lock)


def _is_working(connection: duckdb.DuckDBPyConnection) -> bool:
    query = "select 1 from duckdb_tables() where temporary and table_name = 'remote_columns'"
    return bool(connection.execute(query).fetchall())


def _there(connection: duckdb.DuckDBPyConnection, *, dropped: bool = False) -> dict[tuple[str, str], str]:
    """Return what the service has, and what will stay there; or else what will be dropped."""
    rows = connection.execute(
        f"select distinct schema_name, name, kind from temp.remote_columns {'semi' if dropped else 'anti'} join"
        " temp.remote_dropped using (schema_name, name)"
    ).fetchall()
    return {(schema, name): kind for schema, name, kind in rows}


def _defined_here(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{identifier(name)} {type_}" for name, type_ in columns.items())


def _fill(connection: duckdb.DuckDBPyConnection, table: str, rows: pyarrow.RecordBatchReader) -> None:
    connection.register("remote_read", rows)
    try:
        connection.execute(f"insert into {table} from temp.remote_read")
    finally:
        connection.unregister("remote_read")


def _as_text(name: str, type_: str, stored: str) -> str:
    """Return SQL of a column as the service keeps it; of what it has no type for, as text."""
    nested = type_.endswith("]") or type_.startswith(("STRUCT", "MAP", "UNION"))
    value = f"to_json({identifier(name)})" if nested and stored == "VARCHAR" else identifier(name)
    return value if type_ == stored else f"cast({value} as {stored})"


def _digest(connection: duckdb.DuckDBPyConnection, place: str, first: int | None = None) -> tuple[int, int]:
    """Return number and digest of a table's rows, or of its first ones."""
    limit = "" if first is None else f" where rowid < {first}"
    query = f"select count(*), coalesce(sum(hash(one)), 0) from (from {place}{limit}) as one"
    [(count, digest)] = connection.execute(query).fetchall()
    return count, digest


def _remember(connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]) -> None:
    """Note that the service has this table as it is here."""
    _forget(connection, schema, table)
    rows = [(schema, table, "table", at, name, columns[name]) for at, name in enumerate(columns)]
    connection.executemany("insert into temp.remote_columns values (?, ?, ?, ?, ?, ?)", rows)
    found = _digest(connection, identifier(warehouse_name(), schema, table))
    connection.execute("insert into temp.remote_rows values (?, ?, ?, ?)", [schema, table, *found])


def _forget(connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
    for state in ("remote_columns", "remote_rows"):
        connection.execute(f"delete from temp.{state} where schema_name = ? and name = ?", [schema, table])


def _remember_builds(connection: duckdb.DuckDBPyConnection) -> None:
    """Note that the service has these builds."""
    connection.execute("delete from temp.remote_builds")
    source = identifier(warehouse_name(), *_BUILDS)
    with contextlib.suppress(duckdb.CatalogException):  # no table of them yet
        connection.execute(f"insert into temp.remote_builds select node, version, node = relation from {source}")


def _gone() -> str:
    """Return SQL of the builds that are not here any more."""
    here = identifier(warehouse_name(), *_BUILDS)
    return f"select node, version from temp.remote_builds anti join {here} using (node, version)"


def _gone_builds(connection: duckdb.DuckDBPyConnection) -> bool:
    return bool(connection.execute(f"{_gone()} limit 1").fetchall())
