"""What the pipeline and its readers need of an engine: `Target`, the promise that each `DBT_TARGET` keeps.

Loads, dbt and publish write the working tables, which readers never see. A release is a state of them that never
changes; publish makes one and shows it to readers, rollback shows them another one. Each is one atomic step.
"""

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

import duckdb

from include.duckdb_session import open_duckdb
from include.provenance import Provenance
from include.settings import warehouse_name
from include.sql import identifier
from include.warehouse.errors import UnknownReleaseError, WarehouseError
from include.warehouse.paths import release_id

logger = logging.getLogger(__name__)

Check = Callable[[duckdb.DuckDBPyConnection], None]


def nothing(_: duckdb.DuckDBPyConnection) -> None:
    """Check or clean nothing."""


@dataclass(frozen=True)
class Release:
    """One state of the warehouse that was published, and is kept; not a dbt snapshot.

    Attributes:
        id: identifies it for rollback; derived from the run id by `paths.release_id`.
        run_id: the Airflow run that published it.
        location: where it is, as its target knows: its file, its version of the lake.
        created_at: creation time, UTC.
        size_bytes: size of its data.
        published: whether readers see it now.
        made_by: what made it.
    """

    id: str
    run_id: str
    location: str
    created_at: datetime
    size_bytes: int
    published: bool
    made_by: Provenance = field(default_factory=Provenance)


Gate = Callable[[Release], bool]


def no_gate(_: Release) -> bool:
    """Let every release pass."""
    return False


