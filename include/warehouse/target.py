"""Where the warehouse is: the small interface between the pipeline and each `DBT_TARGET`.

Everything else is the same for all of them: it works on the connection that `open_working` returns, in which the
warehouse is a catalog named `warehouse_name()`.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Protocol, cast

import duckdb

from include.settings import warehouse_name
from include.sql import identifier
from include.warehouse.connection import relations
from include.warehouse.errors import WarehouseError

logger = logging.getLogger(__name__)

_MODULES = {"duckdb": "duckdb_file", "encrypted": "duckdb_file", "ducklake": "ducklake", "postgres": "postgres"}

MARTS_SCHEMA = "marts"

Check = Callable[[duckdb.DuckDBPyConnection], None]


@dataclass(frozen=True)
class Release:
    """One state of the warehouse that was published, and is kept; not a dbt snapshot.

    Attributes:
        id: identifies it for rollback; derived from the run id by `paths.release_id`.
        run_id: the Airflow run that published it.
        location: where it is: its file, or its version of the lake.
        created_at: creation time, UTC.
        size_bytes: size of its data.
        published: whether readers see it now.
    """

    id: str
    run_id: str
    location: str
    created_at: datetime
    size_bytes: int
    published: bool


class Target(Protocol):
    """What each target implements, as a module. The functions raise the errors of `include.warehouse.errors`."""

    def open_working(self, timeout_seconds: float | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open what is being built, for writing; wait for another writer."""

    def replace_table(
        self, connection: duckdb.DuckDBPyConnection, schema: str, table: str, columns: Mapping[str, str]
    ) -> None:
        """Make a table empty, with these columns and DuckDB types, or create it; in the caller's transaction."""

    def stored_type(self, type_: str) -> str:
        """Return the type that a table's column has if it is created with this DuckDB type."""

    def begin_turn(self) -> bool:
        """Wait until no other task writes, if only one can; others then wait until `end_turn` or this process's end.

        Returns:
            Whether only one can.
        """

    def end_turn(self) -> None:
        """Let the next task write, after closing the database."""

    def attach_statements(self, release: Release | None = None, name: str | None = None) -> list[str]:
        """Return the SQL that attaches a release, by default the published one, read-only; it may contain secrets."""

    def published_version(self) -> Hashable | None:
        """Return what changes with each publish and rollback, or None before the first publish; cheap."""

    def published_location(self) -> str:
        """Return where readers find what is published, for messages."""

    def can_be_sandboxed(self) -> bool:
        """Return whether a DuckDB that has attached it can be kept from everything else, for other people's SQL."""

    def how_to_open(self) -> str:
        """Return how a person opens what is published, in a few lines."""

    def published_release(self) -> Release | None:
        """Return the published release, or None before the first publish."""

    def list_releases(self) -> list[Release]:
        """Return the kept releases, newest first."""

    def publish(self, run_id: str, check: Check, clean: Check) -> Release:
        """Make a release and switch readers to it in one step, if `check` does not raise on what it holds."""

    def rollback(self, release_or_run_id: str) -> Release:
        """Switch readers to a kept release."""

    def restore(self, release_or_run_id: str | None = None) -> str:
        """Replace what is being built with a kept release."""


def target() -> Target:
    """Return the target that `DBT_TARGET` names, by default the DuckDB file.

    Raises:
        WarehouseError: there is no such target.
    """
    return _named(os.environ.get("DBT_TARGET") or "duckdb")


def _named(name: str) -> Target:
    if name not in _MODULES:
        raise WarehouseError(f"DBT_TARGET must be one of {', '.join(_MODULES)}, not {name!r}.")
    return cast(Target, import_module(f"{__package__}.{_MODULES[name]}"))


def copy_from(name: str) -> str:
    """Fill this target's empty warehouse with what another one has published, in one transaction.

    The build graph comes along, so the copy can be loaded and built upon as it is.

    Args:
        name: the other target, as in `DBT_TARGET`.

    Returns:
        What was done, in one line.

    Raises:
        WarehouseError: it is this target, it has published nothing, or there are tables here already.
        WarehouseLockedError: somebody writes here.
        duckdb.Error: the other warehouse cannot be read.
    """
    other, this = _named(name), target()
    if other is this:
        raise WarehouseError(f"{name} is where DBT_TARGET is already: nothing to copy.")
    release = other.published_release()
    if release is None:
        raise WarehouseError(f"Nothing is published as {other.published_location()}: nothing to copy.")
    with this.open_working() as connection:
        if tables := relations(connection):
            raise WarehouseError(
                f"This warehouse has {len(tables)} tables and views already; only an empty one can be filled."
            )
        for statement in other.attach_statements(name="other"):
            connection.execute(statement)
        kinds = connection.execute("select distinct type from duckdb_databases() where not internal").fetchall()
        connection.begin()
        if ("postgres",) in kinds:  # whose views are in another dialect: the next run builds them
            for schema, table in (one for one, kind in relations(connection, "other").items() if kind == "table"):
                connection.execute(f"create schema if not exists {identifier(warehouse_name(), schema)}")
                name = identifier(schema, table)
                connection.execute(f"create table {identifier(warehouse_name())}.{name} as from other.{name}")
        else:
            connection.execute(f"copy from database other to {warehouse_name()}")
        connection.commit()
    return f"Copied {release.id} from {other.published_location()}. Start a run to load what is new and publish it."


@contextlib.contextmanager
def open_release(release: Release | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a kept release for reading, in a DuckDB instance of its own.

    Args:
        release: a kept release; default what readers see.

    Yields:
        A connection with the release as its default catalog.

    Raises:
        duckdb.Error: it is missing, damaged or not readable.
        WarehouseError: the server that lists the releases cannot be reached, or a setting is missing.
    """
    with duckdb.connect(":memory:") as reader:
        for statement in target().attach_statements(release):
            reader.execute(statement)
        reader.execute(f"use {warehouse_name()}")
        yield reader


def size_text(size_bytes: int) -> str:
    """Return a human-readable size: `12 B`, `1.5 MiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


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