class Target(ABC):
    """An engine with a warehouse on it. Methods raise the errors of `include.warehouse.errors`.

    A connection is DuckDB's, with the warehouse as its default catalog, named `warehouse_name()`. An engine that DuckDB
    does not reach (`remote.py`) has in it the build graph, what was fetched and what was written; what has changed goes
    to the engine at the end of `transaction` and `open_working`, as one transaction there.

    Attributes:
        name: as in `DBT_TARGET`.
        encrypts: whether its files are encrypted with `WAREHOUSE_ENCRYPTION_KEY`.
        can_be_sandboxed: whether a DuckDB that has attached a release can be kept from everything else, so that other
            people's SQL can run in it.
        has_duckdb_views: whether its views are in DuckDB's SQL, so that they can be copied to another such target.
        keeps_types: whether a column comes back with the type that it was written with; else with one of that kind.
    """

    encrypts: ClassVar[bool] = False
    can_be_sandboxed: ClassVar[bool] = False
    has_duckdb_views: ClassVar[bool] = True
    keeps_types: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name

    # The working tables.

    @abstractmethod
    def open_working(self, timeout_seconds: float | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open the working tables for writing, creating the database if missing; keep other loads and publishes out.

        Args:
            timeout_seconds: how long to wait for a lock; default `WAREHOUSE_LOCK_TIMEOUT`, else 60.

        Raises:
            WarehouseLockedError: the lock was still held at the timeout; names the holder.
            WarehouseError: a setting is missing, or the database cannot be reached, read or written.
            duckdb.Error: any other error of DuckDB: a full disk, a newer file format.
        """

    def create_working(self) -> None:
        """Create the database of the working tables, if there is none: dbt only attaches it.

        Raises:
            WarehouseError: as `open_working`.
        """
        with self.open_working():
            pass

    def begin_turn(self) -> bool:
        """Block until this task may write; others then wait until `end_turn` or the end of this process.

        Returns:
            True if the target allows only one writer.
        """
        return False

    def end_turn(self) -> None:  # noqa: B027, most targets allow several writers
        """Let the next task write, after closing the database."""

    @contextlib.contextmanager
    def transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Change the working tables in one transaction, or not at all if anything is raised."""
        connection.begin()
        try:
            yield
            connection.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):  # keep the first error; a failed commit has already rolled back
                connection.rollback()
            raise

    def fetch(  # noqa: B027, most targets have nothing to fetch
        self, connection: duckdb.DuckDBPyConnection, schema: str, is_wanted: Callable[[str], bool]
    ) -> None:
        """Let a connection to the working tables read rows, and add to them, also where DuckDB does not reach them.

        What replaces a table need not fetch it.

        Args:
            connection: the working tables.
            schema: of the tables.
            is_wanted: which ones, by name.
        """

    def relations(
        self, connection: duckdb.DuckDBPyConnection, catalog: str | None = None
    ) -> dict[tuple[str, str], str]:
        """Return the tables and views of the working tables or of a release.

        Args:
            connection: one to which they are attached.
            catalog: the name there; default `warehouse_name()`.

        Returns:
            `table` or `view`, by (schema, name), sorted.
        """
        name = catalog or warehouse_name()
        tables = connection.execute(
            "select schema_name, table_name from duckdb_tables()"
            " where database_name = ? and not internal and not temporary",
            [name],
        ).fetchall()
        return dict(
            sorted((dict.fromkeys(tables, "table") | dict.fromkeys(self._views(connection, name), "view")).items())
        )

    def _views(self, connection: duckdb.DuckDBPyConnection, catalog: str) -> list[tuple[str, str]]:
        return connection.execute(
            "select schema_name, view_name from duckdb_views() where database_name = ? and not internal", [catalog]
        ).fetchall()

    def columns(
        self, connection: duckdb.DuckDBPyConnection, schema: str, table: str | None = None
    ) -> list[tuple[str, str, str]]:
        """Return table, name and type of the columns of a schema's tables, or of one of them, in order."""
        return connection.execute(
            "select table_name, column_name, data_type from duckdb_columns() where database_name = ?"
            " and schema_name = ? and table_name = coalesce(?, table_name) order by table_name, column_index",
            [warehouse_name(), schema, table],
        ).fetchall()

    def columns_of(self, connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> list[tuple[str, str]]:
        """Return name and type of a table's columns, in order; none if there is no such table."""
        return [(name, type_) for _, name, type_ in self.columns(connection, schema, table)]

    def count_rows(self, connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
        """Count the rows of every table, excluding views.

        `count(*)` reads no column data: on a checkpointed table it costs milliseconds at any size, and unlike
        `duckdb_tables().estimated_size` it is exact after deletes.

        Returns:
            Row counts by (schema, table), sorted.
        """
        counts: dict[tuple[str, str], int] = {}
        for schema, table in (one for one, kind in self.relations(connection).items() if kind == "table"):
            name = identifier(warehouse_name(), schema, table)
            [(counts[schema, table],)] = connection.execute(f"select count(*) from {name}").fetchall()
        return counts

    def rows_with(
        self,
        connection: duckdb.DuckDBPyConnection,
        relation: tuple[str, str],
        column: str,
        values: tuple[tuple[str, str], str],
        limit: int,
    ) -> tuple[list[str], list[tuple[object, ...]]]:
        """Return the columns and first rows of a table or view whose `column` has one of another table's first values.

        Args:
            connection: the working tables.
            relation: schema and name.
            column: the column to compare, which also orders the rows.
            values: the other table's schema and name, and its column.
            limit: how many values and rows.

        Raises:
            duckdb.Error, WarehouseError: they cannot be read.
        """
        cursor = connection.execute(rows_with(identifier, relation, column, values, limit))
        return [one[0] for one in cursor.description or []], cursor.fetchall()

    def stored_type(self, type_: str) -> str:
        """Return the type that a table's column has if it is created with this DuckDB type."""
        return type_

    def kept_type(self, type_: str) -> str:
        """Return the type in which this engine keeps each value of a DuckDB type: the same, if it does."""
        return type_

    def replace_table(
        self, connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]
    ) -> None:
        """Make a table empty, with these columns and DuckDB types, or create it; in the caller's transaction."""
        listed = ", ".join(f"{identifier(column)} {type_}" for column, type_ in columns.items())
        connection.execute(f"create schema if not exists {identifier(schema)}")
        self.drop(connection, schema, table)
        connection.execute(f"create table {identifier(schema, table)} ({listed})")

    def drop(
        self,
        connection: duckdb.DuckDBPyConnection,
        schema: str,
        name: str,
        kind: str = "table",
        *,
        cascade: bool = True,
    ) -> None:
        """Drop a table or view, if it exists; in the caller's transaction.

        Args:
            connection: the working tables.
            schema: where it is.
            name: its name.
            kind: `table` or `view`.
            cascade: whether views on it go too, where they cannot wait for the next one of its name; else it stays.
        """
        connection.execute(f"drop {kind} if exists {identifier(warehouse_name(), schema, name)}")

    def tidy(self) -> int:
        """Remove files that nothing needs, such as those of writes that were killed; return how many."""
        return 0

    # Releases.

    @abstractmethod
    def publish(self, run_id: str, check: Check, clean: Check = nothing, gate: Gate = no_gate) -> Release:
        """Make a release of the working tables and switch readers to it in one step.

        Publishing the same run again replaces that run's release. The newest `keep_releases()` are kept. A release that
        waits for a person goes, whether the new one is shown or waits in its place.

        Args:
            run_id: the run that publishes.
            check: raises if the tables that it gets must not be published.
            clean: called with the working tables: drops what must not be published.
            gate: whether the release that it gets, complete but not shown, waits for `approve` instead.

        Returns:
            The release; `published` is False if it waits.

        Raises:
            NotReadyError: nothing to publish, or an older load than readers see; or raised by `check`.
            PublishError: the release could not be made or read; readers still see the previous one.
            DiskFullError: no space for it; readers still see the previous one.
            WarehouseLockedError: the working tables or another publish were still busy at the timeout.
        """

    @abstractmethod
    def rollback(self, release_or_run_id: str) -> Release:
        """Switch readers to an older (or newer) kept release, in one step.

        Args:
            release_or_run_id: id of a kept release, or of the run that published it.

        Returns:
            The release that is now published.

        Raises:
            UnknownReleaseError: no such release; lists the kept ones.
            WarehouseError: it cannot be read; nothing changes for readers.
            WarehouseLockedError: a publish or another rollback was still running at the timeout.
        """

    @abstractmethod
    def waiting_release(self) -> Release | None:
        """Return the release that waits for a person, not among the kept ones; None if there is none."""

    @abstractmethod
    def approve(self, release_or_run_id: str) -> Release:
        """Switch readers to the release that waits, in one step; it is then a kept one.

        Args:
            release_or_run_id: its id, or that of its run: another one may wait by now.

        Returns:
            The release that is now published.

        Raises:
            UnknownReleaseError: it does not wait (any more).
            WarehouseError, WarehouseLockedError: as `rollback`.
        """

    @abstractmethod
    def refuse(self, release_or_run_id: str) -> Release:
        """Remove the release that waits; readers see no change. Arguments and errors as `approve`."""

    @abstractmethod
    def restore(self, release_or_run_id: str | None = None) -> str:
        """Replace the working tables with those of a kept release; the next load and build start from them.

        Args:
            release_or_run_id: id of a kept release, or of the run that published it; default: the published one. If
                nothing is published, the working tables are empty afterwards.

        Returns:
            What was done, in one line.

        Raises:
            UnknownReleaseError: no such release is kept.
            WarehouseError: it cannot be read; choose another. The working tables are unchanged.
            WarehouseLockedError: a load, a publish or a rollback was still running at the timeout.
        """

    @abstractmethod
    def list_releases(self) -> list[Release]:
        """Return the kept releases, newest first."""

    def published_release(self) -> Release | None:
        """Return the release that readers see, or None before the first publish."""
        return next((one for one in self.list_releases() if one.published), None)

    def published_version(self) -> Hashable | None:
        """Return what changes with each publish and rollback, or None before the first publish; cheap."""
        found = self.published_release()
        return (found.id, found.location, found.created_at) if found else None

    @abstractmethod
    def attach_statements(self, release: Release | None = None, name: str | None = None) -> list[str]:
        """Return the SQL that attaches a release to DuckDB, read-only; it may contain secrets.

        Args:
            release: a kept one; default what readers see.
            name: of the catalog; default `warehouse_name()`, which its views expect.
        """

    @contextlib.contextmanager
    def open_release(
        self, release: Release | None = None, builds_only: bool = False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a release for reading, in a DuckDB instance of its own.

        Args:
            release: a kept one; default what readers see.
            builds_only: whether only its build graph is read; on most targets, all of it can be.

        Raises:
            duckdb.Error: it is missing, damaged or not readable.
            WarehouseError: the server that lists the releases cannot be reached, or a setting is missing.
        """
        with open_duckdb() as reader:
            for statement in self.attach_statements(release):
                reader.execute(statement)
            reader.execute(f"use {warehouse_name()}")
            yield reader

    @abstractmethod
    def published_location(self) -> str:
        """Return where readers find what is published, for messages."""

    def namespace(self, *, is_published: bool) -> str:
        """Return the OpenLineage namespace of the working tables, or of what readers see."""
        return f"{self.name}://{warehouse_name()}/{'published' if is_published else 'working'}"

    @abstractmethod
    def how_to_open(self) -> str:
        """Return how a person opens what is published, in a few lines."""


def rows_with(
    quoted: Callable[..., str], relation: tuple[str, str], column: str, values: tuple[tuple[str, str], str], limit: int
) -> str:
    """Return the query of `Target.rows_with`, for an engine that quotes names like this."""
    found = f"select {quoted(values[1])} from {quoted(*values[0])} limit {limit}"
    of = quoted(column)
    return f"select * from {quoted(*relation)} where {of} in ({found}) order by {of} limit {limit}"


def has_built(tables: Mapping[tuple[str, str], int]) -> bool:
    """Return whether there is anything to publish: a table that was not just loaded.

    Args:
        tables: as `Target.count_rows` returns them.
    """
    return any(schema != "warehouse" and not schema.endswith("_raw") for schema, _ in tables)


def find(kept: list[Release], release_or_run_id: str, location: str) -> Release:
    """Return a kept release by its id or its run's.

    Raises:
        UnknownReleaseError: there is none; lists the kept ones.
    """
    wanted = release_id(release_or_run_id)
    for one in kept:
        if one.id == wanted:
            return one
    listed = ", ".join(one.id for one in kept) or "none"
    raise UnknownReleaseError(f"There is no release {release_or_run_id!r} in {location}. Kept: {listed}.")


def find_waiting(waiting: Release | None, release_or_run_id: str) -> Release:
    """Return the release that waits, if it is this one.

    Raises:
        UnknownReleaseError: it is not.
    """
    if waiting is None or waiting.id != release_id(release_or_run_id):
        now = f"The release {waiting.id} does." if waiting else "None does."
        raise UnknownReleaseError(f"The release {release_or_run_id!r} does not wait for approval (any more). {now}")
    return waiting


def keep_releases() -> int:
    """Return how many releases to keep: `WAREHOUSE_KEEP_RELEASES`, default 7.

    Raises:
        WarehouseError: the variable is not a whole number of at least 1.
    """
    value = os.environ.get("WAREHOUSE_KEEP_RELEASES")
    if not value and (value := os.environ.get("WAREHOUSE_KEEP_SNAPSHOTS")):
        logger.warning(
            "WAREHOUSE_KEEP_SNAPSHOTS is now WAREHOUSE_KEEP_RELEASES; the next version ignores the old name."
        )
    value = value or "7"
    if not value.isdecimal() or int(value) < 1:
        raise WarehouseError(f"WAREHOUSE_KEEP_RELEASES must be a whole number of at least 1, not {value!r}.")
    return int(value)
